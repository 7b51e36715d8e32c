"""The finished runs of a sweep, as rows."""

from __future__ import annotations

from collections.abc import Sequence
import csv
import json
import os
import pathlib
from typing import Any, NamedTuple

METRICS = ("gold/reward", "accuracy")  # the first that runs have, where none is named


class Run(NamedTuple):
  """One finished run."""

  arm: str  # what varies, but for the seed
  seed: int
  varies: dict[str, Any]
  before: dict[str, float]
  after: dict[str, float]


def runs(directory: str | os.PathLike) -> tuple[list[Run], list[str]]:
  """The finished runs of a sweep in its order, and the names of those that are not.

  Raises ValueError where the directory is no sweep's, or nothing has finished.
  """
  directory = pathlib.Path(directory)
  index = directory / "sweep.json"
  if not index.exists():
    raise ValueError(f"{directory} is no sweep: it has no sweep.json; give a sweep's --workdir")
  finished, missing = [], []
  for row in json.loads(index.read_text()):
    path = directory / row["name"] / "results" / "summary.json"
    if not path.exists():
      missing.append(row["name"])
      continue
    summary = json.loads(path.read_text())
    arm = ", ".join(f"{key}={value}" for key, value in row["varies"].items()) or "all"
    sides = ({k: float(v) for k, v in summary[side].items()} for side in ("before", "after"))
    finished.append(Run(arm, row["seed"], row["varies"], *sides))
  if not finished:
    raise ValueError(f"no run of {directory} has finished yet")
  return finished, missing


def metric_of(found: Sequence[Run], asked: str) -> str:
  """The metric that arms are compared by; ValueError that lists them where there is none such."""
  there = set.intersection(*(set(run.after) for run in found))
  for name in (asked,) if asked else METRICS:
    if name in there:
      return name
  raise ValueError(f"no metric {asked or METRICS[0]!r}; the runs have: {', '.join(sorted(there))}")


def arms(found: Sequence[Run], metric: str) -> dict[str, dict[int, float]]:
  """arm -> {seed: value after}, in the order of the sweep."""
  result: dict[str, dict[int, float]] = {}
  for run in found:
    result.setdefault(run.arm, {})[run.seed] = run.after[metric]
  return result


def write_csv(found: Sequence[Run], path: pathlib.Path) -> None:
  """A row a run: what varies, the seed, every metric before and after."""
  labels = list(dict.fromkeys(key for run in found for key in run.varies))
  names = sorted({name for run in found for name in run.after})
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow([*labels, "seed", *(f"{s} {n}" for n in names for s in ("before", "after"))])
    for run in found:
      varies = [run.varies.get(label, "") for label in labels]
      both = [side.get(name, "") for name in names for side in (run.before, run.after)]
      writer.writerow([*varies, run.seed, *both])
