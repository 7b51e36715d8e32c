"""The tables and the plot of what `bench_against.sh` measured.

    python scripts/bench_table.py runs/bench.jsonl --plot runs/bench.png

Prints, in Markdown, how many times faster than each peer this project trains and samples, how much
memory it needs of theirs, and what share of a matmul's rate it reaches. A number is the median over
the rounds, with (least..most) of them behind it where there are several, then the bar that was set
for it, and MISSED where it is on the wrong side of that. A ratio is of the two runs of one round
that stand beside each other; the time is the median of a run's steps, or what --timing names:
own_cpu_median_s is least disturbed by others, best_s most flattering.

The losses of the first twenty steps have to be the peer's in float32: TRL logs the mean of every
ten steps, so those are compared. Where one differs by more than 1e-4, or none can be compared
though TRL was run, the exit code is 1. --plot draws the runs of GROWTH=1, where they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
import json
import pathlib
import statistics
import sys
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SPECS = ("h256_v8k", "h256_v32k", "h512_v32k")
PRECOMPUTED, LIVE = "fp32_nogc_precompute", "fp32_nogc"
BF16 = ("bf16_nogc_precompute", "bf16_weights_nogc_precompute")
SPEED = {  # title: what it is against, and the bars of SPECS
  "TRL as it comes": (("default",), (4.0, 9.0, 5.0)),
  "TRL float32, no checkpointing, precomputed": ((PRECOMPUTED,), (5.3, 10.0, 6.5)),
  "TRL bfloat16, the faster of two": (BF16, (2.8, 6.0, 3.5)),
  "TRL float32, no checkpointing, live": ((LIVE,), (4.2, 9.0, 6.0)),
}
MEMORY = (0.45, 0.27, 0.37)  # of TRL float32 precomputed, at most
PEAK, LISTS, RESPONSES, GENERATE, CANDIDATES = 0.8, 1.7, 5.0, 2.0, 1.6
LOG_EVERY = 10  # steps whose mean TRL logs
COMPARED, TOLERANCE = 20, 1e-4  # steps, and how far a loss may be off
AXES = {
  "responses": "responses of a list",
  "response_max": "longest response (tokens)",
  "layers": "layers",
  "devices": "devices that share the cores",
}
COLOURS = {"lists": "#0072B2", "rows": "#D55E00"}

Key = tuple[str, str, str]  # spec, what is compared, side
Results = dict[Key, dict[int, dict[str, Any]]]  # of each round


def read(path: pathlib.Path) -> Results:
  """The results by spec, comparison and side; of a round that is there twice, the later."""
  found: Results = {}
  for line in path.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    key = (row["job"], row["against"], row["side"])
    found.setdefault(key, {})[row["round"]] = row["result"]
  return found


def each(
  results: Results, one: Key, other: Key, ratio: Callable[[Any, Any], float]
) -> dict[int, float]:
  """ratio(one, other) of every round that has both."""
  first, second = results.get(one, {}), results.get(other, {})
  return {n: ratio(first[n], second[n]) for n in first if n in second}


def cell(values: Iterable[float], bar: float | None, *, most: bool = False, unit: str = "x") -> str:
  """`5.1x (4.9..5.3), at least 4.0x`, and MISSED where it is; most: the bar is an upper one."""
  values = sorted(values)
  if not values:
    return "not run"
  middle = statistics.median(values)
  text = f"{middle:.2f}{unit}"
  if len(values) > 1:
    text += f" ({values[0]:.2f}..{values[-1]:.2f})"
  if bar is None:
    return text
  missed = middle > bar if most else middle < bar
  return f"{text}, at {'most' if most else 'least'} {bar:g}{unit}{' MISSED' if missed else ''}"


def bar_of(bars: Sequence[float], spec: str) -> float | None:
  """The bar of a spec; a spec of one's own has none."""
  return bars[SPECS.index(spec)] if spec in SPECS else None


