"""Losses of one response at a time."""

from __future__ import annotations

import jax

from larpo_jax import masked
from larpo_jax.losses import _scores
from larpo_jax.types import Batch, LogProbs, Metrics


def sft(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
  """Cross-entropy of the best-labelled response, in nats per token: -log p(y) / length(y).

  Supervised fine-tuning, https://arxiv.org/abs/2203.02155, section 3.4. A mean over the tokens of
  the response, then over prompts, so that every prompt weighs the same; TRL's "sft" is one mean
  over the tokens of the batch, where long responses weigh more. The two agree when lengths do.
  Where several responses share the best label, the mean over them. The reference is not read.
  """
  del reference
  loss = masked.mean(-policy.mean, _scores.best(batch), -1)
  return loss, _scores.likelihood(policy, batch)


sft.needs_reference = False  # type: ignore[attr-defined]
