"""Explains losses: formula, source, what they need, defaults, traps, and how they behave.

python -m larpo_jax.explain                                  # all there are
python -m larpo_jax.explain pairwise.simpo --set beta=2.5
python -m larpo_jax.explain "wrappers.robust(pairwise.ipo)"
python -m larpo_jax.explain pairwise.dpo pairwise.ipo_sum --plot losses.png
python -m larpo_jax.explain --markdown > docs/losses.md
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
import difflib
import os
import sys
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
  """Prints what is asked for; a user's mistake ends in one sentence and exit code 1."""
  options = _parser().parse_args(argv)
  try:
    print(run(options))
  except (ValueError, TypeError, OSError) as error:
    print(f"larpo_jax: error: {error}", file=sys.stderr)
    return 1
  return 0


def run(options: argparse.Namespace) -> str:
  """The text that the options ask for; raises ValueError where they are wrong."""
  from larpo_jax.explain import pages, plots, subject  # jax, once the command line is right

  settings = dict(map(_setting, options.set))
  losses = [subject.parse(name) for name in options.names]
  _check(settings, {key for loss in losses for key in subject.accepted(loss)})
  losses = [subject.given(loss, settings) for loss in losses]
  if options.plot:
    plots.draw(losses, options.plot)
    return f"wrote {options.plot}"
  if options.markdown:
    return "\n".join(map(pages.section, losses)) if losses else pages.markdown().rstrip()
  return "\n\n".join(map(pages.page, losses)) if losses else pages.overview()


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m larpo_jax.explain",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("names", nargs="*", metavar="NAME", help="FAMILY.LOSS or WRAPPER(LOSS)")
  parser.add_argument("--plot", metavar="FILE.png", help="draw the losses side by side")
  parser.add_argument(
    "--set",
    nargs="+",
    action="extend",
    default=[],
    metavar="KEY=VALUE",
    help="hyper-parameters, of every loss that has them; kernel.KEY is that of what is wrapped",
  )
  parser.add_argument("--markdown", action="store_true", help="as sections of docs/losses.md")
  return parser


def _setting(text: str) -> tuple[str, Any]:
  key, equals, value = text.partition("=")
  if not equals or not key:
    raise ValueError(f"--set {text}: has to be KEY=VALUE, such as beta=0.5")
  for read in (ast.literal_eval, float):  # float knows inf
    try:
      return key, read(value)
    except (ValueError, SyntaxError):
      pass
  return key, value  # a word


def _check(settings: dict[str, Any], known: set[str]) -> None:
  for key in settings:
    if key not in known:
      close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
      hint = f" (did you mean {close[0]!r}?)" if close else ""
      listed = ", ".join(sorted(known)) or "none"
      raise ValueError(f"--set {key}: no loss that is named takes it{hint}; there are: {listed}")


if __name__ == "__main__":
  # Before jax reads them: few numbers are computed here, so no accelerator and quick compilation.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
  sys.exit(main())