def speed(results: Results, spec: str, variants: Sequence[str], timing: str) -> list[float]:
  """TRL's time over ours, in each round; against the fastest of the variants."""
  ratio = lambda peer, ours: peer["timing"][timing] / ours["timing"][timing]  # noqa: E731
  found = [each(results, (spec, v, "peer"), (spec, v, "ours"), ratio) for v in variants]
  return [min(ratios[n] for ratios in found) for n in found[0] if all(n in r for r in found)]


def row_of_peak(results: Results, spec: str) -> list[float]:
  """Minimum of FLOPs over time, as a share of what a matmul reaches, in each run of ours."""
  runs = results.get((spec, PRECOMPUTED, "ours"), {})
  return [run["share_of_peak"] for run in runs.values()]


def training(results: Results, specs: Sequence[str], timing: str) -> list[list[str]]:
  """The rows of what is compared on every spec."""
  rows = []
  for title, (variants, bars) in SPEED.items():
    cells = [cell(speed(results, s, variants, timing), bar_of(bars, s)) for s in specs]
    rows.append([f"step, against {title}", *cells])
  memory = lambda peer, ours: ours["peak_rss_mib"] / peer["peak_rss_mib"]  # noqa: E731
  of = lambda s: each(results, (s, PRECOMPUTED, "peer"), (s, PRECOMPUTED, "ours"), memory).values()  # noqa: E731
  cells = [cell(of(s), bar_of(MEMORY, s), most=True) for s in specs]
  rows.append(["peak memory, of TRL float32 precomputed", *cells])
  cells = [cell(row_of_peak(results, s), PEAK, unit="") for s in specs]
  rows.append(["minimum of FLOPs / time, of the matmul rate", *cells])
  return rows


def others(results: Results, specs: Sequence[str], timing: str) -> list[list[str]]:
  """The rows of lists and of sampling."""
  faster = lambda a, b: a["timing"][timing] / b["timing"][timing]  # noqa: E731
  # Two responses a pair; the common scripts count pairs of TRL's at the median step.
  answers = lambda trl, ours: ours["responses_per_s"] / (2 * trl["pairs_per_s"])  # noqa: E731
  lists, response, generate, candidates = [], [], [], []
  for spec in specs:
    pair = (spec, "lists", "rows"), (spec, "lists", "lists")
    lists.append(cell(each(results, *pair, faster).values(), LISTS))
    pair = (spec, "default", "peer"), (spec, "lists", "lists")
    bar = RESPONSES if spec == SPECS[0] else None
    response.append(cell(each(results, *pair, answers).values(), bar))
    pair = (spec, "generate", "peer"), (spec, "generate", "ours")
    generate.append(cell(each(results, *pair, faster).values(), GENERATE) + same(results, *pair))
    runs = results.get((spec, "candidates", "ours"), {}).values()
    ratios = [run["single"]["timing"][timing] / run["lists"]["timing"][timing] for run in runs]
    candidates.append(cell(ratios, CANDIDATES))
  return [
    ["K = 8, lists against rows", *lists],
    ["responses/s, K = 8 against TRL's pairs as it comes", *response],
    ["greedy sampling, against transformers.generate", *generate],
    ["8 samples of a prompt, against 8 prompts", *candidates],
  ]


def same(results: Results, one: Key, other: Key) -> str:
  """Says so where two samplers did not write the same tokens."""
  alike = each(results, one, other, lambda a, b: float(a["tokens_sha"] == b["tokens_sha"]))
  return "" if all(alike.values()) else ", OTHER TOKENS"


