"""What a policy writes: its reward, accuracy and length, and how far it has gone from its start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from larpo_jax import sampling
from larpo_jax.types import Array, Batch, LogProbs, Reward


class Prompts(NamedTuple):
  """Prompts as text, and as ids padded to one width."""

  texts: list[str]
  ids: np.ndarray  # int32 [B, 1, P]
  mask: np.ndarray  # bool [B, 1, P]


def generation(
  sample: Callable[..., sampling.Samples],
  score: Callable[[Any, Batch], LogProbs],
  params: Any,
  start: Any,
  prompts: Prompts,
  *,
  decode: Callable[[np.ndarray, np.ndarray], list[list[str]]],
  judges: Mapping[str, Reward],
  key: jax.Array,
) -> dict[str, float]:
  """Greedy and sampled answers as each judge sees them, their length, and the KL to the start.

  sample(params, ids, mask, key, temperature=, candidates=) draws, score(params, batch) gives
  log-probs, decode the texts of ids and mask [B, K, R]. A judge's name is its mean over greedy
  answers, one a prompt; sampled/NAME that over samples at temperature 1, whose mean is what the
  rounds raise. length is in tokens, of greedy answers. kl is a Monte-Carlo estimate in nats a
  response: the mean of log policy - log start over one sample a prompt; kl_stderr its standard
  error. finished is the share of greedy answers that end before the limit.
  """
  greedy = sample(params, prompts.ids, prompts.mask, key, temperature=0.0, candidates=1)
  drawn = sample(params, prompts.ids, prompts.mask, key, temperature=1.0, candidates=1)
  result: dict[str, float] = {}
  for prefix, samples in (("", greedy), ("sampled/", drawn)):
    answers = decode(np.asarray(samples.response), np.asarray(samples.mask))
    for name, judge in judges.items():
      result[prefix + name] = float(np.mean(judge(prompts.texts, answers)))
  result["length"] = float(np.mean(np.sum(np.asarray(greedy.mask), axis=-1)))
  result["finished"] = float(np.mean(np.asarray(greedy.finished)))
  before = score(start, as_batch(prompts.ids, prompts.mask, drawn)).sequence
  ratio = np.sum(np.asarray(drawn.logprob), axis=-1) - np.asarray(before)  # [B, 1]
  result["kl"] = float(np.mean(ratio))
  result["kl_stderr"] = float(np.std(ratio) / np.sqrt(ratio.size))
  return result


def as_batch(ids: Array, mask: Array, samples: sampling.Samples) -> Batch:
  """Samples as a batch without labels, ready to be scored."""
  b, k, _ = samples.response.shape
  return Batch(
    prompt=ids,
    prompt_mask=mask,
    response=np.asarray(samples.response),
    response_mask=np.asarray(samples.mask),
    label=np.zeros((b, k), np.float32),
    valid=np.ones((b, k), bool),
    weight=np.ones((b,), np.float32),
    row=np.arange(b, dtype=np.int32),
  )


def mean_by_weight(
  rows: Sequence[Mapping[str, Array]], weights: Sequence[Array]
) -> dict[str, float]:
  """The mean of each metric over all batches: sums of [B] by weight [B], divided once."""
  total = max(float(sum(np.sum(w) for w in weights)), 1e-9)
  names = rows[0] if rows else {}
  return {
    name: float(sum(np.sum(np.asarray(r[name]) * w) for r, w in zip(rows, weights)) / total)
    for name in names
  }
