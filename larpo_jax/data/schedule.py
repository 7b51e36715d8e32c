"""Which rows are in which batch, in which static shape: a function of the lengths and the seed."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

SPLITS = (0.25, 0.5, 0.75, 0.9)  # quantiles of a group's lengths at which it may be split
LEAST_GAIN = 0.02  # of the padded tokens: what another shape has to save


class Planned(NamedTuple):
  """A batch before it is made."""

  rows: np.ndarray  # int [batch_size], -1 for padding
  shape: tuple[int, int]  # (P, R)
  room: int  # as in types.Batch


class Schedule:
  """Which rows, in which shape, are batch n; computed anew for each epoch, 8 bytes a row.

  Shuffled, an epoch's rows are drawn into batches within groups of similar length, what is left
  over in the groups is put together, and at most batch_size - 1 rows (others each epoch) sit out.
  Not shuffled, every row is there and each group's last batch is filled up with padding (row -1).
  With totals, rows are dealt out so that the devices and micro-batches of a batch get as many
  tokens as one another, as far as that goes, and batches have a room.
  """

  def __init__(
    self, prompts: np.ndarray, responses: np.ndarray, totals: np.ndarray | None = None, *,
    batch_size: int, seed: int, shuffle: bool, shapes: int, candidates: int, rooms: int = 1,
    split: tuple[int, int] = (1, 1),
  ) -> None:  # fmt: skip
    """Lengths of each row: of its prompt, its longest response, and all its tokens."""
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
    self._totals, self._places = totals, _places(batch_size, *split)
    self._rooms: list[np.ndarray] = []
    if totals is not None:  # chosen by the first epoch; the others are much like it
      rows, shape = self._epoch(0)
      needed = self._needed(rows)
      for number in range(len(self.shapes)):
        self._rooms.append(_sizes(needed[shape == number], rooms))

  def __getitem__(self, step: int) -> Planned:
    """Batch number step."""
    epoch, place = divmod(step, self.per_epoch)
    rows, shape = (each[place] for each in self._epoch(epoch))
    if self._totals is None:
      return Planned(rows, self.shapes[shape], 0)
    sizes, needed = self._rooms[shape], int(self._needed(rows[None])[0])
    fitting = int(np.searchsorted(sizes, needed))
    return Planned(rows, self.shapes[shape], int(sizes[fitting]) if fitting < len(sizes) else 0)

  def _needed(self, rows: np.ndarray) -> np.ndarray:
    """The least room of batches [N, batch_size]."""
    tokens = self._tokens(rows)[:, self._places]  # [N, parts, rows of a part]
    return np.ceil(tokens.mean(axis=2).max(axis=1)).astype(np.int64)

  def _tokens(self, rows: np.ndarray) -> np.ndarray:
    return np.where(rows >= 0, self._totals[rows], 0)  # type: ignore[index]

  def _dealt(self, rows: np.ndarray) -> np.ndarray:
    """Batches [N, batch_size] with the longest rows dealt first, round and back."""
    parts, each = self._places.shape
    if self._totals is None or parts == 1:
      return rows
    order = np.argsort(-self._tokens(rows), axis=1, kind="stable")
    turns = np.arange(parts * each).reshape(each, parts)
    turns[1::2] = turns[1::2, ::-1]
    out = np.empty_like(rows)
    out[:, self._places.T] = np.take_along_axis(rows, order, axis=1)[:, turns]
    return out

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
    return self._dealt(np.concatenate(rows)[order]), np.asarray(shape)[order]


def _fill(rows: np.ndarray, batch_size: int) -> np.ndarray:
  """Rows cut into batches [N, batch_size], the last filled up with -1."""
  return np.pad(rows, (0, -len(rows) % batch_size), constant_values=-1).reshape(-1, batch_size)


def _shape(prompts: np.ndarray, responses: np.ndarray) -> tuple[int, int]:
  return _round(int(prompts.max())), _round(int(responses.max()))


def _round(length: int) -> int:
  """Up to four sizes an octave: 8, 16, ..., 64, 80, 96, 112, 128, 160, ...; 0 stays 0."""
  step = max(8, 2 ** (max(length - 1, 1).bit_length() - 3))
  return -(-length // step) * step


def _places(batch_size: int, devices: int, micro_batches: int) -> np.ndarray:
  """The places in a batch of each device's part of each micro-batch, [parts, places].

  Devices hold contiguous rows and micro-batches are strided, as `micro_batches.split` cuts them.
  """
  if batch_size % (devices * micro_batches):
    return np.arange(batch_size)[None]
  places = np.arange(batch_size).reshape(devices, -1, micro_batches)
  return places.swapaxes(1, 2).reshape(devices * micro_batches, -1)


def _sizes(needed: np.ndarray, limit: int) -> np.ndarray:
  """At most limit sizes, ascending, that waste little on batches of those needs."""
  step = 2 ** np.maximum(np.int64(np.log2(np.maximum(needed, 1))) - 4, 0)
  sizes, counts = np.unique(-(-needed // step) * step, return_counts=True)
  while len(sizes) > limit:  # the one goes whose batches cost least as batches of the next size
    cheapest = int(np.argmin(counts[:-1] * np.diff(sizes)))
    counts[cheapest + 1] += counts[cheapest]
    sizes, counts = np.delete(sizes, cheapest), np.delete(counts, cheapest)
  return sizes


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
