"""The cases on which a kernel is measured: a prompt each, of one shape, so that all run together.

Log-probs are multiples of 1/8, which float32 adds up exactly, so that what should not change does
not.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import itertools

import jax
import numpy as np

from larpo_jax.types import Array, Batch, LogProbs

K, R = 4, 8  # a list of four, and twice the four tokens that a response has
DRAWS = 6
LABELS = (2.0, 1.0, -1.0, -2.0)  # best to worst; verdicts too, for kernels that read them so
PLACES = {"best": 0, "middle": 1, "worst": K - 1}
KINDS = {"grades": 0.0, "verdicts": -1.0}  # the label of a pair's rejected response
FAR = 10_000.0  # nats: the largest margin
Case = tuple[LogProbs, LogProbs, Batch]


def everything(rng: np.random.Generator) -> Iterator[tuple[str, Case]]:
  """Each case by its name: "base0", and what is changed in it, "best0", "up0"; "far_grades_1_4"."""
  for draw in range(DRAWS):
    yield from ((f"{name}{draw}", case) for name, case in _lists(rng))
    yield from ((f"{name}{draw}", case) for name, case in _pairs(rng))
  for kind, sign, share in itertools.product(KINDS, (1, -1), (1, 2, 4)):
    far = pair(np.full((2, R), -1.25), KINDS[kind])
    token = apart(far[0].token, sign * share * FAR / 4)
    yield f"far_{kind}_{sign}_{share}", _padded(_moved(far, token))


def _lists(rng: np.random.Generator) -> Iterator[tuple[str, Case]]:
  """A list, and with other log-probs, with one response less, with longer ones."""
  base = _list(rng)
  token, mask = base[0].token, base[0].mask
  yield "base", base
  for place, k in PLACES.items():
    yield place, _moved(base, np.where(np.arange(K)[:, None] == k, 2.0, 1.0) * token)
    yield f"sum_{place}", _longer(base, k, 0.5)
    yield f"mean_{place}", _longer(base, k, 1.0)
  yield "without", _without(base, PLACES["middle"])
  for name, nats in (("up", 1.0), ("down", -1.0)):  # a token, 4 a response
    yield name, _moved(base, token + nats * mask)


def _pairs(rng: np.random.Generator) -> Iterator[tuple[str, Case]]:
  """A pair for each kind of labels, and with a less likely rejected response."""
  for kind, label in KINDS.items():
    one = pair(np.repeat(-1.0 - rng.integers(0, 16, (2, 1)) / 8, R, axis=1), label)
    yield f"pair_{kind}", _padded(one)
    yield f"rejected_{kind}", _padded(_moved(one, np.asarray([[1.0], [2.0]]) * one[0].token))


def _moved(case: Case, token: Array) -> Case:
  """With other log-probs of the policy."""
  token = np.asarray(token, np.float32)
  return dataclasses.replace(case[0], token=token), *case[1:]


def _list(rng: np.random.Generator) -> Case:
  """A list of four whose responses have four tokens each, none in common."""
  mask = np.broadcast_to(np.arange(R) < R // 2, (K, R)).astype(np.float32)
  policy, reference = (-(12 + rng.integers(0, 24, (K, R))) / 8 * mask for _ in range(2))
  logprobs = [_logprobs(token, mask, kl=0.25) for token in (policy, reference)]
  return logprobs[0], logprobs[1], _batch(mask, LABELS)


def pair(token: np.ndarray, worse: float) -> Case:
  """The chosen with label 1 and the rejected with label worse, the policy at the reference."""
  mask = np.ones_like(token, np.float32)
  logprobs = _logprobs(token, mask, kl=0.0)
  return logprobs, logprobs, _batch(mask, (1.0, worse))


def _logprobs(token: np.ndarray, mask: np.ndarray, kl: float) -> LogProbs:
  return LogProbs(
    token=np.asarray(token, np.float32),
    mask=mask,
    kl=np.float32(kl) * mask,
    collision=-mask,  # log sum of p^2: less likely tokens have a weight below 1
  )


def _batch(mask: np.ndarray, labels: tuple[float, ...]) -> Batch:
  """One prompt; every token of its responses is in an edited span."""
  count, width = mask.shape
  ids = 3 + np.arange(count * width, dtype=np.int32).reshape(mask.shape)
  return Batch(
    prompt=np.ones((1, 1), np.int32),
    prompt_mask=np.ones((1, 1), bool),
    response=ids,
    response_mask=mask,
    label=np.asarray(labels, np.float32),
    valid=np.ones(count, bool),
    weight=np.asarray(1.0, np.float32),
    row=np.asarray(0, np.int32),
    span=np.ones(mask.shape, np.int32),
  )


def apart(token: Array, margin: float) -> np.ndarray:
  """Two responses [2, R], one raised and one lowered until their log-probs differ by margin more.

  Neither exceeds 0.
  """
  up, down = (0, 1) if margin > 0 else (1, 0)
  size, length = abs(margin), token.shape[-1]
  risen = min(0.5 * size, -float(token[up].sum()))
  moved = np.array(token)
  moved[up] += risen / length
  moved[down] -= (size - risen) / length
  return np.minimum(moved, 0.0)


def _longer(case: Case, k: int, scale: float) -> Case:
  """Response k with every token twice, at scale times the log-prob."""
  policy, reference, batch = case
  half = np.arange(K)[:, None] == k

  def twice(x: np.ndarray, factor: float) -> np.ndarray:
    doubled = np.repeat(x[:, : R // 2], 2, axis=1) * np.float32(factor)
    return np.where(half, doubled, x)

  def stretched(x: LogProbs) -> LogProbs:
    fields = {name: twice(getattr(x, name), scale) for name in ("token", "kl")}
    fixed = {name: twice(getattr(x, name), 1.0) for name in ("mask", "collision")}
    return dataclasses.replace(x, **fields, **fixed)

  return (
    stretched(policy),
    stretched(reference),
    dataclasses.replace(batch, response_mask=stretched(policy).mask),
  )


def _without(case: Case, k: int) -> Case:
  """The list with response k left out."""
  there = np.arange(K) != k
  cut = lambda x: np.where(there[:, None], x, 0).astype(x.dtype)  # noqa: E731
  policy, reference, batch = case
  return (
    jax.tree.map(cut, policy),
    jax.tree.map(cut, reference),
    dataclasses.replace(batch, valid=there, response_mask=cut(batch.response_mask)),
  )


def _padded(case: Case) -> Case:
  """A pair as a list of four of which two are not there."""
  policy, reference, batch = case
  wide = lambda x: np.pad(x, [(0, K - 2)] + [(0, 0)] * (x.ndim - 1))  # noqa: E731
  fields = ("response", "response_mask", "label", "valid", "span")
  grown = dataclasses.replace(
    batch,
    **{name: wide(getattr(batch, name)) for name in fields},  # type: ignore[arg-type]
  )
  return jax.tree.map(wide, policy), jax.tree.map(wide, reference), grown
