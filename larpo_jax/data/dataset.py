"""A data set and a tokenizer -> token ids on disk, under a name made from all they depend on.

Any number of processes may build the same data at once: each writes beside, and renames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import pathlib
from typing import Any

import numpy as np
import tqdm
from transformers import PreTrainedTokenizerBase
import xxhash

from larpo_jax import lookup
from larpo_jax.data import encode, problems, sources, store
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.batching import batches, prompt_batches
from larpo_jax.data.candidates import Policy
from larpo_jax.data.encode import Rendered
from larpo_jax.data.mismatched import Mismatched
from larpo_jax.data.problems import BadRow, Report
from larpo_jax.data.readers import Example
from larpo_jax.data.store import TokenizedData

__all__ = ["TokenizedData", "batches", "build", "from_node", "prompt_batches"]

Reader = Callable[[dict[str, Any]], Example]
ROWS_AT_A_TIME = 128  # tokenised together
SILENT_SECONDS = 10.0  # before a progress bar shows
SETTINGS = ("max_bad_rows", "skip", "max_merged", "cache")  # of build, beside the policy


def build(
  path: str | os.PathLike | Sequence[str],
  *,
  reader: Mapping[str, Any] | Reader,
  tokenizer: PreTrainedTokenizerBase,
  split: str | None = None,
  max_bad_rows: int = 0,
  skip: Sequence[str] = (),
  max_merged: float = 0.1,
  cache: str | os.PathLike = "",
  mismatched: bool = False,
  **policy: Any,
) -> TokenizedData:
  """Reads, validates and tokenises a data set, or finds it done in the cache directory.

  reader is a spec such as dict(name="readers.pairs"), or a function row -> Example. policy has the
  fields of candidates.Policy: max_prompt and max_response at least. skip names kinds of bad rows
  (problems.KINDS) that are left out without being counted as bad. max_merged is the largest share
  of rows whose prompt merges with a response. Raises ValueError when more rows are bad than
  max_bad_rows, or what sources.open raises. mismatched gives each row one more response, label 0,
  that was written to another prompt.
  """
  limits = _policy(policy)
  skip = problems.check_skip(skip)
  rows = sources.open(path, split)
  read, described = _resolve(reader)
  key = [rows.digest, described, tokenizers.digest(tokenizer), dataclasses.asdict(limits), _code()]
  name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
  directory = cache_directory(cache) / "tokens" / name
  data = store.load(directory)
  if data is None:
    _write(rows, read, tokenizer, limits, directory, skip, max_bad_rows)
    data = store.load(directory)
    if data is None:
      raise ValueError(f"what was written to {directory} does not read back: check the disk")
  data.report.source = rows.name  # the cache knows contents, not what the file is called today
  data.report.check(skip, max_bad_rows, directory / store.REJECTED)
  _check_merged(data.report, max_merged)
  return Mismatched(data) if mismatched else data


def from_node(
  node: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, which: str = "train"
) -> TokenizedData:
  """Builds what a config's data node describes, as a dict: one place for a run and for inspect.

  node[which] has path and split, and a reader where it differs from node["reader"]. What `build`
  takes is read from node under the same name; what is there for others, such as batch_size, is not.
  Spans and mismatched responses are for a loss on preferences: what has a reader of its own gets
  neither, and a test split no mismatched ones.
  """
  place = dict(node[which])
  if not place.get("path"):
    raise ValueError(f"data.{which}.path is empty: name a file, a directory or a hub id")
  names = (*SETTINGS, *(field.name for field in dataclasses.fields(Policy)))
  settings = {name: node[name] for name in names if name in node}
  if place.get("reader"):
    settings["spans"] = False
  elif which == "train":
    settings["mismatched"] = node.get("mismatched", False)
  return build(
    place["path"],
    reader=place.get("reader") or node["reader"],
    tokenizer=tokenizer,
    split=place.get("split") or None,
    **settings,
  )


def cache_directory(path: str | os.PathLike = "") -> pathlib.Path:
  """Where prepared data lies: path, else $LARPO_CACHE, else larpo_jax in the user's cache."""
  default = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
  found = os.fspath(path) or os.environ.get("LARPO_CACHE") or os.path.join(default, "larpo_jax")
  return pathlib.Path(found).expanduser()


