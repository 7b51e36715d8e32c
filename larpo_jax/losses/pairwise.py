"""Losses of the best response against the worst: a preference pair is a list of two.

In the formulas r = beta (log p - log p_ref), sums over tokens, w is the chosen and l the rejected
response, z = r_w - r_l, n counts tokens, s is the logistic function and ls its logarithm. The mean
over pairs where several responses share the best or the worst label (see `_pairs`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from larpo_jax.losses import _pairs, _scores
from larpo_jax.losses._scores import marked
from larpo_jax.types import Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]


def dpo(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """Direct preference optimisation: the logistic loss of the margin of implicit rewards.

  Formula: -ls(z)
  Source: DPO, https://arxiv.org/abs/2305.18290, Eq. 7; TRL's "sigmoid".
  Defaults: beta 0.1 is the paper's and TRL's.
  Traps: the chosen response often becomes less likely, only more slowly than the rejected: look at
  displacement/chosen. TRL has a label_smoothing that it does not read here; that is `cdpo`.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  terms = -jax.nn.log_sigmoid(_scores.margins(reward))  # [B, K, K]
  return _pairs.result(terms, reward, policy, reference, batch)


def cdpo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.1,
) -> Result:
  """Conservative DPO: a share of the labels is taken to be flipped, and the margin stays finite.

  Formula: -(1 - eps) ls(z) - eps ls(-z) = DPO + eps z
  Source: https://ericmitchell.ai/cdpo.pdf; OpenRLHF and HALOs compute the same.
  Defaults: eps = label_smoothing 0.1 is the note's example; beta 0.1 is DPO's.
  Traps: its optimum is z = log((1 - eps) / eps); it is not the unbiased `wrappers.robust`.
  """
  _scores.require("label_smoothing", label_smoothing, lambda e: 0.0 <= e <= 0.5, "from 0 to 0.5")
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  z = _scores.margins(reward)
  terms = -jax.nn.log_sigmoid(z) + label_smoothing * z
  return _pairs.result(terms, reward, policy, reference, batch)


