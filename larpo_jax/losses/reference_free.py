"""Losses that read no reference: likelihoods of the policy alone.

In the formulas log p is a sum over tokens, a = log p / n the log-prob per token, w the chosen
(best) and l the rejected (worst) response, s the logistic function and ls its logarithm.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _pairs, _scores
from larpo_jax.losses._scores import marked
from larpo_jax.types import Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]
LARGEST = 60.0  # exponents are cut there: exp(60) squares, and multiplies, within float32


@marked(needs_reference=False)
def slic(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, delta: float = 1.0, sft: float = 0.1
) -> Result:
  """Sequence likelihood calibration: a hinge on log-probs, and the likelihood of the chosen.

  Formula: max(0, delta - log p_w + log p_l) - sft log p_w
  Source: SLiC-HF, https://arxiv.org/abs/2305.10425, Eq. 1; the regulariser on the chosen response
  as in HALOs' (whose broadcast of it over tokens is not copied).
  Defaults: delta 1 and sft 0.1 are HALOs'.
  Traps: RSO calls it hinge and drops the regulariser; TRL's "hinge" has a reference and is
  `pairwise.hinge`.
  """
  del reference
  log_prob = _scores.log_prob(policy, batch)
  chosen, _ = _pairs.sides(log_prob)
  terms = jax.nn.relu(delta - _scores.margins(log_prob)) - sft * chosen
  return _pairs.free(terms, log_prob, policy, batch)


@marked(needs_reference=False)
def cpo(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, sft: float = 1.0
) -> Result:
  """Contrastive preference optimisation: DPO with a uniform reference, and the chosen's likelihood.

  Formula: -ls(beta (log p_w - log p_l)) - sft a_w
  Source: CPO, https://arxiv.org/abs/2401.08417, Eq. 6; TRL's experimental CPO trainer.
  Defaults: beta 0.1 and sft (cpo_alpha) 1 are the paper's and TRL's.
  Traps: TRL takes the likelihood term as one mean over the tokens of a batch; here every prompt
  weighs the same. The two agree when lengths do.
  """
  del reference
  reward = beta * _scores.log_prob(policy, batch)
  chosen, _ = _pairs.sides(_scores.mean_log_prob(policy, batch))
  terms = -jax.nn.log_sigmoid(_scores.margins(reward)) - sft * chosen
  return _pairs.free(terms, reward, policy, batch)


@marked(needs_reference=False)
def orpo(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """Odds ratio preference optimisation: supervised fine-tuning with a penalty on the odds.

  Formula: -a_w - beta ls(odds_w - odds_l), odds = a - log(1 - exp(a))
  Source: ORPO, https://arxiv.org/abs/2403.07691, Eq. 6 and 7; TRL's experimental trainer.
  Defaults: beta (the paper's lambda) 0.1 is the paper's and TRL's.
  Traps: a is per token; with sums, as in Tunix 0.1.7, the odds term degenerates. TRL's first term
  covers prompt and response; here it is the response's, as no log-prob of a prompt is computed.
  """
  del reference
  a = _scores.mean_log_prob(policy, batch)
  # A certain response has infinite odds; 1e-6 from it is as near as float32 tells apart.
  least = jnp.minimum(a, -1e-6)
  odds = least - jnp.log(-jnp.expm1(least))
  chosen, _ = _pairs.sides(a)
  terms = -chosen - beta * jax.nn.log_sigmoid(_scores.margins(odds))
  return _pairs.free(terms, beta * a, policy, batch)


@marked(needs_reference=False)
def simper(policy: LogProbs, reference: LogProbs, batch: Batch) -> Result:
  """SimPER: inverse perplexities, and no hyper-parameter.

  Formula: -exp(a_w) + exp(a_l)
  Source: SimPER, https://arxiv.org/abs/2502.00883, Eq. 4, and its authors' trainer.
  Traps: bounded by 1, so gradients are small where responses are unlikely.
  """
  del reference
  reward = jnp.exp(_scores.mean_log_prob(policy, batch))
  return _pairs.free(-_scores.margins(reward), reward, policy, batch)


@marked(needs_reference=False)
def alphapo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 2.0,
  gamma: float = 1.0,
  alpha: float = 0.25,
) -> Result:
  """AlphaPO: SimPO with another shape of the reward; alpha towards 0 is SimPO.

  Formula: -ls(beta (q_w - q_l) - gamma), q = (1 - exp(-alpha a)) / alpha
  Source: AlphaPO, https://arxiv.org/abs/2501.03884; TRL's experimental CPO trainer with simpo.
  Defaults: beta and gamma are SimPO's; alpha 0.25 is ours (the paper's are not verified; TRL's is
  0, which is SimPO).
  Traps: exponents are cut at 60, where a token would have a probability of exp(-60 / alpha).
  """
  del reference
  _scores.require("alpha", alpha, lambda x: x != 0.0, "other than 0: that is pairwise.simpo")
  exponent = jnp.minimum(-alpha * _scores.mean_log_prob(policy, batch), LARGEST)
  reward = -beta * jnp.expm1(exponent) / alpha
  terms = -jax.nn.log_sigmoid(_scores.margins(reward) - gamma)
  return _pairs.free(terms, reward, policy, batch)


@marked(needs_reference=False)
def rrhf(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  rank_weight: float = 1.0,
  length_penalty: float = 1.0,
  flavor: str = "paper",
) -> Result:
  """Rank responses to align human feedback: a hinge on all pairs, and the likelihood of the best.

  Formula: rank_weight * sum over s_i > s_j of max(0, q_j - q_i) + NLL(best), q = log p / n^penalty
  Source: RRHF, https://arxiv.org/abs/2304.05302, Eq. 2 to 4; the authors' train.py. flavor "paper"
  sums the NLL over tokens; "code" takes the mean over tokens (the code's own mean counts padding).
  Defaults: weight and penalty 1 are the paper's; the code's rank_weight is 100.
  Traps: a pair in the right order has no gradient at all.
  """
  del reference
  sums, means = _scores.log_prob(policy, batch), _scores.mean_log_prob(policy, batch)
  likelihood = _scores.choice("flavor", flavor, {"paper": sums, "code": means})
  q = sums / jnp.maximum(_scores.length(policy, batch), 1.0) ** length_penalty
  wins = _scores.beaten(batch)
  rank = masked.sum(jax.nn.relu(-_scores.margins(q)), wins, (-2, -1))
  nll = -masked.mean(likelihood, _scores.best(batch), -1)
  loss = jnp.where(_scores.ordered(batch), rank_weight * rank + nll, 0.0)
  return loss, _scores.rewarded(q, policy, batch)


@marked(needs_reference=False, reads=("score",))
def pro(policy: LogProbs, reference: LogProbs, batch: Batch, *, sft: float = 0.05) -> Result:
  """Preference ranking optimisation: Plackett-Luce on log-probs, sharper where scores differ more.

  Formula: sum over i of (lse(T_ii a_i, T_ij a_j for j below i) - T_ii a_i) - sft (K - 1)^2 log p_1,
  T_ij = score_i - score_j, T_ii = the largest of them
  Source: PRO, https://arxiv.org/abs/2306.17492, Eq. 9, and its process_manager.py.
  Defaults: sft 0.05 is that of the authors' script.
  Traps: the likelihood term is a sum over tokens times (K - 1)^2 and soon the larger one. Scores
  are inverse temperatures: their scale matters.
  """
  del reference
  a, score = _scores.mean_log_prob(policy, batch), jnp.asarray(_scores.score(batch))
  below = _scores.beaten(batch)  # [B, K, K]
  sharpness = jnp.where(below, jax.nn.relu(_scores.margins(score)), 0.0)  # T_ij
  own = jnp.max(sharpness, axis=-1)  # T_ii [B, K]
  terms = _scores.behind(own * a, sharpness * a[..., None, :], below)
  count = jnp.sum(jnp.where(batch.valid, 1.0, 0.0), axis=-1)
  nll = -masked.mean(_scores.log_prob(policy, batch), _scores.best(batch), -1)
  loss = masked.sum(terms, batch.valid, -1) + sft * jnp.square(count - 1.0) * nll
  return jnp.where(_scores.ordered(batch), loss, 0.0), _scores.rewarded(a, policy, batch)
