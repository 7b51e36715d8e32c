"""Two runs side by side: their settings, their results, and where their curves part."""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

from larpo_jax import writers
from larpo_jax.config import redaction
from larpo_jax.report import collect, markdown, sections, statistics
from larpo_jax.report.collect import Run
from larpo_jax.report.tables import Cell, Table, number

CLOSE = 1e-3  # relative: what rounding in another order makes of a number stays below
# Of the machine, not of what was computed.
TIMES = ("throughput/", "seconds")
FILES = (("config.json", "Settings"), ("versions.json", "Versions"), ("hardware.json", "Hardware"))


class Part(NamedTuple):
  """The first row of metrics, in the order of training, in which two runs differ."""

  stage: str
  step: int
  metric: str
  here: float
  there: float


def run(directory: str | os.PathLike) -> Run:
  """A run of its own workdir; ValueError where that holds none that has finished."""
  directory = pathlib.Path(directory)
  if not (directory / "config.json").exists():
    raise ValueError(f"{directory} is no run: it has no config.json; give a run's --workdir")
  if not collect.summary(directory).exists():
    raise ValueError(f"{directory} has not finished: it has no results/summary.json yet")
  seed = int(collect.read_json(directory / "config.json").get("seed", 0))
  return collect.run(directory, directory.name, seed, {})


def text(here: str | os.PathLike, there: str | os.PathLike) -> str:
  """The comparison as Markdown."""
  one, two = run(here), run(there)
  chosen = [sections.Section("curves", "Training", _curves(one, two))]
  for name, title in FILES:
    table = _differences(one, two, name)
    texts = [] if table.rows else ["The same."]
    chosen.append(sections.Section(title, title, texts, tables=[table] if table.rows else []))
  chosen.append(sections.Section("results", "Results", tables=[_results(one, two)]))
  return markdown.text(f"{one.directory} and {two.directory}", chosen)


def parts(here: pathlib.Path, there: pathlib.Path, close: float = 0.0) -> Part | None:
  """Where two runs' curves part: the first number that differs by more than `close`, relatively.

  Only rows and metrics that both have are compared, and none of times. None where they never part.
  """
  others = {(row["stage"], row["step"]): row for row in writers.read(there)}
  for row in writers.read(here):
    other = others.get((row["stage"], row["step"]), {})
    for name, value in row.items():
      compared = name in other and name not in ("stage", "step") and not name.startswith(TIMES)
      if compared and not _same(value, other[name], close):
        return Part(row["stage"], row["step"], name, value, other[name])
  return None


def _same(here: float, there: float, close: float) -> bool:
  if math.isnan(here) or math.isnan(there):
    return math.isnan(here) and math.isnan(there)
  return here == there or math.isclose(here, there, rel_tol=close, abs_tol=0.0)


def _curves(one: Run, two: Run) -> list[str]:
  exact, far = (parts(one.directory, two.directory, close) for close in (0.0, CLOSE))
  if exact is None:
    return ["The curves never part: every number that both wrote is the same."]
  said = [f"The curves part at {_where(exact)}."]
  if far is None:
    return [*said, f"No number differs by more than {CLOSE:.1%}: that is rounding."]
  if far != exact:
    said.append(f"By more than {CLOSE:.1%}, which rounding hardly makes, at {_where(far)}.")
  return said


def _where(part: Part) -> str:
  return (
    f"stage `{part.stage}`, step {part.step}: `{part.metric}` is {part.here:.6g} here and "
    f"{part.there:.6g} there"
  )


def _differences(one: Run, two: Run, name: str) -> Table:
  sides = [_flat(each.directory / name) for each in (one, two)]
  keys = [key for key in {**sides[0], **sides[1]} if _shown(sides[0], key) != _shown(sides[1], key)]
  rows = [[Cell(key), *(Cell(_shown(side, key)) for side in sides)] for key in sorted(keys)]
  return Table(name, ["setting", "first", "second"], rows)


def _flat(path: pathlib.Path) -> dict[str, Any]:
  return redaction.flat(redaction.redact(collect.read_json(path))) if path.exists() else {}


def _shown(side: Mapping[str, Any], key: str) -> str:
  return json.dumps(side[key]) if key in side else "-"


def _results(one: Run, two: Run) -> Table:
  """Every metric after; on prompts that both were tested on, the difference's interval too."""
  rows = []
  alike = _prompts(one) == _prompts(two)
  for name in sorted({**one.after, **two.after}):
    here, there = (side.after.get(name, math.nan) for side in (one, two))
    found = None
    if alike:
      found = statistics.by_prompt({0: collect.prompts(two, name)}, {0: collect.prompts(one, name)})
    interval = f"[{found.low:+.3g}, {found.high:+.3g}]" if found else ""
    values = [number(here, ".4g"), number(there, ".4g"), number(there - here, "+.3g")]
    rows.append([Cell(name), *values, Cell(interval)])
  note = "Second minus first, after training."
  if alike:
    note += " Both were tested on the same prompts: 95 % bootstrap interval over them."
  columns = ["metric", "first", "second", "difference", "interval"]
  return Table("Results", columns, rows, note)


def _prompts(run: Run) -> list[tuple[Any, ...]]:
  """What a run was tested on."""
  return [(line["set"], line["row"], line.get("prompt")) for line in collect.lines(run)]
