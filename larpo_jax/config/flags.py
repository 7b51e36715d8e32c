"""The command line: overrides of a config that say what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
import sys

from absl import app

from larpo_jax.config.fields import FIELDS, Spec
from larpo_jax.config.validation import nearest


def parse_flags(argv: Sequence[str]) -> list[str]:
  """For `app.run(main, flags_parser=parse_flags)`: one line on an override of an unknown key.

  ml_collections raises a bare AttributeError there. Stray words come back, as absl gives them to
  main; exits with 1 on what cannot be parsed.
  """
  try:
    return app.parse_flags_with_usage(list(argv))
  except (AttributeError, KeyError, TypeError) as error:
    explained = explain(argv)
    if explained is None:
      raise
    print(f"larpo_jax: error: {explained}", file=sys.stderr)
    raise SystemExit(1) from error


def explain(argv: Sequence[str]) -> str | None:
  """What is wrong with the first `--config.KEY=VALUE` whose key is unknown; None if none is."""
  for word in argv:
    if not word.startswith(("--config.", "-config.")):
      continue
    key = word.lstrip("-").split("=")[0].removeprefix("config.")
    if key in FIELDS:
      continue  # known, so it is missing in this config only: said below
    node = next((name for name in FIELDS if key.startswith(f"{name}.")), None)
    if node and isinstance(FIELDS[node], Spec):
      inside = key.removeprefix(f"{node}.")
      return (
        f"--config.{key}: this config's {node} has no {inside!r}{_also(inside)}; "
        f"an argument that its function does take has to be written in the config file first"
      )
    return f"--config.{key} is unknown{_hint(key)}"
  for word in argv:
    key = word.lstrip("-").split("=")[0].removeprefix("config.")
    if word.startswith(("--config.", "-config.")) and key in FIELDS:
      stage = key.split(".")[0]
      return f"--config.{key}: this config has no {key!r}; write config.{stage} in its file first"
  return None


def _hint(key: str) -> str:
  """The nearest keys among those of the same node, else among all."""
  parent, _, _ = key.rpartition(".")
  siblings = [name for name in FIELDS if name.rpartition(".")[0] == parent]
  return nearest(key, siblings) or nearest(key, FIELDS)


def _also(argument: str) -> str:
  return nearest(argument, ["name", "beta", "weight", "label_smoothing"])
