"""Losses of a pair that make use of how far apart its two responses are scored.

The scores are `batch.score`, those of a second judge, or else the labels. In the formulas rho =
log p - log p_ref, sums over tokens, z = beta (rho_w - rho_l), g = score_w - score_l, s is the
logistic function and ls its logarithm.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _pairs, _scores
from larpo_jax.losses._scores import marked
from larpo_jax.types import Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]


@marked(reads=("score",))
def reward_distillation(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1
) -> Result:
  """Reward distillation: the margin of implicit rewards is fitted to that of the scores.

  Formula: (z - g)^2
  Source: Fisch et al., https://arxiv.org/abs/2405.19316, Eq. 7, from memory; NVIDIA's rpo_sq with a
  scale of 1, which was read, is the same.
  Defaults: beta 0.1 is ours.
  Traps: scores count in units of beta nats: a reward model's scale matters.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  gap = _pairs.gap(_scores.score(batch), batch)
  return _pairs.result(jnp.square(_scores.margins(reward) - gap), reward, policy, reference, batch)


@marked(reads=("score",))
def rebel(policy: LogProbs, reference: LogProbs, batch: Batch, *, eta: float = 1.0) -> Result:
  """REBEL: relative rewards regressed on log-ratios to the policy at the iteration's start.

  Formula: (rho_w - rho_l - eta g)^2
  Source: REBEL, https://arxiv.org/abs/2404.16767, and the authors' code, which scales the rewards;
  the paper's Eq. 9 scales the log-ratios by 1 / eta: the same minimum, a loss eta^2 smaller.
  Defaults: eta 1 is ours; the authors' scripts differ by task.
  Traps: the reference is the policy at the start of the iteration: renew it with each round.
  """
  ratio = _scores.log_ratio(policy, reference, batch)
  gap = _pairs.gap(_scores.score(batch), batch)
  terms = jnp.square(_scores.margins(ratio) - eta * gap)
  return _pairs.result(terms, ratio, policy, reference, batch)


