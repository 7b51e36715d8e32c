"""The tables of a report, as data."""

from __future__ import annotations

from collections.abc import Sequence
import math
import statistics as plain
from typing import Any, NamedTuple

from larpo_jax.report import collect
from larpo_jax.report.findings import Findings
from larpo_jax.report.sentences import code, interval, words


class Cell(NamedTuple):
  """What a cell shows, and what it is sorted by; a text is sorted by itself."""

  text: str
  value: float | None = None


class Table(NamedTuple):
  """Rows of cells under their columns."""

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  note: str = ""


COSTS = {  # of summary["cost"]: its column, and by how much it is divided
  "seconds": ("time (s)", 1.0),
  "steps": ("steps", 1.0),
  "trained_tokens": ("trained tokens (thousands)", 1e3),
  "generated_tokens": ("generated tokens (thousands)", 1e3),
  "peak_memory_bytes": ("peak memory (MiB)", 2.0**20),
}


def arms(found: Findings) -> Table:
  """Each arm's mean over seeds and what it is against the baseline; constant columns are left."""
  names = _names(found)
  columns = [*names, words(found.metric), "seeds", "minus baseline", "p (Holm)", "effect"]
  columns += ["bootstrap 95 %", "prompts better / worse", "KL (nats)", "at matched KL", "p there"]
  rows = [[*named, *_result(found, arm)] for arm, named in _named(found).items()]
  seeds = {row[len(names) + 1].text for row in rows}
  note = f"Mean and standard deviation over {seeds.pop() if len(seeds) == 1 else 'its'} seeds."
  note = note if max(map(len, found.arms.values())) > 1 else "Of one seed."
  if len(found.arms) > 1:
    note += f" The baseline is {code(found.baseline)}."
  columns, rows = varying(columns, rows, always=len(names) + 1)
  return Table("Arms", columns, rows, note)


def _result(found: Findings, arm: str) -> list[Cell]:
  values = list(found.arms[arm].values())
  ends = [way[-1][0] for way in found.paths[arm].values() if way]
  kl = number(plain.fmean(ends)) if ends else Cell("")
  first = [_spread(values), Cell(str(len(values)), len(values))]
  each = found.against.get(arm)
  if each is None:
    word = "baseline" if arm == found.baseline else "no common seed"
    return [*first, Cell(word), *[Cell("")] * 4, kl, Cell(""), Cell("")]
  return [
    *first,
    _gap(each.contrast.difference, each.contrast.low, each.contrast.high),
    number(each.p, ".2g"),
    number(each.contrast.effect, ".2g"),
    Cell(interval(each.prompts.low, each.prompts.high), each.prompts.low)
    if each.prompts
    else Cell(""),
    Cell(f"{each.prompts.higher:.0%} / {each.prompts.lower:.0%}", each.prompts.higher)
    if each.prompts
    else Cell(""),
    kl,
    _gap(each.matched.contrast.difference, each.matched.contrast.low, each.matched.contrast.high)
    if each.matched
    else Cell(""),
    number(each.matched_p, ".2g"),
  ]


def costs(found: Findings) -> Table | None:
  """What each arm took, mean over seeds; None where no run says."""
  keys = [key for key in COSTS if any(key in run.cost for run in found.runs)]
  if not keys:
    return None
  rows = []
  for arm, named in _named(found).items():
    cells = [*named]
    for key in keys:
      took = [run.cost[key] / COSTS[key][1] for run in found.runs if run.arm == arm
              and key in run.cost]  # fmt: skip
      cells.append(_spread(took) if took else Cell(""))
    rows.append(cells)
  columns = [*_names(found), *(COSTS[key][0] for key in keys)]
  return _differing("Cost", columns, rows, len(_names(found)))


def metrics(found: Findings) -> Table:
  """Every metric that differs between runs, mean over each arm's seeds."""
  there = sorted({name for run in found.runs for name in run.after})
  rows = []
  for arm, named in _named(found).items():
    runs = [run for run in found.runs if run.arm == arm]
    known = [[r.after[name] for r in runs if math.isfinite(r.after.get(name, math.nan))]
             for name in there]  # fmt: skip
    rows.append([*named, *(_spread(values) if values else Cell("") for values in known)])
  names = _names(found)
  return _differing("All metrics, after training", [*names, *there], rows, len(names))


def effects(found: Findings) -> list[Table]:
  """Terms and levels of a factorial sweep; [] where it is none."""
  if found.factorial is None or not found.factorial.terms:
    return []
  terms, levels = [], []
  for term in found.factorial.terms:
    name = Cell(" x ".join(term.axes))
    share = Cell(f"{term.share:.0%}", term.share)
    terms.append([name, number(term.size), share, number(term.p, ".2g")])
    for level in term.levels:
      label = Cell(str(level.value), level.value if _is_number(level.value) else None)
      gap = _gap(level.effect, level.low, level.high)
      levels.append([name, label, number(level.mean), gap])
  return [
    Table("Axes and pairs of axes", ["axis", "size", "share of variance", "p (Holm)"], terms),
    Table("Each value", ["axis", "value", words(found.metric), "minus the mean"], levels),
  ]


def _differing(
  title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], always: int
) -> Table:
  """A table of what differs between arms; its note has the rest."""
  kept, cells = varying(columns, rows, always)
  same = [f"{name} {rows[0][i].text}" for i, name in enumerate(columns) if name not in kept]
  note = f"The same for all arms: {', '.join(same)}." if same else ""
  return Table(title, kept, cells, note)


def varying(
  columns: Sequence[str], rows: Sequence[Sequence[Cell]], always: int
) -> tuple[list[str], list[list[Cell]]]:
  """The first `always` columns, and the others that are not the same in all rows."""
  kept = [i for i in range(len(columns)) if i < always or len({row[i].text for row in rows}) > 1]
  return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _names(found: Findings) -> list[str]:
  return list(collect.axes(found.runs)) or ["arm"]


def _named(found: Findings) -> dict[str, list[Cell]]:
  """arm -> a cell for each axis."""
  axes = collect.axes(found.runs)
  result: dict[str, list[Cell]] = {}
  for run in found.runs:
    if run.arm in found.arms:
      cells = [_value(run.varies.get(label, "")) for label in axes]
      result.setdefault(run.arm, cells or [Cell(run.arm)])
  return result


def _value(value: Any) -> Cell:
  return Cell(str(value), float(value)) if _is_number(value) else Cell(str(value))


def _is_number(value: Any) -> bool:
  return collect.numeric([value])


def number(value: float, form: str = ".3g") -> Cell:
  """A number; empty where it is nan."""
  return Cell("") if math.isnan(value) else Cell(format(value, form), value)


def _spread(values: Sequence[float]) -> Cell:
  """Mean, and the standard deviation where there is one."""
  mean, spread = plain.fmean(values), plain.stdev(values) if len(values) > 1 else 0.0
  text = f"{mean:,.0f}" if abs(mean) >= 1000 else f"{mean:.3g}"
  return Cell(f"{text} ± {spread:.2g}" if spread else text, mean)


def _gap(difference: float, low: float, high: float) -> Cell:
  return Cell(f"{difference:+.3g} {interval(low, high)}".strip(), difference)
