"""The reference's log-probs, computed once for a data set and shared by every run that needs them.

They are kept per token under (weights, token ids, precision) and nothing else, so another learning
rate, loss, order, subset or truncation reuses whatever is the same. Each response carries its own
checksum: what does not match is computed again. Any number of processes may write at once; those
that start together on the same data wait for the first instead of scoring it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import time
from typing import Any
import uuid
import warnings
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np
import tqdm

from larpo_jax.data import once
from larpo_jax.data.fingerprint import weights_digest
from larpo_jax.types import Batch, LogProbs

__all__ = ["Cache", "attach", "digests", "fill", "weights_digest"]

MAGIC = b"LARPOREF"
ENTRY = np.dtype([("digest", "S32"), ("offset", "<u8"), ("length", "<u4"), ("crc", "<u4")])
FLUSH_TOKENS, FLUSH_SECONDS = 1 << 22, 60.0  # what may be lost when the machine is


class Cache:
  """The log-probs of one set of weights in one precision, found by the digest of the token ids."""

  def __init__(self, directory: str | os.PathLike, weights: str, precision: str):
    """Opens, or begins, the cache of `weights_digest(params)` in, for instance, "float32"."""
    self._key = f"{weights}/{precision}/".encode()
    self.directory = pathlib.Path(directory) / f"{weights[:16]}-{precision}"
    self.directory.mkdir(parents=True, exist_ok=True)
    self._files: dict[str, int] = {}  # name -> number
    self._values: list[np.ndarray] = []  # of each file, memory-mapped
    self._index = np.zeros(0, ENTRY)  # of all files, sorted by digest
    self._file_of = np.zeros(0, np.int32)  # the file of each entry
    self._pending: dict[bytes, np.ndarray] = {}
    self._written = time.monotonic()
    self.refresh()

  def refresh(self) -> int:
    """Notes what other processes have written since; returns how many files there are."""
    indices, files = [self._index], [self._file_of]
    for path in sorted(self.directory.glob("*.ref")):
      if path.name in self._files:
        continue
      index, values = _read(path)
      self._files[path.name] = len(self._values)
      files.append(np.full(len(index), len(self._values), np.int32))
      indices.append(index)
      self._values.append(values)
    index, file_of = np.concatenate(indices), np.concatenate(files)
    order = np.argsort(index["digest"], kind="stable")
    self._index, self._file_of = index[order], file_of[order]
    return len(self._files)

  def get(self, digests: Sequence[bytes]) -> list[np.ndarray | None]:
    """The log-probs of each response, float32 [tokens]; None where there are no sound ones."""
    names = np.asarray(digests, "S32")
    first = np.searchsorted(self._index["digest"], names, side="left")
    last = np.searchsorted(self._index["digest"], names, side="right")
    return [self._one(bytes(name), range(i, j)) for name, i, j in zip(names, first, last)]

  def put(self, digests: Sequence[bytes], values: Sequence[np.ndarray]) -> None:
    """Takes the log-probs of responses; they are on disk after `flush`."""
    for digest, value in zip(digests, values):
      self._pending[bytes(digest)] = np.array(value, "<f4")
    late = time.monotonic() - self._written > FLUSH_SECONDS
    if late or sum(map(len, self._pending.values())) > FLUSH_TOKENS:
      self.flush()

  def flush(self) -> None:
    """Writes what was put, to a file of its own that appears whole or not at all."""
    if not self._pending:
      return
    values = list(self._pending.values())
    index = np.zeros(len(values), ENTRY)
    index["digest"] = list(self._pending)
    index["length"] = list(map(len, values))
    index["offset"] = np.cumsum(index["length"]) - index["length"]
    index["crc"] = [self._checksum(*item) for item in self._pending.items()]
    name = f"{uuid.uuid4().hex}.ref"
    unfinished = self.directory / f"{name}.{os.getpid()}.tmp"
    with open(unfinished, "wb") as file:
      file.write(MAGIC + np.uint64(len(index)).tobytes() + index.tobytes())
      file.write(np.concatenate(values).tobytes())
      file.flush()
      os.fsync(file.fileno())
    os.replace(unfinished, self.directory / name)
    self._pending.clear()
    self._written = time.monotonic()
    self.refresh()

  def _one(self, digest: bytes, places: range) -> np.ndarray | None:
    if digest in self._pending:
      return self._pending[digest]
    for place in places:
      entry = self._index[place]
      values = self._values[self._file_of[place]]
      end = int(entry["offset"]) + int(entry["length"])
      value = np.array(values[int(entry["offset"]) : end])
      if len(value) == entry["length"] and self._checksum(digest, value) == entry["crc"]:
        return value
    return None

  def _checksum(self, digest: bytes, value: np.ndarray) -> int:
    return zlib.crc32(value.tobytes(), zlib.crc32(self._key + digest))


def _read(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """The index and the values of one file; as much of them as is there."""
  start = len(MAGIC) + 8
  raw = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
  sound = len(raw) >= start and raw[: len(MAGIC)].tobytes() == MAGIC
  end = start + int(raw[len(MAGIC) : start].view("<u8")[0]) * ENTRY.itemsize if sound else 0
  if not sound or end > len(raw):
    warnings.warn(f"{path} is damaged; what it held is computed again", stacklevel=4)
    return np.zeros(0, ENTRY), np.zeros(0, "<f4")
  whole = len(raw) - (len(raw) - end) % 4
  return np.array(raw[start:end]).view(ENTRY), raw[end:whole].view("<f4")


def fill(
  batches: Iterable[Batch],
  score: Callable[[Batch], LogProbs],
  cache: Cache,
  *,
  total: int = 0,
  wait: Callable[[float], object] = time.sleep,
) -> int:
  """Scores what the cache lacks, and returns how many responses that were.

  batches are NumPy and hold this process's rows; score is the jitted function that training would
  call on them. total is how many batches there are, for the progress bar. A run of one process that
  lacks something lets time pass by wait(seconds) while another one fills the cache with the same
  data; one of several never waits, as its peers could not know. Raises ValueError when a log-prob
  is not finite.
  """
  cache.refresh()
  scored = 0
  progress = tqdm.tqdm(
    batches, "reference log-probs", total=total or None, unit="batch", disable=None
  )
  with contextlib.ExitStack() as held:

    def begin(first: bytes) -> None:
      path = cache.directory / f"{first.decode()}.lock"
      held.enter_context(once.alone(path, cache.refresh, wait))
      cache.refresh()

    several = jax.process_count() > 1
    lacking = _lacked_by_any(progress, cache) if several else _lacking(progress, cache, begin)
    try:
      for batch, keys in lacking:
        wanted = keys != b""
        cache.put(keys[wanted], _score(score, batch, wanted))
        scored += int(wanted.sum())
        progress.set_postfix(scored=scored)
    finally:  # what is scored is scored, whatever stops the rest
      cache.flush()
  if several:  # training gives a process rows that another one has scored
    multihost_utils.sync_global_devices("the reference cache is filled")
  return scored


def attach(cache: Cache) -> Callable[[Batch], Batch]:
  """A function that gives a NumPy batch its `reference`; raises ValueError where `fill` did not."""

  def with_reference(batch: Batch) -> Batch:
    keys = digests(batch)
    wanted = keys != b""
    found = cache.get(keys[wanted])
    if any(value is None for value in found):
      cache.refresh()
      found = cache.get(keys[wanted])
    reference = np.zeros(batch.response.shape, np.float32)
    for (b, k), value in zip(np.argwhere(wanted), found):
      if value is None:
        raise ValueError(
          f"the reference cache lacks response {k} of row {batch.row[b]}; fill it with this data"
        )
      reference[b, k, : len(value)] = value
    return dataclasses.replace(batch, reference=reference)

  return with_reference


def digests(batch: Batch) -> np.ndarray:
  """What each response is known by, S32 [B, K]: its prompt's ids, its own, and which count.

  Padding is not part of it. b"" where there is nothing to score.
  """
  keys = np.zeros(batch.response.shape[:2], "S32")
  lengths = _lengths(batch)
  given = [np.asarray(leaf) for leaf in jax.tree.leaves(batch.cond)]
  for b, k in np.argwhere((lengths > 0) & batch.valid & (batch.weight > 0)[:, None]):
    j = k if batch.prompt.shape[1] > 1 else 0
    n = lengths[b, k]
    prompt = batch.prompt[b, j][batch.prompt_mask[b, j].astype(bool)]
    counted = np.packbits(batch.response_mask[b, k, :n] > 0)
    parts = (prompt.astype("<i4"), batch.response[b, k, :n].astype("<i4"), counted)
    digest = hashlib.blake2b(digest_size=16)
    for part in (*parts, *(leaf[b] for leaf in given)):
      digest.update(np.int64(part.nbytes).tobytes() + part.tobytes())
    keys[b, k] = digest.hexdigest().encode()
  return keys


def _lacking(
  batches: Iterable[Batch], cache: Cache, begin: Callable[[bytes], None]
) -> Iterator[tuple[Batch, np.ndarray]]:
  """Batches of rows that the cache lacks, of the shapes that came in, and their digests.

  begin is called before the first, with the digest of the data's first response.
  """
  first, begun = b"", False
  waiting: dict[tuple, list[tuple[Batch, np.ndarray]]] = {}
  queued: set[bytes] = set()
  for batch in batches:
    keys = digests(batch)
    first = first or next((key for key in keys.ravel() if key), b"")
    lacks = _lacks(cache, keys)
    if lacks and not begun:
      begin(first)
      lacks, begun = _lacks(cache, keys), True
    lacks -= queued
    queued |= lacks
    wanted = [any(key in lacks for key in row) for row in keys]
    if all(wanted):
      yield batch, keys
      continue
    rows = waiting.setdefault((batch.prompt.shape, batch.response.shape), [])
    batch = dataclasses.replace(batch, room=0)  # rows of several batches may need more
    for b in np.flatnonzero(wanted):
      rows.append((jax.tree.map(lambda x, b=b: x[b], batch), keys[b]))
      if len(rows) == len(keys):
        yield _stack(rows, len(keys))
        rows.clear()
  for (shape, _), rows in waiting.items():
    if rows:
      yield _stack(rows, shape[0])


def _lacked_by_any(batches: Iterable[Batch], cache: Cache) -> Iterator[tuple[Batch, np.ndarray]]:
  """The same for several processes, which must score in step: whole batches, for all at once."""
  for batch in batches:
    keys = digests(batch)
    if multihost_utils.process_allgather(np.asarray(bool(_lacks(cache, keys)))).any():
      yield batch, keys


def _lacks(cache: Cache, keys: np.ndarray) -> set[bytes]:
  flat = [key for key in keys.ravel() if key]
  return {key for key, value in zip(flat, cache.get(flat)) if value is None}


def _score(
  score: Callable[[Batch], LogProbs], batch: Batch, wanted: np.ndarray
) -> list[np.ndarray]:
  """The log-probs of the responses that are wanted, each float32 [tokens]."""
  token = _local(score(dataclasses.replace(batch, reference=None)).token)
  bad = np.any(~np.isfinite(token).all(axis=-1) & wanted, axis=-1)
  if bad.any():
    row = batch.row[bad][0]
    raise ValueError(f"the reference's log-probs of row {row} are not finite; check its weights")
  return [values[:n] for values, n in zip(token[wanted], _lengths(batch)[wanted])]


def _stack(rows: list[tuple[Batch, np.ndarray]], size: int) -> tuple[Batch, np.ndarray]:
  """Rows as a batch of that size; the rows that pad it have no digests."""
  short = size - len(rows)
  keys = np.stack([key for _, key in rows])
  full = [row for row, _ in rows] + [rows[0][0]] * short
  padding = np.zeros((short, keys.shape[1]), keys.dtype)
  return jax.tree.map(lambda *leaves: np.stack(leaves), *full), np.concatenate([keys, padding])


def _lengths(batch: Batch) -> np.ndarray:
  """Tokens of each response up to the last that counts, [B, K]."""
  places = np.arange(1, batch.response.shape[-1] + 1)
  return np.max((batch.response_mask > 0) * places, axis=-1, initial=0)


def _local(array: Any) -> np.ndarray:
  """This process's rows of an array that is sharded over its first axis, or whole."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(array)
  parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
