"""DPO with another margin, scale or weight: what was proposed against its known failures.

In the formulas rho = log p - log p_ref, sums over tokens, r = beta rho, w is the chosen and l the
rejected response, z = r_w - r_l, n counts tokens, s is the logistic function, ls its logarithm.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax.losses import _pairs, _scores
from larpo_jax.losses._scores import marked
from larpo_jax.types import Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]
LARGEST = 20.0  # log-ratios are cut there before they are exponents


def dpop(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.3, penalty: float = 50.0
) -> Result:
  """DPO-positive (Smaug): a penalty once the chosen response is less likely than in the reference.

  Formula: -ls(beta (rho_w - rho_l - penalty max(0, -rho_w)))
  Source: DPOP, https://arxiv.org/abs/2402.13228, Eq. 3, as the trainer of SamPO's authors has it
  (the authors published no training code).
  Defaults: beta 0.3, penalty (lambda) 50 are remembered as the paper's, not verified.
  Traps: ports that put the penalty outside of the logarithm compute something else.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  ratio = _scores.log_ratio(policy, reference, batch)
  chosen, _ = _pairs.sides(ratio)
  terms = -jax.nn.log_sigmoid(beta * (_scores.margins(ratio) - penalty * jax.nn.relu(-chosen)))
  return _pairs.result(terms, reward, policy, reference, batch)


def r_dpo(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, alpha: float = 0.01
) -> Result:
  """DPO regularised by length: a longer chosen response counts as already ahead.

  Formula: -ls(z + alpha (n_w - n_l))
  Source: Park et al., https://arxiv.org/abs/2403.19159, Eq. 9, as the trainer of SamPO's authors
  has it.
  Defaults: beta 0.1 is DPO's; alpha 0.01 is ours, within the 0.005 to 0.05 that SimPO searched.
  Traps: alpha stands outside of beta, in nats a token.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  longer = _scores.margins(_scores.length(policy, batch))
  terms = -jax.nn.log_sigmoid(_scores.margins(reward) + alpha * longer)
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(reads=("score",))
def odpo(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, alpha: float = 1.0
) -> Result:
  """DPO with an offset: the margin has to be the larger, the further apart the scores are.

  Formula: -ls(z - alpha log(score_w - score_l))
  Source: ODPO, https://arxiv.org/abs/2402.10571, Eq. 8, and the authors' trainers.py.
  Defaults: beta 0.1 is DPO's; alpha 1 is the code's.
  Traps: score gaps below 1 make the offset negative. A second judge may rate the chosen lower: such
  a gap is taken as 0.001.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  gap = jnp.maximum(_pairs.gap(_scores.score(batch), batch), 1e-3)
  terms = -jax.nn.log_sigmoid(_scores.margins(reward) - alpha * jnp.log(gap))
  return _pairs.result(terms, reward, policy, reference, batch)


def cal_dpo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.001,
  calibration: float = 0.5,
) -> Result:
  """Calibrated DPO: the logistic loss, and both log-ratios drawn to targets.

  Formula: -ls(rho_w - rho_l) + calibration ((rho_w - 1 / (2 beta))^2 + (rho_l + 1 / (2 beta))^2)
  Source: Cal-DPO, https://arxiv.org/abs/2412.14516, and the authors' trainer; beta is not in ls.
  Defaults: beta 0.001 and calibration 0.5 are those of the authors' code.
  Traps: at beta 0.001 the targets are 500 nats away and the squares are all that counts.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  ratio = _scores.log_ratio(policy, reference, batch)
  chosen, rejected = _pairs.sides(ratio)
  squares = jnp.square(chosen - 0.5 / beta) + jnp.square(rejected + 0.5 / beta)
  terms = -jax.nn.log_sigmoid(_scores.margins(ratio)) + calibration * squares
  return _pairs.result(terms, reward, policy, reference, batch)


def chi_po(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.05, limit: float = 0.0
) -> Result:
  """Chi-squared preference optimisation: the link of a chi-squared and a KL divergence together.

  Formula: -ls(clip(beta phi(rho_w) - beta phi(rho_l), -2 limit, 2 limit)), phi(x) = exp(x) + x
  Source: chi-PO, https://arxiv.org/abs/2407.13399, Algorithm 1.
  Defaults: beta 0.05 is one of the paper's; limit (the largest reward) 0 means no clip, as the
  paper names no value.
  Traps: exponents are cut at 20. The ratio is that of whole responses: exp(rho) is 0, and this is
  DPO, as soon as a response is a few nats less likely than in the reference.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  ratio = _scores.log_ratio(policy, reference, batch)
  # Apart: where both exponents are cut they cancel, and would swallow the rest if it were added.
  link = _scores.margins(jnp.exp(jnp.minimum(ratio, LARGEST)))
  z = beta * (link + _scores.margins(ratio))
  bound = jnp.where(limit > 0, 2.0 * limit, jnp.inf)
  return _pairs.result(
    -jax.nn.log_sigmoid(jnp.clip(z, -bound, bound)), reward, policy, reference, batch
  )


