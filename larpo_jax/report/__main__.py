r"""Which arm of a sweep is better, by how much, with what certainty.

    python -m larpo_jax.report runs/objectives --metric gold/reward --baseline "loss=pairwise.dpo"

Writes report.md and results.csv into the sweep's directory and prints the first. An arm is a point
of the sweep with all its seeds; it is compared with the baseline (the first arm, where none is
named) seed by seed: the mean difference, its 95 % interval, and the p value of a paired t test,
corrected for the number of arms (Holm). Where runs are missing, it says which.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import statistics as plain
import sys

from larpo_jax.report import collect, statistics
from larpo_jax.report.statistics import Contrast

SIGNIFICANT = 0.05
SHOWN = 10  # missing runs that are named


def report(directory: pathlib.Path, metric: str = "", baseline: str = "") -> str:
  """The report as Markdown; raises ValueError that lists what there is."""
  found, missing = collect.runs(directory)
  metric = collect.metric_of(found, metric)
  arms = collect.arms(found, metric)
  baseline = baseline or next(iter(arms))
  if baseline not in arms:
    raise ValueError(f"no arm {baseline!r}; there are: {'; '.join(arms)}")
  others = [arm for arm in arms if arm != baseline]
  contrasts = [statistics.contrast(arms[arm], arms[baseline]) for arm in others]
  corrected = statistics.holm([each.p for each in contrasts])
  known = dict(zip(others, zip(contrasts, corrected)))
  lines = [f"# {directory.name}: {metric}", "", *_answer(arms, baseline, known, metric), ""]
  lines += [
    f"| arm | {metric} | seeds | minus `{baseline}` | p (Holm) | effect |",
    "|---" * 6 + "|",
  ]
  lines += [_row(arm, values, known.get(arm)) for arm, values in arms.items()]
  lines += ["", f"Mean and standard deviation over seeds; differences seed by seed, with 95 % "
            f"intervals and p of paired t tests; effect: difference / its deviation. "
            f"{len(found)} runs."]  # fmt: skip
  if missing:
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    lines += ["", f"**{len(missing)} runs are missing**: {', '.join(missing[:SHOWN])}{more}."]
  return "\n".join(lines) + "\n"


def _answer(
  arms: dict[str, dict[int, float]],
  baseline: str,
  known: dict[str, tuple[Contrast, float]],
  metric: str,
) -> list[str]:
  """A sentence for each contrast, the highest arm first."""
  if not known:
    return [f"One arm, nothing to compare: {metric} {plain.fmean(arms[baseline].values()):.4g}."]
  ranked = sorted(known, key=lambda arm: -known[arm][0].difference)
  return [f"* {_sentence(arm, baseline, *known[arm])}" for arm in ranked]


def _sentence(arm: str, baseline: str, found: Contrast, p: float) -> str:
  text = f"`{arm}` - `{baseline}`: {found.difference:+.4g}"
  if math.isnan(found.low):
    return f"{text}, of one seed: nothing is certain; run more with --seeds"
  text += f" [{found.low:+.4g}, {found.high:+.4g}], p = {p:.2g}, n = {found.seeds} seeds: "
  if p >= SIGNIFICANT:
    return text + "no difference was shown"
  return text + ("better" if found.difference > 0 else "worse")


def _row(arm: str, values: dict[int, float], known: tuple[Contrast, float] | None) -> str:
  numbers = list(values.values())
  spread = f" ± {plain.stdev(numbers):.2g}" if len(numbers) > 1 else ""
  cells = [f"`{arm}`", f"{plain.fmean(numbers):.4g}{spread}", str(len(numbers))]
  if known is None:
    return f"| {' | '.join([*cells, 'baseline', '', ''])} |"
  found, p = known
  interval = "" if math.isnan(found.low) else f" [{found.low:+.4g}, {found.high:+.4g}]"
  shown = [f"{found.difference:+.4g}{interval}"]
  shown += ["", ""] if math.isnan(p) else [f"{p:.2g}", f"{found.effect:.2g}"]
  return f"| {' | '.join([*cells, *shown])} |"


def main(argv: list[str] | None = None) -> int:
  """Writes and prints; a user's mistake ends in one sentence."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("directory", type=pathlib.Path, help="a sweep's --workdir")
  parser.add_argument("--metric", default="", help="default: gold/reward, or accuracy")
  parser.add_argument("--baseline", default="", help="an arm; default: the first")
  options = parser.parse_args(argv)
  try:
    text = report(options.directory, options.metric, options.baseline)
    collect.write_csv(collect.runs(options.directory)[0], options.directory / "results.csv")
    (options.directory / "report.md").write_text(text, encoding="utf-8")
  except (ValueError, OSError) as error:
    print(f"larpo_jax: error: {error}", file=sys.stderr)
    return 1
  print(text)
  print(f"wrote {options.directory / 'report.md'} and {options.directory / 'results.csv'}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
