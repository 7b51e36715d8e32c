"""What a sweep consists of: every point with every seed, named by what varies."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import ml_collections

from larpo_jax import config as configs

LONGEST = 120  # characters of a directory's name


class Point(NamedTuple):
  """One run of a sweep."""

  number: int  # of the point, as sweep() yields them
  seed: int
  varies: dict[str, Any]  # label -> value, the seed left out
  name: str  # of its directory
  config: ml_collections.ConfigDict  # validated


def points(
  base: Any, changes: Sequence[Mapping[str, Any]], seeds: int, only: Iterable[int] = ()
) -> list[Point]:
  """The runs of a sweep: each change of the base config, with `seeds` seeds from its own on.

  A change is {"data.batch_size": 8} or {"loss": dict(name=...)}, which replaces the whole node;
  only picks points by number. Raises ValueError that names the point whose config cannot run, where
  two points are the same, and where a number of `only` is none.
  """
  strangers = sorted(set(only) - set(range(len(changes))))
  if strangers:
    raise ValueError(f"no point {strangers[0]}: there are 0 to {len(changes) - 1}")
  found = []
  for number, (change, varies) in enumerate(zip(changes, labels(changes))):
    for seed in range(seeds):
      if only and number not in only:
        continue
      each = changed(base, {**change, "seed": change.get("seed", base.get("seed", 0)) + seed})
      try:
        checked = configs.validate(each)
      except ValueError as error:
        raise ValueError(f"point {number} ({_name(varies)}): {error}") from error
      name = f"{_name(varies)},seed={checked.seed}".removeprefix(",")
      found.append(Point(number, checked.seed, varies, name, checked))
  twice = {point.name for point in found if [p.name for p in found].count(point.name) > 1}
  if twice:
    raise ValueError(f"two points of the sweep are the same: {sorted(twice)[0]}")
  return found


def changes(path: str | os.PathLike, which: str = "") -> list[dict[str, Any]]:
  """What sweep() of an experiment file yields, or sweep_WHICH(); one empty change without any.

  Raises ValueError where the file has no sweep of that name, or an empty one.
  """
  spec = importlib.util.spec_from_file_location("experiment", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{path} is no Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  name = f"sweep_{which}" if which else "sweep"
  function = getattr(module, name, None)
  if function is None and not which:
    return [{}]
  if function is None:
    there = [key.removeprefix("sweep_") for key in vars(module) if key.startswith("sweep_")]
    raise ValueError(f"{path} has no {name}(); it has sweeps: {', '.join(there) or 'none'}")
  found = [dict(each) for each in function()]
  if not found:
    raise ValueError(f"{name}() of {path} yields nothing")
  return found


def crossed(changes: Sequence[Mapping[str, Any]], grids: Sequence[str]) -> list[dict[str, Any]]:
  """Each change with each value of each grid, a text such as "loss.beta=0.03,0.1,0.3".

  A value is a Python literal, or else a text. Raises ValueError on another text, and where a grid
  names a value or a key twice.
  """
  axes = [_axis(text) for text in grids]
  keys = [key for key, _ in axes]
  if len(set(keys)) < len(keys):
    twice = max(keys, key=keys.count)
    raise ValueError(f"--cross names {twice} twice: give all its values at once")
  every = itertools.product(changes, *(values for _, values in axes))
  return [{**change, **dict(zip(keys, values))} for change, *values in every]


def _axis(text: str) -> tuple[str, list[Any]]:
  key, _, listed = text.partition("=")
  values = [_literal(each) for each in listed.split(",")]
  if not key or "" in values or len({repr(value) for value in values}) < len(values):
    raise ValueError(f"--cross={text!r} must be like loss.beta=0.03,0.1,0.3, each value once")
  return key, values


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text.strip()


def changed(config: Any, change: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """A copy of a config with dotted keys set; a mapping replaces the whole node.

  Raises ValueError where a node on the way is missing.
  """
  tree = configs.plain(config)
  for key, value in change.items():
    *way, last = key.split(".")
    node = tree
    for part in way:
      if not isinstance(node.get(part), dict):
        raise ValueError(f"a sweep sets {key}, but the config has no node {part!r} there")
      node = node[part]
    node[last] = configs.plain(value)
  return ml_collections.ConfigDict(tree)


def labels(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """What varies, of each point: a short label of every key that has more than one value."""
  rows = [_flat({k: v for k, v in change.items() if k != "seed"}) for change in changes]
  keys = list(dict.fromkeys(key for row in rows for key in row))
  varying = [k for k in keys if len({json.dumps(r.get(k), default=str) for r in rows}) > 1]
  short = {key: _short(key, varying) for key in varying}
  return [{short[key]: row[key] for key in varying if key in row} for row in rows]


def _flat(change: Mapping[str, Any]) -> dict[str, Any]:
  """A sequence of kernels is one value."""
  found: dict[str, Any] = {}
  for key, value in change.items():
    found.update(configs.flat({key: value}))
  return found


def _short(key: str, keys: Sequence[str]) -> str:
  """The end of a dotted key that no other one has; a spec's name is called as its node."""
  parts = key.removesuffix(".name").split(".")
  others = [other.removesuffix(".name").split(".") for other in keys if other != key]
  for count in range(1, len(parts) + 1):
    if all(other[-count:] != parts[-count:] for other in others):
      return ".".join(parts[-count:])
  return key


def _name(varies: Mapping[str, Any]) -> str:
  """`loss=pairwise.dpo,beta=0.1`, as far as a file system takes it."""
  text = ",".join(f"{label}={_text(value)}" for label, value in varies.items())
  clean = re.sub(r"[^\w.+=,-]+", "_", text)
  if len(clean) > LONGEST:
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    clean = f"{clean[: LONGEST - 9]}-{digest}"
  return clean


def _text(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:g}"
  if isinstance(value, Mapping):
    return "+".join(f"{key}:{_text(item)}" for key, item in value.items())
  if isinstance(value, list | tuple):
    return "+".join(_text(item) for item in value)
  return str(value)


def written(config: Any, path: pathlib.Path) -> None:
  """Writes a config as JSON that `resolved.py` reads; ValueError where it holds a secret."""
  tree = configs.plain(config)
  if configs.redact(config) != tree:
    raise ValueError(
      "the config holds a secret, which a sweep would write down: use the environment"
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(tree, indent=2) + "\n"
  if path.exists() and path.read_text() != text:
    raise ValueError(
      f"{path} is of another sweep with a point of that name: give another --workdir, or delete it"
    )
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  temporary.write_text(text)
  os.replace(temporary, path)


def index(found: Sequence[Point]) -> Iterator[dict[str, Any]]:
  """The lines of an index: what each directory is."""
  for point in found:
    yield dict(name=point.name, point=point.number, seed=point.seed, varies=point.varies)
