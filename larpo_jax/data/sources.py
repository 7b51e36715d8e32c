"""Files and hub ids -> rows with random access, each of which knows where it stands."""

from __future__ import annotations

from array import array
import bisect
from collections.abc import Sequence
import glob
import gzip
import json
import mmap
import os
import pathlib
import re
import tempfile
from typing import Any, BinaryIO, Protocol
import zlib

import xxhash

from larpo_jax.data import hub
from larpo_jax.data.problems import BadRow

LINES = (".jsonl", ".json", ".ndjson")
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}


class Rows(Protocol):
  """Rows on disk: the memory they take does not grow with their text."""

  name: str
  digest: str  # of the content, whatever the file is called

  def __len__(self) -> int:
    """How many."""

  def __getitem__(self, index: int) -> dict[str, Any]:
    """One row; raises BadRow where the line is no row."""

  def where(self, index: int) -> str:
    """Where the row stands: FILE:LINE, or FILE row NUMBER."""


def open(path: str | os.PathLike | Sequence[str], split: str | None = None) -> Rows:
  """Opens JSON lines (.gz too), parquet, csv, arrow, a directory, a glob, a list, or a hub id.

  A directory is one that `datasets` saved, or holds files named after their split. What exists here
  never touches the network. Raises FileNotFoundError or ValueError that names what is missing.
  """
  if isinstance(path, (list, tuple)):
    if not path:
      raise ValueError("data.path is an empty list: name at least one file")
    return _concatenate([open(each, split) for each in path])
  text = os.path.expanduser(os.fspath(path))  # type: ignore[arg-type]
  if not text:
    raise ValueError("data.path is empty: name a file, a directory or a hub id")
  if os.path.isdir(text):
    return _open_directory(pathlib.Path(text), split)
  if os.path.exists(text):
    return _open_file(pathlib.Path(text))
  if any(sign in text for sign in "*?["):
    found = sorted(glob.glob(text, recursive=True))
    if not found:
      raise FileNotFoundError(f"no file matches {text!r}: check data.path")
    return _concatenate([_open_file(pathlib.Path(each)) for each in found])
  if _kind(pathlib.Path(text)) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", text):
    raise FileNotFoundError(f"no such file: {text}; check data.path")
  return _open_hub(text, split)


class Lines:
  """JSON lines mapped from disk, validated a line at a time; 16 bytes of memory a row."""

  def __init__(self, path: str | os.PathLike) -> None:
    """Finds the lines of a plain or gzip'd file; blank lines and a byte order mark are no rows."""
    self.name = os.fspath(path)
    self._starts, self._numbers = array("q"), array("q")
    hasher = xxhash.xxh3_128()
    with _plain(pathlib.Path(path)) as file:
      head = file.read(4096)
      _check_head(head, self.name)
      offset = 3 if head.startswith(b"\xef\xbb\xbf") else 0
      file.seek(offset)
      for number, line in enumerate(file, 1):
        if line.strip():
          self._starts.append(offset)
          self._numbers.append(number)
          hasher.update(line)
        offset += len(line)
      if not self._starts:
        raise ValueError(
          f"0 rows in {self.name}: it is empty; give a file with a JSON object a line"
        )
      self._starts.append(offset)
      self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    self.digest = hasher.hexdigest()

  def __len__(self) -> int:
    return len(self._numbers)

  def where(self, index: int) -> str:
    """FILE:LINE, lines from 1."""
    return f"{self.name}:{self._numbers[index]}"

  def __getitem__(self, index: int) -> dict[str, Any]:
    start = self._starts[index]
    # Blank lines may follow before the next row; JSON does not mind them.
    line = self._text[start : self._starts[index + 1]]
    try:
      row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
      place = f"byte {error.start + 1} of the line, byte {start + error.start} of the file"
      raise BadRow("not_utf8", f"{place} is {line[error.start]:#04x}") from None
    except (ValueError, RecursionError) as error:
      raise BadRow("broken_json", str(error) or type(error).__name__) from None
    if not isinstance(row, dict):
      raise BadRow("not_object", f"it is a {type(row).__name__}")
    return row


class Table:
  """A `datasets` table, memory-mapped by that library."""

  def __init__(self, dataset: Any, name: str, digest: str = "") -> None:
    """Wraps a datasets.Dataset; its own fingerprint stands for the content unless one is given."""
    if not len(dataset):
      raise ValueError(f"0 rows in {name}: it is empty")
    self.name, self.digest = name, digest or dataset._fingerprint
    self._dataset = dataset

  def __len__(self) -> int:
    return len(self._dataset)

  def where(self, index: int) -> str:
    """NAME row NUMBER, rows from 0."""
    return f"{self.name} row {index}"

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._dataset[index]


