"""Rows of token ids -> batches of few static shapes, in an order that is a function of the seed.

Batch n is the same whatever happened before it, so a run resumes by asking for it. Every process
computes the same order and takes its own rows of each batch. With prefetch in threads only: grain's
worker processes would read absl flags and take seconds to start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import math
import sys
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from larpo_jax.data.candidates import Tokens
from larpo_jax.types import Array, Batch

SPLITS = (0.25, 0.5, 0.75, 0.9)  # quantiles of a group's lengths at which it may be split
LEAST_GAIN = 0.02  # of the padded tokens: what another shape has to save
# What not every data set brings: the field of Tokens -> that of Batch.
OPTIONAL = {"scores": "score", "importance": "importance", "spans": "span"}


class Data(Protocol):
  """What batches are made of: `store.TokenizedData`, or anything that looks like it."""

  pad: int
  candidates: int
  prompt_lengths: np.ndarray
  response_lengths: np.ndarray

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


class Schedule:
  """Which rows, in which shape, are batch n; computed anew for each epoch, 8 bytes a row.

  Shuffled, an epoch's rows are drawn into batches within groups of similar length, what is left
  over in the groups is put together, and at most batch_size - 1 rows (others each epoch) sit out.
  Not shuffled, every row is there and each group's last batch is filled up with padding (row -1).
  """

  def __init__(
    self, prompts: np.ndarray, responses: np.ndarray, *, batch_size: int, seed: int, shuffle: bool,
    shapes: int, candidates: int,
  ) -> None:  # fmt: skip
    """prompts and responses are the lengths of each row, the longest response counting."""
    if batch_size < 1 or not len(prompts):
      raise ValueError(f"no batches of {batch_size} rows can be made of {len(prompts)} rows")
    self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
    self._groups = _groups(prompts, responses, shapes, batch_size, candidates)
    self.shapes = [_shape(prompts[g], responses[g]) for g in self._groups]
    whole = _shape(prompts, responses)
    if whole not in self.shapes and shuffle:
      self.shapes.append(whole)
    if shuffle:
      full = sum(len(group) // batch_size for group in self._groups)
      left = sum(len(group) % batch_size for group in self._groups)
      self.per_epoch = max(full + left // batch_size, 1)
    else:
      self.per_epoch = sum(math.ceil(len(group) / batch_size) for group in self._groups)
    self._epoch = functools.lru_cache(2)(self._make)

  def __getitem__(self, step: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The rows [batch_size] of batch step, -1 for padding, and their shape (P, R)."""
    epoch, place = divmod(step, self.per_epoch)
    rows, shape = self._epoch(epoch)
    return rows[place], self.shapes[shape[place]]

  def _make(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
    rows, shape, left = [], [], []
    for number, group in enumerate(self._groups):
      group = rng.permutation(group) if self.shuffle else group
      short = len(group) % self.batch_size
      if short and self.shuffle:
        left.append(group[-short:])
        group = group[:-short]
      parts = _fill(group, self.batch_size)
      rows.append(parts)
      shape += [number] * len(parts)
    if left:
      parts = _fill(np.concatenate(left), self.batch_size)
      parts = parts[: max(self.per_epoch - len(shape), 0)]  # the last, short one sits out
      rows.append(parts)
      shape += [len(self.shapes) - 1] * len(parts)
    order = rng.permutation(len(shape)) if self.shuffle else np.arange(len(shape))
    return np.concatenate(rows)[order], np.asarray(shape)[order]


def schedule(
  data: Data, *, batch_size: int, seed: int = 0, shuffle: bool = True, shapes: int = 4,
  candidates: int = 0,
) -> Schedule:  # fmt: skip
  """The schedule that `batches` follows: .per_epoch batches an epoch, in .shapes (P, R)."""
  width = candidates or data.candidates
  return Schedule(
    data.prompt_lengths, data.response_lengths, batch_size=batch_size, seed=seed, shuffle=shuffle,
    shapes=shapes, candidates=width,
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
  shard: tuple[int, int] = (0, 1),
  attach: Callable[[Batch], Batch] | None = None,
  start: int = 0,
) -> Any:
  """A grain iterator of Batch (NumPy), endless unless epochs is given, from batch start on.

  Lists of fewer than `candidates` responses (0: as the longest list) are padded with valid=False.
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
    data, batch_size=batch_size, seed=seed, shuffle=shuffle, shapes=shapes, candidates=width
  )
  mine = _slice(batch_size, shard)
  first = data[0]  # a data set brings the same fields in every row
  brings = [name for name in OPTIONAL if getattr(first, name) is not None]

  def make(step: int) -> Batch:
    rows, (P, R) = order[step]
    batch = _collate(data, rows[mine], width, P, R, brings)
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
    rows, (P, _) = order[step]
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
    **{OPTIONAL[name]: _optional(found, name, response.shape) for name in brings},
  )


def _optional(found: dict[int, Tokens], name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A field that not every data set has, [B, K] or, where it is of tokens, [B, K, R]; 0 pads."""
  ragged = name == "spans"
  out = np.zeros(shape if ragged else shape[:2], np.int32 if ragged else np.float32)
  for b, tokens in found.items():
    for k, value in enumerate(getattr(tokens, name)):
      out[(b, k, slice(len(value))) if ragged else (b, k)] = value
  return out


def _fill(rows: np.ndarray, batch_size: int) -> np.ndarray:
  """Rows cut into batches [N, batch_size], the last filled up with -1."""
  return np.pad(rows, (0, -len(rows) % batch_size), constant_values=-1).reshape(-1, batch_size)


def _shape(prompts: np.ndarray, responses: np.ndarray) -> tuple[int, int]:
  return _round(int(prompts.max())), _round(int(responses.max()))


def _round(length: int) -> int:
  """Up to four sizes an octave: 8, 16, ..., 64, 80, 96, 112, 128, 160, ...; 0 stays 0."""
  step = max(8, 2 ** (max(length - 1, 1).bit_length() - 3))
  return -(-length // step) * step


def _groups(
  prompts: np.ndarray, responses: np.ndarray, limit: int, least: int, candidates: int
) -> list[np.ndarray]:
  """Rows in at most limit groups of similar lengths, split wherever that saves most padding."""

  def cost(group: np.ndarray) -> int:
    P, R = _shape(prompts[group], responses[group])
    return len(group) * (P + max(candidates, 1) * R)

  groups = [np.arange(len(prompts))]
  total = cost(groups[0])
  while len(groups) < limit:
    best: tuple[float, int, np.ndarray] | None = None
    for number, group in enumerate(groups):
      for lengths in (prompts[group], responses[group]):
        for edge in np.unique(np.quantile(lengths, SPLITS)):
          short = lengths <= edge
          if min(short.sum(), (~short).sum()) < least:
            continue
          gain = cost(group) - cost(group[short]) - cost(group[~short])
          if gain > LEAST_GAIN * total and (best is None or gain > best[0]):
            best = gain, number, short
    if best is None:
      break
    _, number, short = best
    group = groups.pop(number)
    groups += [group[short], group[~short]]
  return sorted(groups, key=lambda group: (cost(group) / len(group), int(group[0])))
