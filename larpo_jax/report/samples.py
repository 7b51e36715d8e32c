"""What the arms answered to some of the test prompts, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from larpo_jax.report import collect
from larpo_jax.report.collect import Prompt, Run

LONGEST = 4_000  # characters of a text that is shown
NUMBERS = ("logprob", "start_logprob")  # of a response, beside those that a reward gave


class Samples(NamedTuple):
  """Prompts of each seed with every arm's answers, as plain values."""

  prompts: list[dict[str, Any]]  # seed, row, prompt, answers: [{arm, kind, text, numbers}]
  total: int  # prompts with answers, of all seeds


def samples(found: Sequence[Run], most: int) -> Samples:
  """At most `most` prompts, spread evenly over the seeds and over each seed's test prompts."""
  by_seed: dict[int, list[Run]] = {}
  for run in found:
    by_seed.setdefault(run.seed, []).append(run)
  each = max(1, most // len(by_seed))
  chosen: list[dict[str, Any]] = []
  total = 0
  for seed, runs in sorted(by_seed.items()):
    keys = [_key(line) for line in collect.lines(runs[0]) if line.get("responses")]
    total += len(keys)
    count = min(each, len(keys), most - len(chosen))
    places = np.linspace(0, len(keys) - 1, count).round().astype(int)
    chosen += _side_by_side(seed, runs, {keys[place] for place in places})
  return Samples(chosen, total)


def _side_by_side(seed: int, runs: Sequence[Run], wanted: set[Prompt]) -> list[dict[str, Any]]:
  """The wanted prompts, each with the answers of all runs."""
  found: dict[Prompt, dict[str, Any]] = {}
  for run in runs if wanted else ():
    for line in collect.lines(run):
      if _key(line) in wanted:
        start = dict(seed=seed, row=line["row"], prompt=_cut(line.get("prompt", "")), answers=[])
        row = found.setdefault(_key(line), start)
        row["answers"] += [_answer(run.arm, response) for response in line.get("responses", ())]
  return list(found.values())


def _key(line: dict[str, Any]) -> Prompt:
  return line["set"], line["row"]


def _answer(arm: str, response: dict[str, Any]) -> dict[str, Any]:
  shown = {k: v for k, v in response.items() if isinstance(v, int | float) and k in NUMBERS}
  shown |= {k: v for k, v in response.items() if "/" in k and isinstance(v, int | float)}
  kind = str(response.get("kind", ""))
  return dict(arm=arm, kind=kind, text=_cut(response.get("text", "")), numbers=shown)


def _cut(text: Any) -> str:
  text = str(text)
  return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"