def focalpo(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, gamma: float = 0.05
) -> Result:
  """FocalPO: DPO that gives less weight to pairs that the policy ranks wrongly.

  Formula: -s(z)^gamma ls(z)
  Source: FocalPO, https://arxiv.org/abs/2501.06645, as two independent readings of it have it; the
  authors published no code. The gradient goes through the weight, as in the formula.
  Defaults: beta 0.1 is DPO's; gamma 0.05 is remembered, not verified.
  Traps: near z = -1 / gamma the gradient changes its sign: below, margins shrink further.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  right = jax.nn.log_sigmoid(_scores.margins(reward))
  return _pairs.result(-jnp.exp(gamma * right) * right, reward, policy, reference, batch)


def dpo_shift(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, shift: float = 0.75
) -> Result:
  """DPO-Shift: the rejected response counts less, so that the chosen one need not fall with it.

  Formula: -ls(r_w - shift r_l)
  Source: DPO-Shift, https://arxiv.org/abs/2502.07599, Eq. 5, and the authors' trainer.
  Defaults: beta 0.1 is DPO's; shift (lambda) 0.75 is one of those that the authors ran (0.5 to 1).
  Traps: the authors also move lambda during training; sweep it instead.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  chosen, rejected = _pairs.sides(reward)
  terms = -jax.nn.log_sigmoid(chosen - shift * rejected)
  return _pairs.result(terms, reward, policy, reference, batch)


def minor_dpo(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """MinorDPO: a rejected response that is already less likely than in the reference is let be.

  Formula: -ls(beta (rho_w - max(0, rho_l)))
  Source: MinorDPO, https://arxiv.org/abs/2408.09834, Eq. 12, as an independent implementation has
  it.
  Defaults: beta 0.1 is that implementation's.
  Traps: at the reference rho_l is 0, where the hinge's slope counts as one half.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  chosen, rejected = _pairs.sides(reward)
  terms = -jax.nn.log_sigmoid(chosen - jnp.maximum(rejected, 0.0))
  return _pairs.result(terms, reward, policy, reference, batch)


def npo(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """Negative preference optimisation: unlearns the rejected response, whatever the chosen one is.

  Formula: -(2 / beta) ls(-r_l)
  Source: NPO, https://arxiv.org/abs/2404.05868, Eq. 3, and the authors' TOFU code.
  Defaults: beta 0.1 is the authors'.
  Traps: nothing keeps the rest of the model as it was: add `pointwise.sft` on what to retain.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  _, rejected = _pairs.sides(reward)
  terms = -(2.0 / beta) * jax.nn.log_sigmoid(-rejected)
  return _pairs.result(terms, reward, policy, reference, batch)


def spin(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """Self-play fine-tuning: the demonstration against what the last iteration's policy wrote.

  Formula: -ls(z)
  Source: SPIN, https://arxiv.org/abs/2401.01335, Eq. 4.7 with the logistic loss, and the authors'
  trainer. It is DPO; what is its own is the data (chosen: the demonstration, rejected: a sample of
  the reference) and that the reference is renewed at each iteration.
  Defaults: beta 0.1 is the authors'.
  Traps: once the policy writes what the demonstrations say, there is nothing left to learn.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  terms = -jax.nn.log_sigmoid(_scores.margins(reward))
  return _pairs.result(terms, reward, policy, reference, batch)
