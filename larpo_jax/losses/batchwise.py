"""Losses of pairs that depend on the whole batch: sorts, running means, soft minima over prompts.

They read the global batch: on several devices, or in micro-batches, they are what they are on one.
Prompts without a pair, and those of weight 0, take no part. In the formulas r = beta (log p -
log p_ref), sums over tokens, z = r_w - r_l, s is the logistic function and ls its logarithm.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _pairs, _running, _scores
from larpo_jax.losses._running import Statistics
from larpo_jax.losses._scores import marked
from larpo_jax.types import Array, Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]


@marked(couples_prompts=True)
def aot(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.0,
) -> Result:
  """Alignment via optimal transport, paired: log-ratios of the policy and of the reference, sorted.

  Formula: -(1 - eps) ls(beta d) - eps ls(-beta d), d_(i) = i-th of log p_w - log p_l over the batch
  minus i-th of log p_ref_w - log p_ref_l
  Source: AOT, https://arxiv.org/abs/2406.05882, Algorithm 2; TRL's "aot".
  Defaults: beta 0.1, eps = label_smoothing 0 are TRL's; its recipe has beta 0.01.
  Traps: the batch size is a hyper-parameter. TRL sorts each device's micro-batch by itself.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  own = _pairs.mean(_scores.margins(_scores.log_prob(policy, batch)), batch)  # [B]
  other = _pairs.mean(_scores.margins(_scores.log_prob(reference, batch)), batch)
  loss = _transport(own, other, beta, label_smoothing, batch)
  return loss, _scores.metrics(reward, policy, reference, batch)


@marked(couples_prompts=True)
def aot_unpaired(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.0,
) -> Result:
  """Alignment via optimal transport, unpaired: rewards of the chosen against the rejected, sorted.

  Formula: -(1 - eps) ls(beta d) - eps ls(-beta d), d_(i) = i-th log-ratio of the batch's chosen
  responses minus i-th of its rejected ones
  Source: AOT, https://arxiv.org/abs/2406.05882, Algorithm 1; TRL's "aot_unpaired".
  Defaults: beta 0.1, eps = label_smoothing 0 are TRL's; its recipe has beta 0.01.
  Traps: the batch size is a hyper-parameter. TRL sorts each device's micro-batch by itself.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  chosen, rejected = _pairs.sides(_scores.log_ratio(policy, reference, batch))
  own, other = (
    _pairs.mean(side + jnp.zeros_like(reward)[..., None], batch) for side in (chosen, rejected)
  )
  loss = _transport(own, other, beta, label_smoothing, batch)
  return loss, _scores.metrics(reward, policy, reference, batch)


def _transport(
  own: jax.Array, other: jax.Array, beta: float, smoothing: float, batch: Batch
) -> jax.Array:
  """The loss of the i-th smallest own against the i-th smallest other, at the prompt of the own."""
  _scores.require("label_smoothing", smoothing, lambda e: 0.0 <= e <= 0.5, "from 0 to 0.5")
  there = _pairs.taking_part(batch)
  order, rank = (jnp.argsort(jnp.where(there, x, jnp.inf)) for x in (own, other))
  ahead = jnp.where(jnp.sort(~there), 0.0, own[order] - other[rank])
  terms = -jax.nn.log_sigmoid(beta * ahead) + smoothing * beta * ahead
  return jnp.where(there, jnp.zeros_like(own).at[order].set(terms), 0.0)


@marked(couples_prompts=True)
def dr_dpo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  temperature: float = 1.0,
) -> Result:
  """Distributionally robust DPO: pairs with a large loss, which may be mislabelled, count less.

  Formula: -b log mean over the batch of exp(ls(z) / b), b = temperature
  Source: Dr.DPO, https://arxiv.org/abs/2407.07880, Eq. 12, and the authors' trainers.py.
  Defaults: beta 0.1 and b (mode_weight) 1 are the authors'.
  Traps: the authors' code takes the mean over each device's part; here it is the batch's. Every
  prompt of the batch reports the same loss.
  """
  bounds = "above 0 and finite"
  _scores.require("temperature", temperature, lambda b: 0.0 < b < math.inf, bounds)
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  loss = _pairs.mean(-jax.nn.log_sigmoid(_scores.margins(reward)), batch)  # [B]
  soft = _scores.soft_least(loss, _pairs.taking_part(batch), batch, temperature)
  return soft, _scores.metrics(reward, policy, reference, batch)


@marked(couples_prompts=True, statistics=_running.nothing_yet)
def bco_pair_shift(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  statistics: Statistics | None = None,
  *,
  beta: float = 0.1,
) -> tuple[jax.Array, Metrics, Statistics]:
  """Binary classifier optimisation on pairs, each reward against the mean of all so far.

  Formula: -ls(r_w - delta) - ls(-(r_l - delta)), delta = mean of all rewards seen, this batch's too
  Source: BCO, https://arxiv.org/abs/2404.04656, Eq. 8, and the trainer that TRL had until 1.15;
  TRL 1.16's "bco_pair" has no delta and is `pairwise.bco_pair`.
  Defaults: beta 0.1 is TRL's.
  Traps: delta is carried in the state of training, and moves only as the steps do.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  chosen, rejected = _pairs.sides(reward)
  middle = _pairs.mean(0.5 * (chosen + rejected), batch)  # [B]
  there = jnp.where(_pairs.taking_part(batch), batch.weight, 0.0)
  new = _running.mean(_running.nothing_yet() if statistics is None else statistics, middle, there)
  terms = -jax.nn.log_sigmoid(chosen - new["mean"]) - jax.nn.log_sigmoid(new["mean"] - rejected)
  metrics = _scores.metrics(reward, policy, reference, batch)
  metrics |= {"bco/delta": jnp.broadcast_to(new["mean"], batch.weight.shape)}
  return _pairs.mean(terms, batch), metrics, new


