"""Tokenised rows on disk: flat arrays that are memory-mapped, whole or not there at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import json
import os
import pathlib
import shutil
from types import TracebackType
from typing import Any, BinaryIO
import uuid

import numpy as np
import xxhash

from larpo_jax.data.candidates import Tokens
from larpo_jax.data.problems import Report

# Segments are the prompt and then the responses of row after row.
ARRAYS = {
  "ids": "<i4",  # of all segments, end to end
  "mask": "?",  # of each id: whether it is trained on
  "ends": "<i8",  # where each segment ends in ids
  "labels": "<f4",  # of each segment, 0 for a prompt
  "rows": "<i8",  # where each row ends in segments
  "sources": "<i8",  # each row's index in the source
  "digests": "V16",  # of each row's ids and masks
  "prompts": "V16",  # of each row's prompt ids
}
# What not every data set has: there for all rows or for none.
OPTIONAL = {
  "scores": "<f4",  # of each segment, 0 for a prompt
  "importance": "<f4",  # of each segment, 0 for a prompt
  "spans": "<u2",  # of each id: 0 shared, i > 0 in the i-th edited span
}
KINDS = ARRAYS | OPTIONAL
REJECTED = "rejected.jsonl"


class TokenizedData:
  """Rows of token ids, read from disk as they are asked for; 58 bytes of memory a row."""

  def __init__(self, directory: pathlib.Path, meta: dict[str, Any]) -> None:
    """Maps the arrays of a directory that Writer made."""
    self.directory = directory
    self.report = Report.from_json(meta["report"])
    self.pad: int = meta["pad"]
    self.end: int | None = meta["end"]  # ends a response: where sampling stops
    self.candidates: int = meta["candidates"]  # responses of the longest list, at least
    arrays = {name: _map(directory / f"{name}.bin", kind) for name, kind in ARRAYS.items()}
    self._ids, self._mask, self._labels = arrays["ids"], arrays["mask"], arrays["labels"]
    self._optional = {
      name: _map(directory / f"{name}.bin", kind)
      for name, kind in OPTIONAL.items()
      if name in meta["files"]
    }
    self.sources, self.digests, self.prompts = (
      arrays[name] for name in ("sources", "digests", "prompts")
    )
    self._starts = np.concatenate([[0], arrays["ends"]])
    self._rows = np.concatenate([[0], arrays["rows"]])
    lengths = np.diff(self._starts)
    first = self._rows[:-1]
    self.widths = np.diff(self._rows) - 1  # responses of each row
    self.row_lengths = self._starts[self._rows[1:]] - self._starts[first]  # of all its segments
    self.prompt_lengths = lengths[first]
    lengths[first] = 0
    self.response_lengths = np.maximum.reduceat(lengths, first)  # of the longest response

  def __len__(self) -> int:
    return len(self.widths)

  def __getitem__(self, index: int) -> Tokens:
    parts = range(int(self._rows[index]), int(self._rows[index + 1]))
    spans = [slice(int(self._starts[i]), int(self._starts[i + 1])) for i in parts]
    return Tokens(
      np.array(self._ids[spans[0]]),
      [np.array(self._ids[span]) for span in spans[1:]],
      [np.array(self._mask[span]) for span in spans[1:]],
      [float(self._labels[i]) for i in parts[1:]],
      **{name: self._known(name, parts[1:], spans[1:]) for name in self._optional},
    )

  def _known(self, name: str, parts: Sequence[int], places: Sequence[slice]) -> list[Any]:
    """What an optional array has of segments."""
    values = self._optional[name]
    if name == "spans":
      return [np.array(values[place]) for place in places]
    return [float(values[part]) for part in parts]

  def all_lengths(self) -> np.ndarray:
    """The length of every response, in tokens."""
    keep = np.ones(len(self._starts) - 1, bool)
    keep[self._rows[:-1]] = False
    return np.diff(self._starts)[keep]

  def rejected(self) -> Iterator[dict[str, str]]:
    """The rows that were not kept: where, kind, detail."""
    with (self.directory / REJECTED).open(encoding="utf-8") as file:
      yield from map(json.loads, file)


class Writer:
  """Writes a directory beside its final place and renames it there at the end."""

  def __init__(self, directory: pathlib.Path, candidates: int = 0) -> None:
    """directory is the final place; what an exception leaves unfinished is removed.

    candidates: how many responses a list is given room for, if none is longer.
    """
    self.directory = directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    self.unfinished = directory.with_name(f".{directory.name}-{uuid.uuid4().hex}")
    self.unfinished.mkdir()
    self._files: dict[str, BinaryIO] = {
      name: (self.unfinished / f"{name}.bin").open("wb") for name in ARRAYS
    }
    self._rejected = (self.unfinished / REJECTED).open("w", encoding="utf-8")
    self._tokens = self._segments = 0
    self.candidates = candidates
    self._optional: list[str] | None = None  # what the first row brought

  def __enter__(self) -> Writer:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
  ) -> None:
    self._close()
    shutil.rmtree(self.unfinished, ignore_errors=True)

  def add(self, tokens: Tokens, source: int) -> None:
    """Appends a row; source is its index in the source."""
    segments = [tokens.prompt, *tokens.responses]
    masks = [np.zeros(len(tokens.prompt), bool), *tokens.masks]
    lengths = np.asarray([len(each) for each in segments])
    ends = self._tokens + np.cumsum(lengths)
    self._tokens, self._segments = int(ends[-1]), self._segments + len(segments)
    self.candidates = max(self.candidates, len(tokens.responses))
    flat, flags = np.concatenate(segments), np.concatenate(masks)
    digest = xxhash.xxh3_128(flat.tobytes())
    digest.update(flags.tobytes() + lengths.tobytes())
    self._put("ids", flat)
    self._put("mask", flags)
    self._put("ends", ends)
    self._put("labels", [0.0, *tokens.labels])
    self._put("rows", [self._segments])
    self._put("sources", [source])
    self._files["digests"].write(digest.digest())
    self._files["prompts"].write(xxhash.xxh3_128_digest(tokens.prompt.tobytes()))
    self._put_optional(tokens)

  def _put_optional(self, tokens: Tokens) -> None:
    given = [name for name in OPTIONAL if getattr(tokens, name) is not None]
    if self._optional is None:
      self._optional = given
      for name in given:
        self._files[name] = (self.unfinished / f"{name}.bin").open("wb")
    if given != self._optional:
      raise ValueError(f"some rows have {self._optional or 'no more than labels'}, others {given}")
    for name in given:
      values = getattr(tokens, name)
      if len(values) != len(tokens.responses):
        raise ValueError(f"{len(tokens.responses)} responses have {len(values)} {name}")
      prompt = np.zeros(len(tokens.prompt), OPTIONAL[name])
      self._put(name, np.concatenate([prompt, *values]) if name == "spans" else [0.0, *values])

  def reject(self, where: str, kind: str, detail: str) -> None:
    """Lists a row that is not kept."""
    line = json.dumps({"where": where, "kind": kind, "detail": detail})
    self._rejected.write(line + "\n")

  def finish(self, report: Report, *, pad: int, end: int | None) -> None:
    """Completes the directory; where another process was faster, its directory stands."""
    self._close()
    digests = np.fromfile(self.unfinished / "digests.bin", ARRAYS["digests"])
    report.notes["duplicate_rows"] += len(digests) - len(np.unique(digests))
    report.notes = +report.notes
    meta = {
      "report": report.to_json(),
      "pad": pad,
      "end": end,
      "candidates": self.candidates,
      "files": {name: _checksum(self.unfinished / f"{name}.bin") for name in self._files},
    }
    (self.unfinished / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")
    try:
      os.rename(self.unfinished, self.directory)
    except OSError:
      if not (self.directory / "meta.json").exists():
        raise

  def give_up(self) -> pathlib.Path:
    """Keeps only the list of rejected rows; returns its path."""
    self._rejected.close()
    kept = self.directory.with_name(f"{self.directory.name}-{REJECTED}")
    os.replace(self.unfinished / REJECTED, kept)
    return kept

  def _close(self) -> None:
    for file in self._files.values():
      file.close()
    self._rejected.close()

  def _put(self, name: str, values: Any) -> None:
    self._files[name].write(np.asarray(values, KINDS[name]).tobytes())


def load(directory: pathlib.Path) -> TokenizedData | None:
  """The rows of a directory; None where it is not there or not sound, and then moved away."""
  if not directory.exists():
    return None
  try:
    meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
    files = meta["files"]
    found = {name: _checksum(directory / f"{name}.bin") for name in files if name in KINDS}
    if ARRAYS.keys() <= files.keys() and files == found:
      return TokenizedData(directory, meta)
  except (OSError, ValueError, KeyError):
    pass
  os.rename(directory, directory.with_name(f"{directory.name}-{uuid.uuid4().hex[:8]}.corrupt"))
  return None


def overlap(train: TokenizedData, test: TokenizedData) -> int:
  """How many rows of test have a prompt that train has too, as far as truncation leaves them."""
  return int(np.isin(np.asarray(test.prompts), np.asarray(train.prompts)).sum())


def _map(path: pathlib.Path, kind: str) -> np.ndarray:
  return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def _checksum(path: pathlib.Path) -> list[Any]:
  hasher = xxhash.xxh3_128()
  with path.open("rb") as file:
    while block := file.read(1 << 20):
      hasher.update(block)
  return [path.stat().st_size, hasher.hexdigest()]