@marked(reads=("score",))
def rpo_squared(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, eta: float = 1.0
) -> Result:
  """NVIDIA's reward-aware preference optimisation, squared distance.

  Formula: (z - eta g)^2
  Source: RPO, https://arxiv.org/abs/2502.00203, Table 1, and NeMo-Aligner's rpo_sq.
  Defaults: beta 0.1 and eta (gt_reward_scale) 1 are NeMo-Aligner's.
  Traps: see `rpo_backward_kl`, which the paper prefers.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  target = eta * _pairs.gap(_scores.score(batch), batch)
  terms = jnp.square(_scores.margins(reward) - target)
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(reads=("score",))
def rpo_backward_kl(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, eta: float = 1.0
) -> Result:
  """NVIDIA's reward-aware preference optimisation: KL from the scores' preference to the policy's.

  Formula: KL(s(eta g) || s(z)), two outcomes
  Source: RPO, https://arxiv.org/abs/2502.00203, Table 1, and NeMo-Aligner's rpo_bwd_kl.
  Defaults: beta 0.1 and eta (gt_reward_scale) 1 are NeMo-Aligner's.
  Traps: the gradient is that of `soft_label` with a temperature of 1 / eta; only the value differs.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  target = eta * _pairs.gap(_scores.score(batch), batch)
  terms = _divergence(target, _scores.margins(reward))
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(reads=("score",))
def rpo_forward_kl(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, eta: float = 1.0
) -> Result:
  """NVIDIA's reward-aware preference optimisation: KL from the policy's preference to the scores'.

  Formula: KL(s(z) || s(eta g)), two outcomes
  Source: RPO, https://arxiv.org/abs/2502.00203, Table 1, and NeMo-Aligner's rpo_fwd_kl.
  Defaults: beta 0.1 and eta (gt_reward_scale) 1 are NeMo-Aligner's.
  Traps: flat where the policy is sure of the wrong order.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  target = eta * _pairs.gap(_scores.score(batch), batch)
  terms = _divergence(_scores.margins(reward), target)
  return _pairs.result(terms, reward, policy, reference, batch)


def _divergence(p: jax.Array, q: jax.Array) -> jax.Array:
  """KL(s(p) || s(q)) of two outcomes, given as logits."""
  won = jax.nn.sigmoid(p) * (jax.nn.log_sigmoid(p) - jax.nn.log_sigmoid(q))
  return won + jax.nn.sigmoid(-p) * (jax.nn.log_sigmoid(-p) - jax.nn.log_sigmoid(-q))


@marked(reads=("score",))
def soft_label(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  temperature: float = 1.0,
) -> Result:
  """DPO on the probability that the chosen response wins, not on the verdict.

  Formula: -p ls(z) - (1 - p) ls(-z), p = s(g / temperature)
  Source: cross-entropy under the Bradley-Terry model of DPO, https://arxiv.org/abs/2305.18290,
  Eq. 1.
  Defaults: beta 0.1 is DPO's; temperature 1 is ours, for scores that are logits of a reward model.
  Traps: its optimum is z = g / temperature, so beta decides how far that is from the reference.
  """
  _positive(temperature)
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  z = _scores.margins(reward)
  flipped = jax.nn.sigmoid(-_pairs.gap(_scores.score(batch), batch) / temperature)  # 1 - p
  terms = -jax.nn.log_sigmoid(z) + flipped * z
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(reads=("score",))
def rank_conditioned(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1
) -> Result:
  """DPO weighted by how much better the chosen response is scored.

  Formula: -g ls(z)
  Source: dpo_trl_rc.py of LarPO's authors' training code; not in the paper,
  https://arxiv.org/abs/2502.03699.
  Defaults: beta 0.1 is what the script leaves in place.
  Traps: the scores' scale multiplies the learning rate. A gap below 0 counts as 0.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  gap = jax.nn.relu(_pairs.gap(_scores.score(batch), batch))
  terms = -gap * jax.nn.log_sigmoid(_scores.margins(reward))
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(reads=("score",))
def sppo(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.001) -> Result:
  """Self-play preference optimisation with the judge's probabilities of winning.

  Formula: ((rho_w - (P_w - 1/2) / beta)^2 + (rho_l - (P_l - 1/2) / beta)^2) / 2,
  P_y = mean over the list, y itself too, of s(score_y - score_j)
  Source: SPPO, https://arxiv.org/abs/2405.00675, Eq. 4.7, and the authors' trainer.py and
  compute_prob.py, where each of the two has a probability of its own.
  Defaults: beta 0.001 is the paper's.
  Traps: scores are logits of winning, as PairRM's are; others need another scale.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  score = jnp.asarray(_scores.score(batch))
  wins = masked.mean(jax.nn.sigmoid(_scores.margins(score)), batch.valid[..., None, :], -1)
  error = jnp.square(_scores.log_ratio(policy, reference, batch) - (wins - 0.5) / beta)
  chosen, rejected = _pairs.sides(error)
  return _pairs.result(0.5 * (chosen + rejected), reward, policy, reference, batch)


@marked(reads=("score",))
def madpo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  c_max: float = 2.0,
  c_min: float = 0.5,
  steepness: float = 1.0,
  tau: float = 2.0,
  side: str = "full",
  cutoff: bool = True,
) -> Result:
  """Margin-adaptive DPO, weights: a reward model's margin g amplifies hard pairs, damps easy ones.

  Formula: -w(g) ls(z), w = s(c g) / s(g), c from c_max at |g| << tau over 1 at tau to c_min;
  w = 1 where g <= -tau (cutoff)
  Source: MADPO, https://arxiv.org/abs/2510.05342, and the authors' notebooks.
  Defaults: c_max 2, c_min 0.5, steepness 1, tau 2 and the cut-off are those of the authors' class,
  beta 0.1 that of their notebook; side "full" is the method, the others are its ablations.
  Traps: w is not monotone in g: mostly it drops pairs whose label the reward model contradicts, so
  compare with a filter on g > 0. Weights are not normalised: they change the step size. side is
  "full", "amplify" (c at least 1) or "regularise" (c at most 1).
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  gap = _pairs.gap(_scores.score(batch), batch)
  c = _adaptive(gap, c_max, c_min, steepness, tau, side)
  weight = jnp.exp(jax.nn.log_sigmoid(c * gap) - jax.nn.log_sigmoid(gap))
  weight = jnp.where(cutoff & (gap <= -tau), 1.0, weight)
  terms = -weight * jax.nn.log_sigmoid(_scores.margins(reward))
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(reads=("score",))
def madpo_margin(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  c_max: float = 2.0,
  c_min: float = 0.5,
  steepness: float = 1.0,
  tau: float = 2.0,
  side: str = "full",
) -> Result:
  """Margin-adaptive DPO, as an ablation: the target margin itself is scaled.

  Formula: -ls(z / c(|g|)), c as in `madpo`
  Source: not in MADPO, https://arxiv.org/abs/2510.05342, whose abstract can be read so.
  Defaults: those of `madpo`.
  Traps: do not report it as MADPO.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  gap = _pairs.gap(_scores.score(batch), batch)
  c = _adaptive(gap, c_max, c_min, steepness, tau, side)
  terms = -jax.nn.log_sigmoid(_scores.margins(reward) / c)
  return _pairs.result(terms, reward, policy, reference, batch)


def _adaptive(
  gap: jax.Array, c_max: float, c_min: float, steepness: float, tau: float, side: str
) -> jax.Array:
  """MADPO's c: c_max for small |gap|, 1 at tau, c_min for large; bounded to one side of 1."""
  _scores.require("c_max", c_max, lambda c: 1.0 < c < math.inf, "above 1 and finite")
  _scores.require("c_min", c_min, lambda c: 0.0 < c < 1.0, "between 0 and 1")
  sides = {"full": (c_min, c_max), "amplify": (1.0, c_max), "regularise": (c_min, 1.0)}
  low, high = _scores.choice("side", side, sides)
  easy = jax.nn.sigmoid(
    steepness * (jnp.abs(gap) - tau) + jnp.log(c_max - 1.0) - jnp.log(1.0 - c_min)
  )
  return jnp.clip(c_max + (c_min - c_max) * easy, low, high)


def _positive(temperature: float) -> None:
  bounds = "above 0 and finite"
  _scores.require("temperature", temperature, lambda t: 0.0 < t < math.inf, bounds)