def _no_gaps_yet() -> Statistics:
  """Before the first step: steps, and the decaying means of the gap's mean and deviation."""
  zero = jnp.zeros((), jnp.float32)
  return {"step": jnp.zeros((), jnp.int32), "mean": zero, "std": zero + 0.0}


@marked(couples_prompts=True, statistics=_no_gaps_yet)
def beta_dpo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  statistics: Statistics | None = None,
  *,
  beta: float = 0.1,
  alpha: float = 0.6,
  drop: float = 0.2,
  momentum: float = 0.9,
  smallest: float = 1e-3,
  init: str = "corrected",
  dropped: str = "unusual",
  scope: str = "batch",
  unit: str = "nats",
) -> tuple[jax.Array, Metrics, Statistics]:
  """beta-DPO: one beta for the batch, larger where its gaps are, and unusual pairs left out.

  Formula: -ls(b A), A = rho_w - rho_l, b = max(smallest, beta (1 + alpha (mean kept A - M))), over
  (1 - drop) of the batch drawn with log-weights -(A - M)^2 / (2 S^2); M, S: running mean, deviation
  Source: beta-DPO, https://arxiv.org/abs/2407.08639, and the authors' trainers.py: A is not scaled
  by beta, M and S are moved before they are used.
  Defaults: beta 0.1, alpha (a) 0.6, drop (mode_weight) 0.2, momentum 0.9 and smallest 0.001 are the
  authors' for HH.
  Traps: the authors start M and S at 0 (init="zero"), which is 0 / 0 at the first step; here both
  are corrected for that bias, or begin with the first batch (init="first"). The draw is Gumbel's
  top-k, keyed by step and row; the batch size matters. The paper's ablations: dropped="widest" or
  "narrowest" gaps in place of a draw, and scope="pair", a beta by each pair's own gap.
  unit="rewards" has gaps times beta in b, as re-implementations do, where alpha means less.
  """
  before = _no_gaps_yet() if statistics is None else statistics
  ratio = _scores.log_ratio(policy, reference, batch)
  ahead = _pairs.mean(_scores.margins(ratio), batch)  # [B]
  weight = jnp.where(_pairs.taking_part(batch), batch.weight, 0.0)
  gap = jax.lax.stop_gradient(ahead)
  new, centre, spread = _moved(before, gap, weight, momentum, init)
  usual = _noise(before["step"], batch.row) - 0.5 * jnp.square((gap - centre) / spread)
  orders = {"unusual": usual, "widest": -gap, "narrowest": gap}
  kept = weight * _first(_scores.choice("dropped", dropped, orders), weight > 0, drop)
  told = {"pair": gap, "batch": masked.weighted_mean(gap, kept)}
  size = _scores.choice("unit", unit, {"nats": 1.0, "rewards": beta})
  ahead_of = (_scores.choice("scope", scope, told) - centre) * size
  used = jnp.maximum(beta * (1.0 + alpha * ahead_of), smallest)
  # Scaled, so that the batch's mean is the mean over the pairs that are kept.
  scale = jnp.sum(weight) / jnp.maximum(jnp.sum(kept), 1e-30)
  loss = -jax.nn.log_sigmoid(used * ahead) * jnp.where(kept > 0, scale, 0.0)
  metrics = _scores.metrics(beta * ratio, policy, reference, batch)
  metrics |= {"beta_dpo/beta": jnp.broadcast_to(used, weight.shape)}
  return loss, metrics, new


def _moved(
  before: Statistics, gap: jax.Array, weight: jax.Array, momentum: float, init: str
) -> tuple[Statistics, jax.Array, jax.Array]:
  """The new statistics, and the mean and the deviation that are used."""
  mean = masked.weighted_mean(gap, weight)
  count = jnp.sum(jnp.where(weight > 0, 1.0, 0.0))
  variance = masked.weighted_mean(jnp.square(gap - mean), weight)
  std = jnp.sqrt(variance * count / jnp.maximum(count - 1.0, 1.0))  # unbiased, as the authors'
  step = before["step"] + jnp.where(count > 0, 1, 0)
  _scores.choice("init", init, dict.fromkeys(("corrected", "zero", "first")))
  begins = (before["step"] == 0) & (init == "first")
  rate = jnp.where(count > 0, jnp.where(begins, 1.0, 1.0 - momentum), 0.0)
  new = {
    "step": step,
    "mean": before["mean"] + rate * (mean - before["mean"]),
    "std": before["std"] + rate * (std - before["std"]),
  }
  corrected = jnp.maximum(1.0 - momentum ** step.astype(jnp.float32), 1e-6)
  seen = corrected if init == "corrected" else jnp.float32(1.0)
  return new, new["mean"] / seen, jnp.maximum(new["std"] / seen, 1e-6)


def _noise(step: jax.Array, row: Array) -> jax.Array:
  """Gumbel noise [B] that depends on the step and the row."""
  key = jax.random.fold_in(jax.random.key(0), step)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(row).astype(jnp.uint32))
  return jax.vmap(jax.random.gumbel)(keys)


def _first(order: jax.Array, there: Array, drop: float) -> jax.Array:
  """0 or 1 [B]: the (1 - drop) of those there that are highest in the order, at least one."""
  place = jnp.argsort(jnp.argsort(-jnp.where(there, order, -jnp.inf)))
  count = jnp.floor(jnp.sum(jnp.where(there, 1.0, 0.0)) * (1.0 - drop))
  return jnp.where(there & (place < jnp.maximum(count, 1.0)), 1.0, 0.0)
