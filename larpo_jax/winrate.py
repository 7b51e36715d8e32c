r"""Win rate and length-controlled win rate of annotations in AlpacaEval's format, as JSON.

    python -m larpo_jax.winrate annotations.json

The file is a JSON list of {"instruction", "output_1", "output_2", "preference"}, as AlpacaEval
writes it; `larpo_jax.evaluators.winrate` says what is computed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from larpo_jax import workdir
from larpo_jax.evaluators import winrate


def main(argv: list[str] | None = None) -> int:
  """Prints; a user's mistake ends in one sentence."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("file", type=pathlib.Path, help="a JSON list of annotations")
  options = parser.parse_args(argv)
  try:
    rows = json.loads(options.file.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
      raise ValueError(f"{options.file} is no JSON list of annotations")
    found = winrate.win_rate(rows)
  except (ValueError, OSError) as error:
    print(f"larpo_jax: error: {error}", file=sys.stderr)
    return 1
  print(json.dumps(workdir.plain(found._asdict()), indent=2))
  return 0


if __name__ == "__main__":
  sys.exit(main())
