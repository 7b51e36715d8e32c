"""Refusal of a config that cannot run, before any device works."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import difflib
import importlib
import inspect
import math
from typing import Any

import ml_collections
import numpy as np

from larpo_jax import lookup, worlds
from larpo_jax.config import consistency
from larpo_jax.config.fields import FIELDS, Field, Free, Node, Spec
from larpo_jax.config.redaction import flat, plain
from larpo_jax.data import novelty

_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def validate(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """A locked copy with the defaults of what was left out; refuses what cannot run.

  Raises ValueError of one sentence that names the key, and the nearest right one where it is
  unknown: typos anywhere, values of the wrong type, nan, out of range or empty, unknown names and
  arguments of spec nodes, settings that contradict each other.
  """
  tree = plain(config)
  _walk(tree, "")
  consistency.check(tree)
  _optimizer(tree["optimizer"])
  for name, entry in FIELDS.items():
    if isinstance(entry, Spec):
      _spec(name, consistency.get(tree, name), entry)
  _tried(tree)
  complete = ml_collections.ConfigDict(tree)
  complete.lock()
  return complete


def nearest(word: str, words: Iterable[str]) -> str:
  """ " (did you mean ...?)", all that are equally near; "" where nothing is."""
  close = difflib.get_close_matches(word, list(words), n=3, cutoff=0.4)
  likeness = [difflib.SequenceMatcher(None, one, word).ratio() for one in close]
  best = [repr(one) for one, like in zip(close, likeness) if like == likeness[0]]
  return f" (did you mean {' or '.join(best)}?)" if best else ""


def _walk(tree: dict[str, Any], prefix: str) -> None:
  """Checks every key and value below a node, and fills in what is missing."""
  children = {key[len(prefix) :].split(".")[0]: None for key in FIELDS if key.startswith(prefix)}
  for key in tree:
    if key not in children and not (prefix == "optimizer." and key in _optax(tree.get("name"))):
      inside = f"config.{prefix[:-1]}" if prefix else "the config"
      raise ValueError(
        f"config.{prefix}{key} is unknown{nearest(key, children)}; {inside} has "
        f"{', '.join(children)}"
      )
  for key in children:
    name, entry = prefix + key, FIELDS.get(prefix + key)
    if key not in tree and isinstance(entry, Field) and not entry.required:
      if entry.filled:
        tree[key] = entry.default
    elif isinstance(entry, Field):
      _value(name, tree.get(key), entry)
    elif isinstance(entry, Node | Spec) and tree.get(key) is None:
      tree[key] = None
    elif not isinstance(entry, Spec):
      node = tree.setdefault(key, {})
      if not isinstance(node, dict):
        raise ValueError(f"config.{name}={node!r} must be a dict of settings")
      if isinstance(entry, Free):
        _free(name, node, entry)
      else:
        _walk(node, f"{name}.")


def _value(name: str, value: Any, field: Field) -> None:
  if isinstance(field.default, tuple):
    kind = field.default[0] if field.default else field.item
    if not isinstance(value, list | tuple) or not (value or field.empty):
      listed = ", ".join(field.choices) or ("texts" if kind == "" else "numbers")
      raise ValueError(f"config.{name}={value!r} must be a tuple of {listed}")
    for item in value:
      _value(name, item, dataclasses.replace(field, default=kind))
    return
  _type(name, value, field.default)
  if isinstance(value, str):
    if not value.strip() and not field.empty:
      raise ValueError(f"config.{name} is empty; give it a value")
    if field.choices and value not in field.choices:
      listed = ", ".join(field.choices)
      raise ValueError(f"config.{name}={value!r} must be one of {listed}")
  elif not field.low <= value <= field.high or value <= field.above:
    bounds = [f"above {field.above}"] if math.isfinite(field.above) else []
    bounds += [f"at least {field.low}"] if math.isfinite(field.low) else []
    bounds += [f"at most {field.high}"] if math.isfinite(field.high) else []
    raise ValueError(f"config.{name}={value} must be {' and '.join(bounds)}")


def _type(name: str, value: Any, default: Any) -> None:
  """The default's type; a whole number is a number, a truth value is none, nan and inf are not."""
  kind = type(default)
  right = isinstance(value, int | float if kind is float else kind)
  if kind in _KINDS and (not right or isinstance(value, bool) != (kind is bool)):
    raise ValueError(f"config.{name}={value!r} must be {_KINDS[kind]}")
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"config.{name}={value} must be a finite number")


def _free(name: str, node: dict[str, Any], entry: Free) -> None:
  for key, value in node.items():
    if entry.keys and key not in entry.keys:
      listed = ", ".join(entry.keys)
      raise ValueError(f"config.{name}.{key} is unknown{nearest(key, entry.keys)}; known: {listed}")
    if entry.values and value not in entry.values:
      raise ValueError(f"config.{name}.{key}={value!r} must be one of {', '.join(entry.values)}")
    for inner, leaf in flat({key: value}).items():
      _type(f"{name}.{inner}", leaf, leaf)