def seconds(results: Results, specs: Sequence[str]) -> list[list[str]]:
  """Seconds a step and peak memory of what was trained, the median over rounds."""
  rows = []
  sides = [(v, side) for v in ("default", PRECOMPUTED, *BF16, LIVE) for side in ("peer", "ours")]
  sides += [("lists", "rows"), ("lists", "lists")]
  for against, side in sides:
    row = [f"{against}, {side}"]
    for spec in specs:
      runs = list(results.get((spec, against, side), {}).values())
      middle = lambda take, runs=runs: statistics.median(map(take, runs))  # noqa: E731
      row.append(
        f"{middle(lambda run: run['timing']['median_s']):.3f} / "
        f"{middle(lambda run: run['timing']['own_cpu_median_s']):.3f} / "
        f"{middle(lambda run: run['peak_rss_mib']):.0f}"
        if runs
        else "not run"
      )
    rows.append(row)
  return [row for row in rows if set(row[1:]) != {"not run"}]


def losses(results: Results) -> tuple[list[str], bool]:
  """What the losses of TRL in float32 and ours differ by, a line a run, and whether all agree."""
  lines, agree, due = [], True, False
  for (spec, against, side), rounds in sorted(results.items()):
    if side != "peer" or against not in (PRECOMPUTED, LIVE):
      continue
    due = True
    for number, peer in rounds.items():
      ours = results.get((spec, against, "ours"), {}).get(number, {}).get("losses", [])
      means = [statistics.fmean(ours[i : i + LOG_EVERY]) for i in range(0, COMPARED, LOG_EVERY)
               if len(ours) >= i + LOG_EVERY]  # fmt: skip
      gaps = [abs(mine - theirs) for mine, theirs in zip(means, peer["losses"])]
      if gaps:
        near = max(gaps) <= TOLERANCE
        word = "agree" if near else f"DIFFER by more than {TOLERANCE:g}"
        steps = len(gaps) * LOG_EVERY
        lines.append(f"{spec}, {against}, round {number}: {max(gaps):.1e} in {steps} steps, {word}")
        agree &= near
  if due and not lines:
    return [f"no losses to compare: TRL logs every {LOG_EVERY} steps"], False
  return lines, agree


def plot(results: Results, path: pathlib.Path) -> bool:
  """Time a step against what grows; False where nothing was run."""
  grown = [key for key in results if key[1].startswith("growth/")]
  if not grown:
    return False
  figure = Figure(figsize=(15, 3.6), layout="constrained")
  FigureCanvasAgg(figure)
  for axes, (name, label) in zip(figure.subplots(1, len(AXES)), AXES.items()):
    for layout, colour in COLOURS.items():
      mine = sorted((int(key[2]), key) for key in grown if key[1] == f"growth/{name}/{layout}")
      times = [next(iter(results[key].values()))["timing"]["median_s"] for _, key in mine]
      if mine:
        axes.plot([x for x, _ in mine], times, "o-", color=colour, label=layout)
    axes.set(xlabel=label, ylabel="seconds a step", ylim=(0, None))
    if name == "responses" and axes.lines:
      axes.legend()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
  return True


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table."""
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: list[str] | None = None) -> int:
  """Reads, prints, draws; 1 where losses differ."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("results", type=pathlib.Path)
  choices = ("median_s", "best_s", "own_cpu_median_s")
  parser.add_argument("--timing", choices=choices, default="median_s")
  parser.add_argument("--plot", type=pathlib.Path, help="default: RESULTS with .png")
  options = parser.parse_args(argv)
  results = read(options.results)
  there = {spec for spec, _, _ in results}
  specs = [*(spec for spec in SPECS if spec in there), *sorted(there - set(SPECS))]
  rows = training(results, specs, options.timing) + others(results, specs, options.timing)
  print(markdown(["", *specs], rows), end="\n\n")
  print(markdown(["s a step / own CPU s / peak MiB", *specs], seconds(results, specs)), end="\n\n")
  lines, agree = losses(results)
  print("Losses:", *(lines or ["TRL was not run in float32"]), sep="\n* ")
  picture = options.plot or options.results.with_suffix(".png")
  if plot(results, picture):
    print(f"\nwrote {picture}")
  return 0 if agree else 1


if __name__ == "__main__":
  sys.exit(main())
