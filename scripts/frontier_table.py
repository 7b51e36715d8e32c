"""Arms at several strengths of the reference: reward and KL of each, and their differences.

    python scripts/frontier_table.py runs/frontier --metric sampled/gold/reward
    python scripts/frontier_table.py runs/frontier --first "negatives=unrelated" --along beta

A Markdown table. A row is an arm, a cell the mean of the metric over seeds and, in brackets, the KL
to the start in nats. Then the arm minus the first one, each at the same values and then the mean
over these, seed by seed: the 95 % t interval of other seeds and its p, not corrected for the number
of arms; the paired bootstrap over seeds and prompts; and the same at the largest KL that both have
reached on the way, where runs were evaluated there.
"""

import argparse
from collections.abc import Mapping, Sequence
import pathlib
import statistics

from larpo_jax.report import collect, frontier, series
from larpo_jax.report import statistics as tests
from larpo_jax.report.collect import Run

Arm = Mapping[float, Mapping[int, Run]]  # value of the axis -> seed -> run


def arms(runs: Sequence[Run], along: str) -> dict[str, dict[float, dict[int, Run]]]:
  """Runs by what they are apart from the axis; ValueError where none has it."""
  found: dict[str, dict[float, dict[int, Run]]] = {}
  for run in runs:
    if along in run.varies:
      name = ", ".join(f"{key}={value}" for key, value in run.varies.items() if key != along)
      found.setdefault(name, {}).setdefault(run.varies[along], {})[run.seed] = run
  if not found:
    raise ValueError(f"no run has {along}; what varies: {', '.join(collect.axes(runs))}")
  return found


def cell(runs: Mapping[int, Run], metric: str) -> str:
  """Mean and KL of the runs of an arm at one value."""
  mean = lambda name: statistics.mean(run.after[name] for run in runs.values())  # noqa: E731
  kl = all(frontier.KL in run.after for run in runs.values())
  return f"{mean(metric):.3f}" + (f" ({mean(frontier.KL):.2f})" if kl else "")


def differences(arm: Arm, first: Arm, metric: str) -> list[str]:
  """The arm minus the first: cells of the t interval, p, the bootstrap, and at equal KL."""
  values = sorted(arm.keys() & first.keys())
  both = [set(arm[value]) & set(first[value]) for value in values]
  seeds = sorted(set.intersection(*both)) if both else []
  if not seeds:
    return [""] * 4
  sides, prompts, matched = [], [], {seed: [] for seed in seeds}
  for side in (arm, first):
    means = lambda seed, side=side: (side[value][seed].after[metric] for value in values)  # noqa: E731
    sides.append({seed: statistics.mean(means(seed)) for seed in seeds})
    prompts.append({seed: _prompts([side[value][seed] for value in values], metric)
                    for seed in seeds})  # fmt: skip
  for seed in seeds:
    for value in values:
      here, there = (_way(side[value][seed], metric) for side in (arm, first))
      found = frontier.matched({seed: here}, {seed: there})
      matched[seed] += [found.contrast.difference] if found else []
  drawn = tests.by_prompt(*prompts)
  whole = {seed: statistics.mean(each) for seed, each in matched.items() if each}
  t = tests.contrast(*sides)
  return [
    _interval(t.difference, t.low, t.high),
    f"{t.p:.2g}",
    f"[{drawn.low:+.3f}, {drawn.high:+.3f}]" if drawn else "",
    _matched(whole),
  ]


def _prompts(runs: Sequence[Run], metric: str) -> dict[collect.Prompt, tuple[float, float]]:
  """Each prompt's mean over the runs that have it, and its weight."""
  each = [collect.prompts(run, metric) for run in runs]
  shared = set.intersection(*map(set, each))
  return {key: (statistics.mean(found[key][0] for found in each), each[0][key][1])
          for key in sorted(shared)}  # fmt: skip


def _way(run: Run, metric: str) -> frontier.Path:
  return frontier.path(run, series.read(run), metric)


def _matched(whole: Mapping[int, float]) -> str:
  if len(whole) < 2:
    return ""
  t = tests.contrast(whole, dict.fromkeys(whole, 0.0))
  return f"{_interval(t.difference, t.low, t.high)}, p = {t.p:.2g}"


def _interval(middle: float, low: float, high: float) -> str:
  return f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"


def table(runs: Sequence[Run], metric: str, along: str, first: str) -> list[str]:
  """The lines; ValueError where no arm is called first."""
  found = arms(runs, along)
  first = first or next(iter(found))
  if first not in found:
    raise ValueError(f"no arm is {first!r}; there are: {'; '.join(found)}")
  values = sorted({value for by in found.values() for value in by})
  titles = ["arm", *(f"{along} {value:g}" for value in values)]
  titles += ["minus the first", "p", "bootstrap", "at equal KL"]
  lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
  for name, by in found.items():
    cells = [cell(by[value], metric) if value in by else "" for value in values]
    rest = [""] * 4 if name == first else differences(by, found[first], metric)
    lines.append("| " + " | ".join([name or "all", *cells, *rest]) + " |")
  return lines


def main() -> None:
  """Prints the table of a sweep."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("directory", type=pathlib.Path)
  parser.add_argument("--metric", default="", help="default: gold/reward or accuracy")
  parser.add_argument("--along", default="beta", help="what the values are of")
  parser.add_argument("--first", default="", help="the arm that others are compared with")
  options = parser.parse_args()
  runs, missing = collect.runs(options.directory)
  try:
    metric = collect.metric_of(runs, options.metric)
    lines = table(runs, metric, options.along, options.first)
  except ValueError as error:
    parser.error(str(error))
  before = statistics.mean(run.before[metric] for run in runs)
  print(f"{metric}, {before:.3f} before; {len(runs)} runs, {len(missing)} missing\n")
  print("\n".join(lines))


if __name__ == "__main__":
  main()
