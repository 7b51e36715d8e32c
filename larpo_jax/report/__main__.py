r"""Which arm of a sweep is better, by how much, with what certainty, in pictures.

    python -m larpo_jax.report runs/objectives --metric gold/reward --baseline "loss=pairwise.dpo"

Writes report.html (one file, no network needed), report.md, table.tex, results.csv and plots/*.png
into the sweep's directory. An arm is a point of the sweep with all its seeds; it is compared with
the baseline (the first arm, where none is named) seed by seed. Of several directories, each gets
its report, and --output one on which arm wins where. Or two runs, each by its --workdir:

    python -m larpo_jax.report --compare runs/a runs/b

says in which settings and results they differ, and from which step on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys

from larpo_jax.report import (
  across,
  collect,
  compare,
  findings,
  latex,
  markdown,
  page,
  plots,
  sections,
  tables,
)
from larpo_jax.report import samples as samples_lib
from larpo_jax.report.findings import Findings
from larpo_jax.report.sections import Section

SAMPLES = 30


def write(
  directory: pathlib.Path, metric: str = "", baseline: str = "", samples: int = SAMPLES
) -> tuple[Findings, list[Section]]:
  """Writes a sweep's report into its directory; raises ValueError that says what is wrong."""
  found = findings.find(directory, metric, baseline)
  drawn = plots.plots(found, directory / "plots")
  chosen = sections.sections(found, drawn, samples_lib.samples(found.runs, samples))
  _write(directory / "report", sections.title(found), chosen)
  (directory / "table.tex").write_text(latex.latex(tables.arms(found)), encoding="utf-8")
  collect.write_csv(found.runs, directory / "results.csv")
  return found, chosen


def write_across(every: Sequence[Findings], directory: pathlib.Path) -> list[Section]:
  """Writes across.html and across.md of several sweeps' findings."""
  chosen = across.sections(every, directory)
  _write(directory / "across", "Which arm wins where", chosen)
  return chosen


def _write(path: pathlib.Path, title: str, chosen: Sequence[Section]) -> None:
  path.with_suffix(".html").write_text(page.html(title, chosen), encoding="utf-8")
  path.with_suffix(".md").write_text(markdown.text(title, chosen), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
  """Writes and prints; a user's mistake ends in one sentence."""
  options = _options(argv)
  try:
    if options.compare:
      if len(options.directories) != 2:
        raise ValueError("--compare takes the workdirs of two runs")
      print(compare.text(*options.directories))
      return 0
    every = []
    for directory in options.directories:
      found, chosen = write(directory, options.metric, options.baseline, options.samples)
      every.append(found)
      print(markdown.text(sections.title(found), chosen[:2]))
      print(f"wrote report.html, report.md, table.tex, results.csv and plots into {directory}")
    if len(every) > 1:
      output = options.output or pathlib.Path(
        os.path.commonpath([path.absolute() for path in options.directories])
      )
      output.mkdir(parents=True, exist_ok=True)
      print(markdown.text("Which arm wins where", write_across(every, output)[:2]))
      print(f"wrote across.html, across.md and plots/across.png into {output}")
  except (ValueError, OSError) as error:
    print(f"larpo_jax: error: {error}", file=sys.stderr)
    return 1
  return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("directories", type=pathlib.Path, nargs="+", help="a sweep's --workdir")
  parser.add_argument("--metric", default="", help="default: gold/reward, or accuracy")
  parser.add_argument("--baseline", default="", help="an arm; default: the first")
  parser.add_argument(
    "--samples", type=int, default=SAMPLES, help="prompts whose answers are shown; default: 30"
  )
  parser.add_argument(
    "--output", type=pathlib.Path, help="of several: default: the directory that holds them all"
  )
  parser.add_argument("--compare", action="store_true", help="two runs instead of sweeps")
  return parser.parse_args(argv)


if __name__ == "__main__":
  sys.exit(main())
