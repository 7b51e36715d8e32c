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


class Evaluation(NamedTuple):
  """What an evaluation found: numbers, and the lines that they are means of, one a test prompt."""

  numbers: dict[str, float]
  lines: list[dict[str, Any]]


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
) -> Evaluation:
  """Greedy and sampled answers as each judge sees them, their length, and the KL to the start.

  sample(params, ids, mask, key, temperature=, candidates=) draws, score(params, batch) gives
  log-probs, decode the texts of ids and mask [B, K, R]. A judge's name is its verdict on the greedy
  answer; sampled/NAME that on a sample at temperature 1, whose mean is what the rounds raise.
  length is in tokens, of greedy answers. kl is a Monte-Carlo estimate in nats a response:
  d = log policy - log start of one sample a prompt; kl_stderr the standard error of its mean.
  kl_k3, exp(-d) - 1 + d, is another of the same KL that is never negative and, near the start,
  spreads less (Schulman, http://joschu.net/blog/kl-approx.html); far from it a rare sample with
  d << 0 weighs exp(-d), and what the policy never samples is missing: then trust kl. finished
  is whether a greedy answer ends before the limit. A line holds these of a prompt, and its answers
  as "responses", the sampled one with its log-probs.
  """
  greedy = sample(params, prompts.ids, prompts.mask, key, temperature=0.0, candidates=1)
  drawn = sample(params, prompts.ids, prompts.mask, key, temperature=1.0, candidates=1)
  before = score(start, as_batch(prompts.ids, prompts.mask, drawn)).sequence
  logprob = np.sum(np.asarray(drawn.logprob), axis=-1)  # [B, 1]
  columns: dict[str, Any] = {}
  answers = {}
  for kind, prefix, samples in (("greedy", "", greedy), ("sampled", "sampled/", drawn)):
    texts = decode(np.asarray(samples.response), np.asarray(samples.mask))
    verdicts = {name: judge(prompts.texts, texts) for name, judge in judges.items()}
    columns |= {prefix + name: verdict for name, verdict in verdicts.items()}
    answers[kind] = {"text": [text for (text,) in texts], **verdicts}
  answers["sampled"] |= {"logprob": logprob, "start_logprob": before}
  columns["length"] = np.sum(np.asarray(greedy.mask), axis=-1)
  columns["finished"] = greedy.finished
  gap = np.asarray(logprob, np.float64) - np.asarray(before, np.float64)
  columns["kl"], columns["kl_k3"] = gap, np.expm1(-gap) + gap
  lines = _lines(prompts.texts, columns, answers)
  numbers = {name: float(np.mean([line[name] for line in lines])) for name in columns}
  numbers["kl_stderr"] = float(np.std(columns["kl"]) / np.sqrt(len(lines)))
  return Evaluation(numbers, lines)


def _lines(
  prompts: Sequence[str],
  columns: Mapping[str, Any],
  answers: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """A line a prompt of columns [B, 1], and of answers of each kind with theirs."""
  plain = lambda column, b: float(np.ravel(column)[b])  # noqa: E731
  lines = []
  for b, prompt in enumerate(prompts):
    numbers = {name: plain(column, b) for name, column in columns.items()}
    responses = [
      {"kind": kind, "text": answer["text"][b]}
      | {name: plain(column, b) for name, column in answer.items() if name != "text"}
      for kind, answer in answers.items()
    ]
    lines.append({"set": "written", "row": b, "prompt": prompt, **numbers, "responses": responses})
  return lines


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


def ranked(
  metrics: Mapping[str, Array], rows: Array, weight: Array, among: str = "ranked"
) -> list[dict[str, Any]]:
  """A line a list that counts: its metrics [B], its row number, its weight and its set."""
  there = np.flatnonzero(np.asarray(weight) > 0)
  return [
    {"set": among, "row": int(rows[b]), "weight": float(weight[b])}
    | {name: float(value[b]) for name, value in metrics.items()}
    for b in there
  ]


def weighted_means(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The mean over lines of each of their metrics, by weight, divided once; {} without a line."""
  if not lines:
    return {}
  weight = np.asarray([line["weight"] for line in lines])
  names = [name for name in lines[0] if name not in ("set", "row", "weight")]
  return {
    name: float(np.sum(weight * [line[name] for line in lines]) / np.sum(weight)) for name in names
  }
