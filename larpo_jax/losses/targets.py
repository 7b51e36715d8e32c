"""Losses of a list against what its labels ask of every response: a distribution, or a good set.

Labels are scores here, and their scale counts. A list whose labels are all equal has loss 0, as
everywhere, though a flat target could be learnt. gamma = beta (log p - log p_ref), sums over
tokens; lse is the log of a sum of exponentials, ls the logarithm of the logistic function.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _scores
from larpo_jax.types import Array, Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]


def listnet(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.05) -> Result:
  """Softmax cross-entropy with the labels, divided by their sum, as the target.

  Formula: -sum over i of (label_i / sum of labels) log softmax(gamma)_i
  Source: ListNet's loss as in LiPO, https://arxiv.org/abs/2402.01878, Eq. 11.
  Defaults: beta 0.05 is LiPO's.
  Traps: labels below 0 count as 0, and a list without one above 0 has loss 0. With softmax(labels)
  as the target it is `infonca`: papers and code bases mean either by this name.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  good = jax.nn.relu(jnp.asarray(_scores.label(batch)))
  total = jnp.sum(good, axis=-1, keepdims=True)
  target = good / jnp.where(total > 0, total, 1.0)
  terms = -target * _scores.log_softmax(gamma, batch)
  return _result(jnp.sum(terms, axis=-1), gamma, policy, reference, batch)


def infonca(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  temperature: float = 1.0,
) -> Result:
  """InfoNCA: softmax cross-entropy with the softmax of the labels as the target.

  Formula: -sum over i of softmax(label / temperature)_i log softmax(gamma)_i
  Source: InfoNCA, https://arxiv.org/abs/2402.05369, Eq. 6, and the authors' reward_trainer.py; up
  to a constant also NVIDIA's RPO over several responses.
  Defaults: beta 0.1 is the code's; temperature 1 is ours, the code's 0.001 makes the target the
  best response.
  Traps: the code adds 0.01 to the best response's label; here nothing is added.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  terms = -_target(batch, temperature) * _scores.log_softmax(gamma, batch)
  return _result(jnp.sum(terms, axis=-1), gamma, policy, reference, batch)


def nca(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  temperature: float = 1.0,
) -> Result:
  """Noise contrastive alignment over a list: each reward is classified by itself.

  Formula: -sum over i of (softmax(label / temperature)_i ls(gamma_i) + (1 / K) ls(-gamma_i))
  Source: NCA, https://arxiv.org/abs/2402.05369, Eq. 9, and the authors' reward_trainer.py.
  Defaults: beta 0.1 is the code's; temperature 1 is ours, as in `infonca`.
  Traps: not a function of margins: adding a constant to all rewards changes it.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  terms = -_target(batch, temperature) * jax.nn.log_sigmoid(gamma)
  noise = masked.mean(-jax.nn.log_sigmoid(-gamma), batch.valid, -1)
  return _result(jnp.sum(terms, axis=-1) + noise, gamma, policy, reference, batch)


def swepo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  alpha: float = 1.0,
) -> Result:
  """SWEPO: all responses above the mean score against all others, weighted by their distance to it.

  Formula: lse over all of (gamma + alpha |d|) - lse over those with d > 0, d = label - mean label
  Source: SWEPO, https://arxiv.org/abs/2412.04628; read in reviews of it (positives, weights), and
  for the rest from memory: no code or text of the paper was at hand.
  Defaults: beta 0.1 and alpha 1 are ours.
  Traps: alpha multiplies scores: their scale counts.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  loss = _above_mean(gamma, alpha, batch)
  return _result(loss, gamma, policy, reference, batch)


def multi_positive(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1
) -> Result:
  """InfoNCE with several positives: all responses above the mean score against all others.

  Formula: lse over all of gamma - lse over those above the mean label
  Source: the unweighted form of SWEPO, https://arxiv.org/abs/2412.04628; rows of this form stand in
  the code of LarPO's authors for GSM8K.
  Defaults: beta 0.1 is ours.
  Traps: one positive that is likely is enough: nothing asks for the others.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  return _result(_above_mean(gamma, 0.0, batch), gamma, policy, reference, batch)


def _above_mean(gamma: jax.Array, alpha: float, batch: Batch) -> jax.Array:
  """-log of the share that responses above the mean label have of all, [B]."""
  label = jnp.asarray(_scores.label(batch))
  distance = label - masked.mean(label, batch.valid, -1)[:, None]
  value = gamma + alpha * jnp.abs(distance)
  positive = batch.valid & (distance > 0)
  there = _scores.ordered(batch)
  good, rest = (_lse(value, who, there) for who in (positive, batch.valid & ~positive))
  return jnp.where(there, -jax.nn.log_sigmoid(good - rest), 0.0)


def _lse(value: jax.Array, who: Array, there: Array) -> jax.Array:
  """log-sum-exp over some of a list, [B]; where there is nothing to compare, of zeros."""
  left_out = jnp.where(there, -jnp.inf, 0.0)[:, None]
  some = jnp.any(who, axis=-1, keepdims=True)
  return jax.nn.logsumexp(jnp.where(who, value, jnp.where(some, left_out, 0.0)), axis=-1)


def _target(batch: Batch, temperature: float) -> jax.Array:
  """softmax(label / temperature) over the responses of a list, [B, K]; 0 where there is none."""
  bounds = "above 0 and finite"
  _scores.require("temperature", temperature, lambda t: 0.0 < t < math.inf, bounds)
  label = jnp.asarray(_scores.label(batch)) / temperature
  return jnp.where(batch.valid, jnp.exp(_scores.log_softmax(label, batch)), 0.0)


def _result(
  loss: jax.Array, gamma: jax.Array, policy: LogProbs, reference: LogProbs, batch: Batch
) -> Result:
  """The loss where the list has an order, and the metrics."""
  ordered = jnp.where(_scores.ordered(batch), loss, 0.0)
  return ordered, _scores.metrics(gamma, policy, reference, batch)
