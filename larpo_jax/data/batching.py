"""Rows of token ids -> batches of few static shapes, in an order that is a function of the seed.

Batch n is the same whatever happened before it, so a run resumes by asking for it. Every process
computes the same order and takes its own rows of each batch. With prefetch in threads only: grain's
worker processes would read absl flags and take seconds to start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import sys
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from larpo_jax.data.candidates import Tokens
from larpo_jax.data.schedule import Schedule
from larpo_jax.types import Array, Batch

# What not every data set brings: the field of Tokens -> that of Batch.
OPTIONAL = {"scores": "score", "importance": "importance", "spans": "span"}


class Data(Protocol):
  """What batches are made of: `store.TokenizedData`, or anything that looks like it."""

  pad: int
  candidates: int
  prompt_lengths: np.ndarray
  response_lengths: np.ndarray
  row_lengths: np.ndarray

  def __len__(self) -> int:
    """How many rows."""

  def __getitem__(self, index: int) -> Tokens:
    """One row."""


class Prompts(NamedTuple):
  """Prompts to sample responses for."""

  prompt: Array  # int32 [B, 1, P], padded on the left
  prompt_mask: Array  # bool [B, 1, P]
  weight: Array  # float32 [B]: 0 on rows that pad a short batch
  row: Array  # int32 [B]: -1 on padding


def schedule(
  data: Data, *, batch_size: int, seed: int = 0, shuffle: bool = True, shapes: int = 4,
  rooms: int = 2, split: tuple[int, int] | None = None, candidates: int = 0,
) -> Schedule:  # fmt: skip
  """The schedule that `batches` follows: .per_epoch batches an epoch, in .shapes (P, R)."""
  return Schedule(
    data.prompt_lengths, data.response_lengths, None if split is None else data.row_lengths,
    batch_size=batch_size, seed=seed, shuffle=shuffle, shapes=shapes, rooms=rooms,
    split=split or (1, 1), candidates=candidates or data.candidates,
  )  # fmt: skip


def batches(
  data: Data,
  *,
  batch_size: int,
  seed: int = 0,
  shuffle: bool = True,
  epochs: int | None = None,
  candidates: int = 0,
  shapes: int = 4,
  rooms: int = 2,
  split: tuple[int, int] | None = None,
  shard: tuple[int, int] = (0, 1),
  attach: Callable[[Batch], Batch] | None = None,
  start: int = 0,
) -> Any:
  """A grain iterator of Batch (NumPy), endless unless epochs is given, from batch start on.

  Lists of fewer than `candidates` responses (0: as the longest list) are padded with valid=False.
  Batches have at most `shapes` shapes, and one more if shuffled. split is how many devices share a
  batch (data x fsdp of the mesh) and how many micro-batches it is cut into: with it batches have a
  room, at most `rooms` for each shape and now and then none, so that padding is not computed.
  shard = (index, count) gives that process's batch_size / count rows of each batch. attach gets
  each batch, for instance to put cached reference log-probs into it. The state of the iterator is
  {"next_index": n}. Raises ValueError where the sizes do not fit. For evaluation: shuffle=False,
  epochs=1 gives each row once and pads what is short with weight 0.
  """
  width = candidates or data.candidates
  if data.candidates > width:
    raise ValueError(
      f"the data has lists of {data.candidates}: candidates={width} cannot hold them"
    )
  order = schedule(
    data, batch_size=batch_size, seed=seed, shuffle=shuffle, shapes=shapes, rooms=rooms,
    split=split, candidates=width,
  )  # fmt: skip
  mine = _slice(batch_size, shard)
  first = data[0]  # a data set brings the same fields in every row
  brings = [name for name in OPTIONAL if getattr(first, name) is not None]

  def make(step: int) -> Batch:
    rows, (P, R), room = order[step]
    batch = _collate(data, rows[mine], width, P, R, brings)
    batch = dataclasses.replace(batch, room=room)
    return batch if attach is None else attach(batch)

  return _iterator(make, order.per_epoch, epochs, start)


def prompt_batches(
  data: Data,
  *,
  batch_size: int,
  seed: int = 0,
  shuffle: bool = True,
  epochs: int | None = None,
  shapes: int = 4,
  shard: tuple[int, int] = (0, 1),
  start: int = 0,
) -> Any:
  """A grain iterator of Prompts, as `batches`, whatever responses the data has."""
  lengths = data.prompt_lengths
  order = Schedule(
    lengths, np.zeros_like(lengths), batch_size=batch_size, seed=seed, shuffle=shuffle,
    shapes=shapes, candidates=0,
  )  # fmt: skip
  mine = _slice(batch_size, shard)

  def make(step: int) -> Prompts:
    rows, (P, _), _ = order[step]
    batch = _collate(data, rows[mine], 0, P, 0)
    return Prompts(batch.prompt, batch.prompt_mask, batch.weight, batch.row)

  return _iterator(make, order.per_epoch, epochs, start)


class _Source:
  """Batch n, for grain."""

  def __init__(self, make: Callable[[int], Any], length: int) -> None:
    self._make, self._length = make, length

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, step: int) -> Any:
    return self._make(int(step))


def _iterator(make: Callable[[int], Any], per_epoch: int, epochs: int | None, start: int) -> Any:
  length = sys.maxsize if epochs is None else epochs * per_epoch
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  found = iter(grain.MapDataset.source(_Source(make, length)).to_iter_dataset(options))
  if start:
    found.set_state({"next_index": start})
  return found


def _slice(batch_size: int, shard: tuple[int, int]) -> slice:
  index, count = shard
  if batch_size % count:
    raise ValueError(f"batch_size {batch_size} does not divide among {count} processes")
  each = batch_size // count
  return slice(index * each, (index + 1) * each)


def _collate(
  data: Data, rows: np.ndarray, K: int, P: int, R: int, brings: Sequence[str] = ()
) -> Batch:
  """Prompts end where the responses begin; everything else that is padded is masked."""
  B = len(rows)
  prompt, response = np.full((B, 1, P), data.pad, np.int32), np.full((B, K, R), data.pad, np.int32)
  prompt_mask, response_mask = np.zeros((B, 1, P), bool), np.zeros((B, K, R), np.float32)
  label, valid = np.zeros((B, K), np.float32), np.zeros((B, K), bool)
  found = {b: data[int(row)] for b, row in enumerate(rows) if row >= 0}
  for b, tokens in found.items():
    prompt[b, 0, P - len(tokens.prompt) :] = tokens.prompt
    prompt_mask[b, 0, P - len(tokens.prompt) :] = True
    for k, (ids, mask) in enumerate(zip(tokens.responses[:K], tokens.masks)):
      response[b, k, : len(ids)] = ids
      response_mask[b, k, : len(ids)] = mask
      label[b, k] = tokens.labels[k]
      valid[b, k] = True
  return Batch(
    prompt=prompt,
    prompt_mask=prompt_mask,
    response=response,
    response_mask=response_mask,
    label=label,
    valid=valid,
    weight=(rows >= 0).astype(np.float32),
    row=rows.astype(np.int32),
  ).replace(**{OPTIONAL[name]: _optional(found, name, response.shape) for name in brings})  # type: ignore[attr-defined]


def _optional(found: dict[int, Tokens], name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A field that not every data set has, [B, K] or, where it is of tokens, [B, K, R]; 0 pads."""
  ragged = name == "spans"
  out = np.zeros(shape if ragged else shape[:2], np.int32 if ragged else np.float32)
  for b, tokens in found.items():
    for k, value in enumerate(getattr(tokens, name)):
      out[(b, k, slice(len(value))) if ragged else (b, k)] = value
  return out
