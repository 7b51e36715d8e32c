"""The finished runs of a sweep, as rows, and the lines that they wrote of each test prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import csv
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

METRICS = ("gold/reward", "accuracy")  # the first that runs have, where none is named
AFTER = "after"
Prompt = tuple[str, int]  # set and row: the same for all arms at one seed


class Run(NamedTuple):
  """One finished run."""

  arm: str  # what varies, but for the seed
  seed: int
  varies: Mapping[str, Any]
  before: Mapping[str, float]
  after: Mapping[str, float]
  cost: Mapping[str, float]  # seconds, steps, tokens, bytes; empty where the run did not say
  directory: pathlib.Path


def runs(directory: str | os.PathLike) -> tuple[list[Run], list[str]]:
  """The finished runs of a sweep in its order, and the names of those that are not.

  Raises ValueError where the directory is no sweep's, or nothing has finished.
  """
  directory = pathlib.Path(directory)
  index = directory / "sweep.json"
  if not index.exists():
    raise ValueError(f"{directory} is no sweep: it has no sweep.json; give a sweep's --workdir")
  finished, missing = [], []
  for row in read_json(index):
    if not summary(directory / row["name"]).exists():
      missing.append(row["name"])
      continue
    varies = {label: _plain(value) for label, value in row["varies"].items()}
    arm = ", ".join(f"{label}={value}" for label, value in varies.items()) or "all"
    finished.append(run(directory / row["name"], arm, row["seed"], varies))
  if not finished:
    raise ValueError(f"no run of {directory} has finished yet")
  return finished, missing


def run(directory: pathlib.Path, arm: str, seed: int, varies: Mapping[str, Any]) -> Run:
  """A finished run from its workdir."""
  sides = read_json(summary(directory))
  before, after, cost = (_numbers(sides.get(side, {})) for side in ("before", AFTER, "cost"))
  return Run(arm, seed, varies, before, after, cost, directory)


def summary(directory: pathlib.Path) -> pathlib.Path:
  """Where a run's results are; it has finished when they are there."""
  return directory / "results" / "summary.json"


def _plain(value: Any) -> Any:
  """A sequence as one text, gold+greedy, as in the names of directories."""
  return "+".join(map(str, value)) or "none" if isinstance(value, list) else value


def read_json(path: pathlib.Path) -> Any:
  """What a file holds; ValueError that names it where it is no JSON."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is no JSON ({error}); run that point again") from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
  """As floats; "nan" and "inf" are numbers too."""
  return {key: float(value) for key, value in values.items() if value is not None}


def metric_of(found: Sequence[Run], asked: str) -> str:
  """The metric that arms are compared by; ValueError that lists them where there is none such."""
  there = set.intersection(*(set(run.after) for run in found))
  for name in (asked,) if asked else METRICS:
    if name in there:
      return name
  raise ValueError(f"no metric {asked or METRICS[0]!r}; the runs have: {', '.join(sorted(there))}")


def arms(found: Sequence[Run], metric: str) -> dict[str, dict[int, float]]:
  """arm -> {seed: value after}, in the order of the sweep; runs that ended in nan are left out."""
  result: dict[str, dict[int, float]] = {}
  for run in found:
    if math.isfinite(run.after[metric]):
      result.setdefault(run.arm, {})[run.seed] = run.after[metric]
  return result


def axes(found: Sequence[Run]) -> dict[str, list[Any]]:
  """label -> its values in the order of the sweep, of what is not the same in all runs."""
  values: dict[str, list[Any]] = {}
  for run in found:
    for label, value in run.varies.items():
      known = values.setdefault(label, [])
      if value not in known:
        known.append(value)
  same = {label for label, known in values.items() if len(known) == 1 and everywhere(found, label)}
  return {label: known for label, known in values.items() if label not in same}


def everywhere(found: Sequence[Run], label: str) -> bool:
  """Whether every run has a value of an axis."""
  return all(label in run.varies for run in found)


def numeric(values: Sequence[Any]) -> bool:
  """Whether an axis is one of numbers."""
  return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def lines(run: Run, side: str = AFTER) -> Iterator[dict[str, Any]]:
  """The lines of results/SIDE.jsonl, one a test prompt; none where the run did not write them."""
  path = run.directory / "results" / f"{side}.jsonl"
  if not path.exists():
    return
  with path.open(encoding="utf-8") as file:
    for number, line in enumerate(file, 1):
      try:
        yield json.loads(line)
      except ValueError as error:
        raise ValueError(f"{path}, line {number} is no JSON ({error}); remove it") from error


def prompts(run: Run, metric: str) -> dict[Prompt, tuple[float, float]]:
  """The value and the weight of each test prompt after; {} where the run did not write them."""
  found = {}
  for line in lines(run):
    if metric in line and math.isfinite(value := float(line[metric])):
      found[line["set"], line["row"]] = (value, float(line.get("weight", 1.0)))
  return found


def write_csv(found: Sequence[Run], path: pathlib.Path) -> None:
  """A row a run: what varies, the seed, every metric before and after, and what it cost."""
  labels = list(dict.fromkeys(key for run in found for key in run.varies))
  names = sorted({name for run in found for name in run.after})
  costs = list(dict.fromkeys(key for run in found for key in run.cost))
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    sides = (f"{side} {name}" for name in names for side in ("before", AFTER))
    writer.writerow([*labels, "seed", *sides, *costs])
    for run in found:
      varies = [run.varies.get(label, "") for label in labels]
      both = [side.get(name, "") for name in names for side in (run.before, run.after)]
      writer.writerow([*varies, run.seed, *both, *(run.cost.get(key, "") for key in costs)])
