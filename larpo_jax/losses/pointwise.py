"""Losses of one response at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _scores
from larpo_jax.losses._scores import marked
from larpo_jax.types import Batch, LogProbs, Metrics


@marked(compares=False, needs_reference=False)
def sft(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
  """Cross-entropy of the best-labelled response, in nats per token.

  Formula: -log p(best) / n(best)
  Source: supervised fine-tuning, https://arxiv.org/abs/2203.02155, section 3.4.
  Traps: a mean over the tokens of the response, then over prompts, so that every prompt weighs the
  same; TRL's "sft" is `sft_tokens`. The two agree when lengths do. Where several responses share
  the best label, the mean over them.
  """
  del reference
  loss = masked.mean(-policy.mean, _scores.best(batch), -1)
  return loss, _scores.likelihood(policy, batch)


@marked(compares=False, needs_reference=False, couples_prompts=True)
def sft_tokens(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
  """Cross-entropy of the best-labelled responses, one mean over the tokens of the batch.

  Formula: -sum of log p(best) over the batch / sum of n(best) over the batch
  Source: TRL's "sft", and every trainer of language models, https://arxiv.org/abs/2203.02155.
  Traps: long responses weigh more. Exact on several devices and in micro-batches, which peers' is
  not: theirs is a mean of means.
  """
  del reference
  best = _scores.best(batch)
  weight = jnp.where(jnp.any(best, axis=-1), batch.weight, 0.0)
  length = masked.mean(policy.length, best, -1)  # [B]
  # Scaled, so that the batch's mean over prompts is the mean over tokens.
  scale = jnp.sum(batch.weight) / jnp.maximum(masked.sum(weight * length, weight > 0), 1.0)
  loss = -masked.mean(policy.sequence, best, -1) * scale
  return jnp.where(weight > 0, loss, 0.0), _scores.likelihood(policy, batch)