class Concatenation:
  """Several sources, one after the other."""

  def __init__(self, parts: Sequence[Rows]) -> None:
    """Keeps the order of the parts."""
    self.parts = parts
    self.name = ", ".join(part.name for part in parts)
    self.digest = xxhash.xxh3_128_hexdigest(" ".join(part.digest for part in parts).encode())
    self._ends = [0]
    for part in parts:
      self._ends.append(self._ends[-1] + len(part))

  def __len__(self) -> int:
    return self._ends[-1]

  def _find(self, index: int) -> tuple[Rows, int]:
    part = bisect.bisect_right(self._ends, index) - 1
    return self.parts[part], index - self._ends[part]

  def where(self, index: int) -> str:
    """What the part says."""
    part, inner = self._find(index)
    return part.where(inner)

  def __getitem__(self, index: int) -> dict[str, Any]:
    part, inner = self._find(index)
    return part[inner]


def _concatenate(parts: list[Rows]) -> Rows:
  return parts[0] if len(parts) == 1 else Concatenation(parts)


def _kind(path: pathlib.Path) -> str:
  suffixes = [suffix.lower() for suffix in path.suffixes]
  if suffixes and suffixes[-1] == ".gz":
    return "lines" if suffixes[-2:-1] and suffixes[-2] in LINES else ""
  if suffixes and suffixes[-1] in LINES:
    return "lines"
  return TABLES.get(suffixes[-1], "") if suffixes else ""


def _open_file(path: pathlib.Path) -> Rows:
  kind = _kind(path)
  if not kind:
    readable = ", ".join((*LINES, ".jsonl.gz", *TABLES))
    raise ValueError(f"{path} is of no kind that can be read; readable are {readable}")
  if path.stat().st_size == 0:
    raise ValueError(f"0 rows in {path}: it is empty; give a file with rows")
  if kind == "lines":
    return Lines(path)
  import datasets

  with path.open("rb") as file:
    hasher = xxhash.xxh3_128()
    while block := file.read(1 << 20):
      hasher.update(block)
  try:
    if kind == "arrow":
      table = datasets.Dataset.from_file(os.fspath(path))
    elif kind == "csv":
      table = datasets.Dataset.from_csv(os.fspath(path), sep="\t" if path.suffix == ".tsv" else ",")
    else:
      table = datasets.Dataset.from_parquet(os.fspath(path))
  except Exception as error:  # the library has no common base class for what it raises
    raise ValueError(
      f"{path} cannot be read as {kind}: {_first_line(error)}; write it again"
    ) from None
  return Table(table, os.fspath(path), hasher.hexdigest())


def _open_directory(path: pathlib.Path, split: str | None) -> Rows:
  if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
    import datasets

    return _choose(datasets.load_from_disk(os.fspath(path)), os.fspath(path), split)
  files = [
    each for folder in (path, path / "data") for each in sorted(folder.glob("*")) if _kind(each)
  ]
  splits = sorted({re.split(r"[.-]", each.name)[0] for each in files})
  if not files:
    raise FileNotFoundError(
      f"no data file in {path}: it needs .jsonl, .jsonl.gz, .parquet or .arrow"
    )
  if split not in splits:
    raise ValueError(
      f"{path} holds the splits {', '.join(splits)}: name one of them, not {split!r}"
    )
  return _concatenate([_open_file(e) for e in files if re.split(r"[.-]", e.name)[0] == split])


def _open_hub(name: str, split: str | None) -> Rows:
  hub.require(name)
  import datasets

  path, _, subset = name.partition(":")
  try:
    found = datasets.load_dataset(path, subset or None, token=hub.token())
  except Exception as error:  # connection, permission, unknown configuration: no common base class
    raise hub.missing(name, error) from None
  return _choose(found, name, split)


def _choose(found: Any, name: str, split: str | None) -> Rows:
  if not hasattr(found, "keys"):
    return Table(found, name)
  if split not in found:
    raise ValueError(f"{name} holds the splits {', '.join(found)}: name one of them, not {split!r}")
  return Table(found[split], f"{name}[{split}]")


def _plain(path: pathlib.Path) -> BinaryIO:
  """The file itself, or its gunzipped text in a temporary file that vanishes when closed."""
  if path.suffix != ".gz":
    return path.open("rb")
  text = tempfile.TemporaryFile()  # noqa: SIM115 the caller closes it
  try:
    with gzip.open(path) as packed:
      while block := packed.read(1 << 20):
        text.write(block)
  except (EOFError, zlib.error, gzip.BadGzipFile) as error:
    text.close()
    raise ValueError(f"{path} is a broken or cut-off gzip file: {error}; fetch it again") from None
  text.seek(0)
  return text


def _check_head(head: bytes, name: str) -> None:
  if head.startswith((b"\xff\xfe", b"\xfe\xff")):
    raise ValueError(f"{name} is UTF-16: save it as UTF-8")
  if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
    raise ValueError(f"{name} is one JSON array: write a JSON object a line (jq -c '.[]')")


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]
