"""What kernels on pairs share. A pair is the best response of a list against the worst.

Arrays of pairs are [B, K, K]: at (i, j) response i is the chosen one and j the rejected. Where
several responses share the best or the worst label, the loss is the mean over them; a list whose
labels are all equal has none, and loss 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _scores
from larpo_jax.types import Array, Batch, LogProbs, Metrics


def ends(batch: Batch) -> Array:
  """Which pairs count: bool [B, K, K], True at (a best, a worst) of a list that has both."""
  chosen, rejected = _scores.best(batch), _scores.worst(batch)
  return _scores.beaten(batch) & chosen[..., :, None] & rejected[..., None, :]


def taking_part(batch: Batch) -> Array:
  """Prompts that have a pair and a weight, bool [B]."""
  return _scores.ordered(batch) & (batch.weight > 0)


def sides(x: Array) -> tuple[Array, Array]:
  """A quantity of responses [B, K] as that of the chosen [B, K, 1] and the rejected [B, 1, K]."""
  return x[..., :, None], x[..., None, :]


def mean(terms: Array, batch: Batch) -> jax.Array:
  """The mean over the pairs of each prompt, [B]; 0 where there are none."""
  return masked.mean(terms, ends(batch), (-2, -1))


def gap(x: Array, batch: Batch) -> jax.Array:
  """x_chosen - x_rejected [B, K, K], and 1 where there is no pair."""
  return jnp.where(ends(batch), _scores.margins(jnp.asarray(x)), 1.0)


def result(
  terms: Array, reward: jax.Array, policy: LogProbs, reference: LogProbs, batch: Batch
) -> tuple[jax.Array, Metrics]:
  """The loss of terms [B, K, K] and the metrics of a reward [B, K] with a reference."""
  return mean(terms, batch), _scores.metrics(reward, policy, reference, batch)


def free(
  terms: Array, reward: jax.Array, policy: LogProbs, batch: Batch
) -> tuple[jax.Array, Metrics]:
  """The loss of terms [B, K, K] and the metrics of a reward [B, K] without a reference."""
  return mean(terms, batch), _scores.rewarded(reward, policy, batch)