def _write(
  rows: sources.Rows,
  read: Reader,
  tokenizer: PreTrainedTokenizerBase,
  policy: Policy,
  directory: pathlib.Path,
  skip: Sequence[str],
  max_bad_rows: int,
) -> None:
  """Reads every row once, in order, and writes what is kept; stops early where most is bad."""
  vocabulary = tokenizers.describe(tokenizer)
  report = Report(rows.name)
  ids: list[int] = []
  chat = False
  with store.Writer(directory) as writer:
    for start in tqdm.trange(
      0,
      len(rows),
      ROWS_AT_A_TIME,
      delay=SILENT_SECONDS,
      desc="tokenising",
      unit_scale=ROWS_AT_A_TIME,
    ):
      chunk = range(start, min(start + ROWS_AT_A_TIME, len(rows)))
      for index, kept, notes in _encode(rows, read, vocabulary, policy, chunk, ids):
        report.rows += 1
        if isinstance(kept, BadRow):
          report.rejected[kept.kind] += 1
          writer.reject(rows.where(index), kept.kind, kept.detail)
        else:
          report.kept += 1
          report.notes.update(notes)
          writer.add(kept, index)
          chat |= notes["conversations"] > 0
      if report.bad(skip).total() > max_bad_rows + problems.PATIENCE:
        report.check(skip, max_bad_rows, writer.give_up())
    report.notes["duplicate_ids"] += len(ids) - len(np.unique(np.asarray(ids, np.uint64)))
    writer.finish(report, pad=vocabulary.pad, end=vocabulary.end(chat))


def _encode(
  rows: sources.Rows,
  read: Reader,
  vocabulary: tokenizers.Vocabulary,
  policy: Policy,
  chunk: range,
  ids: list[int],
) -> Iterator[tuple[int, encode.Tokens | BadRow, Counter]]:
  """Each row of a chunk with its tokens, or with what is wrong with it; adds hashes of ids."""
  rendered: dict[int, Rendered] = {}
  failed: dict[int, BadRow] = {}
  notes: dict[int, Counter] = {index: Counter() for index in chunk}
  for index in chunk:
    try:
      row = rows[index]
      if "id" in row:
        ids.append(xxhash.xxh3_64_intdigest(repr(row["id"]).encode()))
      rendered[index] = encode.render(read(row), vocabulary, policy, notes[index])
    except BadRow as error:
      failed[index] = error
  tokens = dict(zip(rendered, encode.tokenize(list(rendered.values()), vocabulary, policy)))
  for index in chunk:
    if index in failed:
      yield index, failed[index], notes[index]
      continue
    kept: encode.Tokens | BadRow
    try:
      kept = encode.assemble(rendered[index], tokens[index], vocabulary, policy, notes[index])
    except BadRow as error:
      kept = error
    yield index, kept, notes[index]


def _resolve(reader: Mapping[str, Any] | Reader) -> tuple[Reader, Any]:
  """The function, and a description of it that changes when what it does changes."""
  function: Any = reader
  if isinstance(reader, Mapping):
    function = lookup.resolve(dict(reader), "larpo_jax.data")
  inner: Any = function
  arguments: dict[str, Any] = {}
  while True:
    if isinstance(inner, functools.partial):
      arguments = {**inner.keywords, **arguments}
      inner = inner.func
    elif hasattr(inner, "__wrapped__"):
      inner = inner.__wrapped__
    else:
      break
  return function, [inner.__module__, inner.__qualname__, inspect.getsource(inner), repr(arguments)]


@functools.cache
def _code() -> str:
  """A hash of this package's own source: other code, other tokens."""
  here = pathlib.Path(__file__).parent
  names = (
    "candidates",
    "dataset",
    "edits",
    "encode",
    "readers",
    "sources",
    "store",
    "templates",
    "tokenizer",
  )
  return hashlib.sha256(b"".join((here / f"{n}.py").read_bytes() for n in names)).hexdigest()


def _policy(given: Mapping[str, Any]) -> Policy:
  accepted = [field.name for field in dataclasses.fields(Policy)]
  for name in given:
    if name not in accepted:
      raise ValueError(f"data.{name} is unknown; the policy has {', '.join(accepted)}")
  for name in ("max_prompt", "max_response"):
    if name not in given:
      raise ValueError(f"data.{name} is not set: how many tokens at most?")
  return Policy(**given)


def _check_merged(report: Report, limit: float) -> None:
  share = report.notes["merged"] / max(report.kept, 1)
  if share > limit:
    raise ValueError(
      f"in {share:.0%} of the rows of {report.source} the prompt's last tokens merge with the"
      " response or are rendered otherwise before it: end prompts at a token boundary (no trailing"
      " space), set data.boundary='apart' (plain texts), or allow it with"
      f" data.max_merged={share:.2f}"
    )
