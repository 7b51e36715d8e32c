"""The command line: overrides of a config that say what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools
import re
import sys
from typing import Any

from absl import app, flags
from ml_collections.config_flags import config_path

from larpo_jax.config.fields import FIELDS, Free, Spec
from larpo_jax.config.redaction import plain
from larpo_jax.config.validation import nearest

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
_NOTHING = object()


def parse_flags(argv: Sequence[str]) -> list[str]:
  """For `app.run(main, flags_parser=parse_flags)`: one line on an override of an unknown key.

  ml_collections ends in a traceback there, and where the file is missing. Stray words come back,
  as absl gives them to main; exits with 1 on what cannot be parsed.
  """
  try:
    return app.parse_flags_with_usage(list(argv))
  except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
    unread = isinstance(error, OSError)  # the file
    explained = " ".join(str(error).split()) if unread else explain(argv, _file(argv))
    if explained is None:
      raise
    print(f"larpo_jax: error: {explained}", file=sys.stderr)
    raise SystemExit(1) from error


def explain(argv: Sequence[str], config: Mapping[str, Any]) -> str | None:
  """What is wrong with the first `--config.KEY=VALUE` whose KEY config lacks; None if none is."""
  tree = plain(config)
  keys = [found[1] for found in map(_OVERRIDE.match, argv) if found]
  return next((_missing(key, tree) for key in keys if _get(key, tree) is _NOTHING), None)


def _file(argv: Sequence[str]) -> Mapping[str, Any]:
  """The config that the command line names, without its overrides."""
  config: Mapping[str, Any] = {}
  for word, following in itertools.pairwise([*argv, ""]):
    name, given, value = word.partition("=")
    if name in ("--config", "-config"):
      config = flags.FLAGS["config"].parser.parse(value if given else following) or {}
  return config


def _get(key: str, tree: Any) -> Any:
  """What a tree has at a key such as "loss.beta" or "loss[0].beta"."""
  try:
    for part in config_path.split(key):
      tree = tree[part]
  except (LookupError, TypeError, ValueError):
    return _NOTHING
  return tree


def _missing(key: str, tree: Mapping[str, Any]) -> str:
  if key in FIELDS:  # known, so it is missing in this config only
    ways = itertools.accumulate(key.split("."), "{}.{}".format)
    node = next(way for way in ways if _get(way, tree) in (None, _NOTHING))
    return f"--config.{key}: this config has no {key!r}; write config.{node} in its file first"
  parent = next((name for name in FIELDS if key.startswith((f"{name}.", f"{name}["))), "")
  if not isinstance(FIELDS.get(parent), Spec | Free):
    return f"--config.{key} is unknown{_hint(key, tree)}"
  inside, node = key.removeprefix(parent).lstrip("."), _get(parent, tree)
  there = node if isinstance(node, Mapping) else {}
  return (
    f"--config.{key}: this config's {parent} has no {inside!r}{nearest(inside, there)}; "
    "what it does take has to be written in the config file first"
  )


def _hint(key: str, tree: Mapping[str, Any]) -> str:
  """The nearest keys among those of the same node, else among all that this config has."""
  parent, _, _ = key.rpartition(".")
  siblings = [name for name in FIELDS if name.rpartition(".")[0] == parent]
  there = [name for name in FIELDS if _get(name, tree) is not _NOTHING]
  return nearest(key, siblings) or nearest(key, there)