def _spec(name: str, spec: Any, entry: Spec) -> None:
  """A node, or several with weights: a name that is there, arguments that it takes."""
  if entry.optional and spec is None:
    return
  if entry.several and isinstance(spec, list | tuple):
    if not spec:
      raise ValueError(f"config.{name} is empty; give it a spec such as dict(name=...)")
    for index, node in enumerate(spec):
      weight = node.get("weight", 1.0) if isinstance(node, dict) else 1.0
      _value(f"{name}[{index}].weight", weight, Field(1.0))
      bare = {k: v for k, v in node.items() if k != "weight"} if isinstance(node, dict) else node
      _spec(f"{name}[{index}]", bare, dataclasses.replace(entry, several=False))
    return
  if not isinstance(spec, dict):
    raise ValueError(f"config.{name}={spec!r} must be a spec such as dict(name=...)")
  if not isinstance(spec.get("name"), str) or not spec["name"]:
    listed = ", ".join(spec) or "nothing"
    raise ValueError(f"config.{name} needs a name, as in dict(name=...); it has {listed}")
  arguments = _arguments(name, dict(spec), entry)
  if isinstance(spec.get("kernel"), dict):  # of a wrapper; what it is around is a spec too
    _spec(f"{name}.kernel", spec["kernel"], dataclasses.replace(entry, several=False))
  for key, default in arguments.items():
    given = spec.get(key, default)
    if not isinstance(given, tuple | dict) and not (given is None and default is None):
      said = default not in (None, inspect.Parameter.empty)
      _type(
        f"{name}.{key}", given, default if said else _annotated(spec["name"], key, entry, given)
      )
  kernel = entry.package == "larpo_jax.losses"  # else the function says what it takes
  if kernel and isinstance(spec.get("beta"), int | float) and spec["beta"] <= 0:
    raise ValueError(f"config.{name}.beta={spec['beta']} must be above 0")


def _annotated(name: str, key: str, entry: Spec, given: Any) -> Any:
  """A value of the type that an argument without a default of one is annotated with, or given."""
  if entry.package == "larpo_jax.worlds":  # whose arguments are those of several functions
    return given
  parameters = inspect.signature(lookup.find(name, entry.package)).parameters
  annotation = str(parameters[key].annotation)
  kinds = {"int": 0, "float": 0.0, "bool": False, "str": ""}
  return kinds.get(annotation.removesuffix(" | None"), given)


def _tried(tree: Mapping[str, Any]) -> None:
  """Calls on next to nothing what a round calls, so that what is refused is said at once."""
  scores, rng = np.arange(2.0), np.random.default_rng(0)
  unseen = novelty.Sampled([], 1, lambda number: np.zeros((0, 1, 1)), 0)
  given: dict[str, tuple[Any, ...]] = {
    "reward": ([], []),
    "rounds.lists": (scores, rng),
    "rounds.noise": (scores, scores, rng),
    "rounds.novelty": (unseen,),
    "rounds.curriculum": (np.arange(1e3), rng),
  }
  for name, arguments in given.items():
    spec, entry = consistency.get(tree, name), FIELDS[name]
    # A checkpoint is read when it is needed.
    if spec is None or "path" in spec or not isinstance(entry, Spec):
      continue
    try:
      lookup.resolve(spec, entry.package)(*arguments)
    except ValueError as error:
      raise ValueError(f"config.{name}: {error}") from error


def _arguments(name: str, spec: dict[str, Any], entry: Spec) -> dict[str, Any]:
  """What the spec's function accepts, with defaults; ValueError where the spec does not fit it."""
  try:
    if entry.package == "larpo_jax.worlds":
      return _world(spec)
    if entry.module:
      module = importlib.import_module(f"{entry.package}.{entry.module}")
      known = [f"{entry.module}.{function}" for function in lookup.functions(module)]
      if spec["name"] not in known:
        given = spec.get("name")
        raise ValueError(f"no {given!r}{nearest(str(given), known)}; there are: {', '.join(known)}")
    lookup.resolve(spec, entry.package)
    return lookup.keywords(lookup.find(spec["name"], entry.package))
  except ValueError as error:
    raise ValueError(f"config.{name}: {error}") from error


def _world(spec: dict[str, Any]) -> dict[str, Any]:
  """A world is a module: its name, and what its problems and demonstrations take of a config."""
  name = spec.pop("name")
  module = worlds.find(name)
  accepted = {**lookup.keywords(module.problems), **lookup.keywords(module.demonstrations)}
  for key in ("seed", "split", "start", "draw"):  # the run gives these
    accepted.pop(key, None)
  for key in spec:
    if key not in accepted:
      raise ValueError(
        f"{name} takes no {key!r}{nearest(key, accepted)}; its arguments: {', '.join(accepted)}"
      )
  return accepted


def _optimizer(node: Mapping[str, Any]) -> None:
  name, taken = node["name"], _optax(node["name"])
  ours = {"name", "learning_rate", "schedule", "warmup", "clip"}
  for key, value in node.items():
    if key not in ours and key not in taken:
      raise ValueError(
        f"config.optimizer.{key}: {name} takes no {key!r}; write the whole node, "
        f"config.optimizer = dict(name={name!r}, learning_rate=...), without it"
      )
    _type(f"optimizer.{key}", value, value)


def _optax(name: Any) -> list[str]:
  """What optax's optimizer of that name takes."""
  import optax

  choices = FIELDS["optimizer.name"]
  if not isinstance(choices, Field) or name not in choices.choices:
    return []
  return list(inspect.signature(getattr(optax, name)).parameters)