def hinge(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.05) -> Result:
  """RSO's hinge-norm: SLiC's hinge on rewards that are normalised by the reference.

  Formula: max(0, 1 - z)
  Source: RSO, https://arxiv.org/abs/2309.06657, section 3.2; TRL's "hinge".
  Defaults: beta 0.05 is the best of the paper's gamma (0.005, 0.05, 0.5).
  Traps: SLiC itself has no reference; that is `reference_free.slic`.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  terms = jax.nn.relu(1.0 - _scores.margins(reward))
  return _pairs.result(terms, reward, policy, reference, batch)


def ipo(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """Identity preference optimisation on log-ratios per token: the margin has a target.

  Formula: (rho_w / n_w - rho_l / n_l - 1 / (2 beta))^2, rho = log p - log p_ref
  Source: IPO, https://arxiv.org/abs/2310.12036, Eq. 17, with means over tokens as in TRL's "ipo",
  whose authors confirmed that with the paper's; HALOs and LLaMA-Factory do the same.
  Defaults: beta (the paper's tau) 0.1 is TRL's; it asks for a margin of 5 nats a token, which no
  policy near its reference has, so try 0.5 to 2.
  Traps: other code bases sum over tokens: `ipo_sum`, with another scale of beta.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  ahead = _scores.margins(_scores.mean_log_ratio(policy, reference, batch))
  return _pairs.result(jnp.square(ahead - 0.5 / beta), reward, policy, reference, batch)


def ipo_sum(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.05) -> Result:
  """Identity preference optimisation as printed: log-ratios of whole responses.

  Formula: (rho_w - rho_l - 1 / (2 beta))^2, rho = log p - log p_ref
  Source: IPO, https://arxiv.org/abs/2310.12036, Eq. 17, with sums as in the repository of the
  authors of DPO, OpenRLHF and beta-DPO's.
  Defaults: beta 0.05 is ours, between the 0.01 and 0.1 that are usual with sums.
  Traps: the gradient grows with the distance from the target: clip it.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  ahead = _scores.margins(_scores.log_ratio(policy, reference, batch))
  return _pairs.result(jnp.square(ahead - 0.5 / beta), reward, policy, reference, batch)


def exo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  label_smoothing: float = 1e-3,
) -> Result:
  """Efficient exact optimisation on pairs: the reverse KL from smoothed labels to the policy.

  Formula: q_w (log q_w - log(1 - eps)) + q_l (log q_l - log eps), q_w = s(z), q_l = s(-z)
  Source: EXO, https://arxiv.org/abs/2402.00856, Eq. 16, as TRL's "exo_pair" reads it.
  Defaults: eps = label_smoothing 0.001 is the paper's, as TRL quotes it; beta 0.1 is TRL's.
  Traps: eps = 0 makes it infinite. It is 0 at z = log((1 - eps) / eps), nowhere else, and flat for
  z far below 0.
  """
  _scores.require("label_smoothing", label_smoothing, lambda e: 0.0 < e < 0.5, "from 0 to 0.5")
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  z = _scores.margins(reward)
  chosen = jax.nn.sigmoid(z) * (jax.nn.log_sigmoid(z) - jnp.log1p(-label_smoothing))
  rejected = jax.nn.sigmoid(-z) * (jax.nn.log_sigmoid(-z) - jnp.log(label_smoothing))
  return _pairs.result(chosen + rejected, reward, policy, reference, batch)


def nca(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.01) -> Result:
  """Noise contrastive alignment on pairs: each reward against 0, so that likelihood can not fall.

  Formula: -ls(r_w) - ls(-r_w) / 2 - ls(-r_l) / 2
  Source: NCA, https://arxiv.org/abs/2402.05369, section 4.2; TRL's "nca_pair".
  Defaults: beta 0.01 is the authors' recipe for pairs, as TRL quotes it.
  Traps: not a function of the margin: adding a constant to both rewards changes it.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  chosen, rejected = _pairs.sides(reward)
  noise = jax.nn.log_sigmoid(-chosen) + jax.nn.log_sigmoid(-rejected)
  terms = -jax.nn.log_sigmoid(chosen) - 0.5 * noise
  return _pairs.result(terms, reward, policy, reference, batch)


def bco_pair(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """Binary classifier optimisation on pairs, each reward against 0.

  Formula: -ls(r_w) - ls(-r_l)
  Source: BCO, https://arxiv.org/abs/2404.04656, without its reward shift, as TRL 1.16's "bco_pair".
  Defaults: beta 0.1 is TRL's; its recipe for the paper has 0.01.
  Traps: the paper shifts both rewards by their running mean: `batchwise.bco_pair_shift`.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  chosen, rejected = _pairs.sides(reward)
  terms = -jax.nn.log_sigmoid(chosen) - jax.nn.log_sigmoid(-rejected)
  return _pairs.result(terms, reward, policy, reference, batch)


def sppo_hard(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.001
) -> Result:
  """Self-play preference optimisation where the chosen response always wins.

  Formula: (rho_w - 1 / (2 beta))^2 + (rho_l + 1 / (2 beta))^2, rho = log p - log p_ref
  Source: SPPO, https://arxiv.org/abs/2405.00675, Eq. 4.7 with P = 1 and 0; TRL's "sppo_hard".
  Defaults: beta 0.001 is the paper's (its eta is 1 / beta).
  Traps: at 0.001 the targets are 500 nats away: the loss is near 500,000 and its gradient nearly
  constant. With the judge's probabilities: `scored.sppo`.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  chosen, rejected = _pairs.sides(_scores.log_ratio(policy, reference, batch))
  terms = jnp.square(chosen - 0.5 / beta) + jnp.square(rejected + 0.5 / beta)
  return _pairs.result(terms, reward, policy, reference, batch)


def apo_zero(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """Anchored preference optimisation, zero: the chosen becomes likelier, the rejected less so.

  Formula: 1 - s(r_w) + s(r_l)
  Source: APO, https://arxiv.org/abs/2408.06266, Eq. 7; TRL's "apo_zero".
  Defaults: beta 0.1 is the paper's, as TRL quotes it.
  Traps: for chosen responses that are better than what the policy writes; else `apo_down`.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  chosen, rejected = _pairs.sides(jax.nn.sigmoid(reward))
  return _pairs.result(1.0 - chosen + rejected, reward, policy, reference, batch)


def apo_down(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """Anchored preference optimisation, down: the rejected falls, and the chosen with it, but less.

  Formula: s(r_w) + 1 - s(z)
  Source: APO, https://arxiv.org/abs/2408.06266, Eq. 8; TRL's "apo_down".
  Defaults: beta 0.1 is the paper's, as TRL quotes it.
  Traps: for chosen responses that are worse than what the policy writes. At the reference the
  chosen has no slope at all; it falls only once the margin has grown.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  chosen, _ = _pairs.sides(jax.nn.sigmoid(reward))
  terms = chosen + 1.0 - jax.nn.sigmoid(_scores.margins(reward))
  return _pairs.result(terms, reward, policy, reference, batch)


def discopop(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.05, tau: float = 0.05
) -> Result:
  """DiscoPOP: the logistic and the exponential loss, mixed by the margin; found by a model.

  Formula: -(1 - m) ls(z) + m exp(-z), m = s(z / tau)
  Source: DiscoPOP, https://arxiv.org/abs/2406.08414, Eq. 5; TRL's "discopop".
  Defaults: tau 0.05 is the paper's; beta 0.05 is its recipe, as TRL quotes it.
  Traps: not convex: around z = 0 the slope is positive, so training from the reference first lowers
  the margin of near-level pairs. The second term is computed as exp(ls(z / tau) - z): as written it
  is infinity times 0 from z = -88 on. EasyDeL's default tau of 1 is another loss.
  """
  _scores.require("tau", tau, lambda t: 0.0 < t < math.inf, "above 0 and finite")
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  z = _scores.margins(reward)
  logistic = -jax.nn.log_sigmoid(z) * jax.nn.sigmoid(-z / tau)
  terms = logistic + jnp.exp(jax.nn.log_sigmoid(z / tau) - z)
  return _pairs.result(terms, reward, policy, reference, batch)


def sigmoid_norm(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 5.0
) -> Result:
  """DPO on log-ratios per token.

  Formula: -ls(beta (rho_w / n_w - rho_l / n_l)), rho = log p - log p_ref
  Source: Tulu 3, https://arxiv.org/abs/2411.15124, Eq. 6; TRL's "sigmoid_norm".
  Defaults: beta 5 is the paper's.
  Traps: rewards/* are per token here, beta times larger than DPO's at one token.
  """
  reward = beta * _scores.mean_log_ratio(policy, reference, batch)
  terms = -jax.nn.log_sigmoid(_scores.margins(reward))
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(needs_reference=False)
def simpo(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 2.0, gamma: float = 1.0
) -> Result:
  """Simple preference optimisation: log-probs per token, a target margin, and no reference.

  Formula: -ls(beta (log p_w / n_w - log p_l / n_l) - gamma)
  Source: SimPO, https://arxiv.org/abs/2405.14734, Eq. 6; TRL's experimental CPO trainer.
  Defaults: beta 2, gamma 1 are the authors' for Llama-3-Base (their gamma_beta_ratio of 0.5).
  Traps: gamma is not divided by beta: SimPO's and HALOs' gamma_beta_ratio is gamma / beta. TRL's
  beta of 0.1 makes its gamma of 0.5 a margin of 5 nats a token.
  """
  del reference
  reward = beta * _scores.mean_log_prob(policy, batch)
  terms = -jax.nn.log_sigmoid(_scores.margins(reward) - gamma)
  return _pairs.free(terms, reward, policy, batch)
