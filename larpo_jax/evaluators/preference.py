"""How well a policy's own scores rank the responses that a judge has labelled."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.types import Array, Batch, LogProbs, Metrics


def ranking(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Metrics:
  """Ranks each prompt's responses by score against their labels, {name: float32 [B]}.

  accuracy, ndcg, mrr and kendall_tau are of the implicit reward beta (log p - log p_ref). It is 0
  everywhere when the policy is its reference, so mean_logp/accuracy and so on give the same for the
  reference-free log-prob per token, in which an untrained checkpoint has a baseline.
  ordered is 1 where the labels order at least one pair. Where they do not, the others are 0 and
  mean nothing: average them with `masked.weighted_mean(x, batch.weight * ordered)`.
  """
  reward = beta * (policy.sequence - reference.sequence)  # [B, K]
  implicit = rank_metrics(reward, batch.label, batch.valid)
  free = rank_metrics(policy.mean, batch.label, batch.valid)
  wins = masked.pairs(batch.label, batch.valid)
  ordered = jnp.any(wins, axis=(-2, -1)).astype(jnp.float32)
  return implicit | {f"mean_logp/{name}": x for name, x in free.items()} | {"ordered": ordered}


def scored(policy: LogProbs, batch: Batch) -> Metrics:
  """`ranking` by a reward model's own scores, which need no reference: score/accuracy and so on."""
  found = rank_metrics(policy.sequence, batch.label, batch.valid)
  wins = masked.pairs(batch.label, batch.valid)
  ordered = jnp.any(wins, axis=(-2, -1)).astype(jnp.float32)
  return {f"score/{name}": x for name, x in found.items()} | {"ordered": ordered}


def rank_metrics(score: Array, label: Array, valid: Array) -> Metrics:
  """Agreement of scores with labels: [..., K] each -> {name: float32 [...]}.

  Equal scores give what a random order of them gives on average, so constant scores are chance:

  * accuracy: share of pairs with different labels that are ordered rightly, equal scores count 1/2;
  * ndcg: gain label - min label, discount 1 / log2(1 + rank), over the whole list; it does not
    change when the labels are shifted or scaled;
  * mrr: 1 / rank of the best-labelled response, the first of them where several share that label;
  * kendall_tau: tau-b, 0 where it is undefined because all scores are equal.

  All are 0 where no two labels differ.
  """
  wins = masked.pairs(label, valid)  # [..., K, K]
  above = masked.pairs(score, valid)
  level = valid[..., :, None] & valid[..., None, :] & ~above & ~jnp.swapaxes(above, -1, -2)
  right = masked.mean(jnp.where(above, 1.0, jnp.where(level, 0.5, 0.0)), wins, (-2, -1))
  ordered = jnp.any(wins, axis=(-2, -1))
  found = {
    "accuracy": right,
    "ndcg": _ndcg(above, level, wins, label, valid),
    "mrr": _mrr(above, level, label, valid),
    "kendall_tau": _tau(above, wins),
  }
  return {name: jnp.where(ordered, x, 0.0).astype(jnp.float32) for name, x in found.items()}


def _ndcg(above: Array, level: Array, wins: Array, label: Array, valid: Array) -> jax.Array:
  lowest = jnp.min(jnp.where(valid, label, jnp.inf), axis=-1, keepdims=True)
  gain = jnp.where(valid, label - lowest, 0.0)  # [..., K]
  alike = valid[..., :, None] & valid[..., None, :] & (label[..., :, None] == label[..., None, :])
  found = jnp.sum(gain * _discount(above, level), axis=-1)
  ideal = jnp.sum(gain * _discount(wins, alike), axis=-1)
  return found / jnp.where(ideal > 0, ideal, 1.0)


def _discount(above: Array, level: Array) -> jax.Array:
  """1 / log2(1 + rank), averaged over the ranks that equal scores share: [..., K]."""
  ranks = jnp.arange(1, above.shape[-1] + 1, dtype=jnp.float32)
  total = jnp.pad(jnp.cumsum(1 / jnp.log2(1 + ranks)), (1, 0))  # [K + 1]
  before = jnp.sum(above, axis=-2)  # [..., K]: how many are above each
  tied = jnp.sum(level, axis=-2)  # itself included; 0 where there is no response
  return (total[before + tied] - total[before]) / jnp.maximum(tied, 1)


def _mrr(above: Array, level: Array, label: Array, valid: Array) -> jax.Array:
  top = jnp.max(jnp.where(valid, label, -jnp.inf), axis=-1, keepdims=True)
  relevant = valid & (label == top)  # [..., K]
  # The relevant responses with the highest score; n tie with it, m of them relevant.
  highest = relevant & ~jnp.any(above & relevant[..., :, None], axis=-2)
  before = jnp.max(jnp.where(highest, jnp.sum(above, axis=-2), 0), axis=-1, keepdims=True)
  n = jnp.max(jnp.where(highest, jnp.sum(level, axis=-2), 0), axis=-1, keepdims=True)
  m = jnp.sum(highest, axis=-1, keepdims=True)
  # In a random order of the n, the chance that the first relevant one stands at place k + 1.
  place = jax.lax.broadcasted_iota(jnp.int32, label.shape, label.ndim - 1)
  left = jnp.maximum(n - place, 1)
  hit = jnp.minimum(m / left, 1.0)
  missed = jnp.cumprod(1 - hit, axis=-1)
  first = hit * jnp.concatenate([jnp.ones_like(missed[..., :1]), missed[..., :-1]], axis=-1)
  return jnp.sum(first / (before + place + 1), axis=-1)


def _tau(above: Array, wins: Array) -> jax.Array:
  count = functools.partial(jnp.sum, axis=(-2, -1), dtype=jnp.float32)
  agree = count(above & wins) - count(above & jnp.swapaxes(wins, -1, -2))
  return agree / jnp.sqrt(jnp.maximum(count(wins) * count(above), 1.0))
