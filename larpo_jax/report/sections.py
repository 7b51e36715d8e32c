"""What a report consists of, in order; the page and the Markdown both show these sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from larpo_jax.report import sentences, tables
from larpo_jax.report.drawing import Plot
from larpo_jax.report.findings import Findings
from larpo_jax.report.samples import Samples
from larpo_jax.report.tables import Table

READING = (
  "**Differences** are taken seed by seed, as arms of one seed share their start and prompts. "
  "Higher counts as better.",
  "**[low, high]** after a difference is its 95 % interval from a paired t test over seeds: what "
  "other seeds would give, each with its own prompts. **p** is that test's, corrected by Holm's "
  "method for the number of arms; below 0.05 a difference counts as shown. Where the best arm is "
  "compared with all others, the correction is for all pairs of arms.",
  "**effect** is the difference divided by its standard deviation over seeds (Cohen's d_z): at 1, "
  "five seeds show it two times in five, ten seeds four times in five.",
  "**bootstrap 95 %** draws seeds with replacement and within each the prompts, the same ones for "
  "both arms (10,000 times; expanded percentiles). It is wide where few prompts carry the "
  "difference. With fewer than five seeds it promises too much where seeds differ more than "
  "prompts: trust the t interval. **prompts better / worse**: on which share of the test prompts "
  "the arm is above and below the baseline.",
  "**at matched KL**: both arms at the largest KL to the start that both reached, seed by seed, on "
  "straight lines between their rounds. An arm that is better only because it moved further shows "
  "no difference here.",
)
FACTORIAL = (
  "Every combination was run, so each axis can be told from the others. **size** is the root mean "
  "square of what an axis adds to an arm, or two axes together beyond their sum; **share of "
  "variance** is of the variance between arms. p is of an analysis of variance with seeds as "
  "blocks (Greenhouse and Geisser's correction, Holm over the rows)."
)


class Section(NamedTuple):
  """A part of a report. Names in texts and items stand in backticks, what is bold in **."""

  key: str
  title: str
  texts: Sequence[str] = ()
  items: Sequence[str] = ()
  tables: Sequence[Table] = ()
  plots: Sequence[Plot] = ()
  samples: Samples | None = None


def title(found: Findings) -> str:
  """Of the report."""
  return f"{found.directory.resolve().name}: {sentences.words(found.metric)}"


def sections(found: Findings, plots: Sequence[Plot], samples: Samples) -> list[Section]:
  """Of one sweep, the answer first."""
  cost, effects = tables.costs(found), tables.effects(found)
  metrics = tables.metrics(found)
  first, *rest = sentences.answer(found)
  rest = [" ".join(rest)] if rest else []
  chosen = [
    Section("answer", "", [first, *rest, *sentences.warnings(found)]),
    Section(
      "arms", "Which is better, by how much", [], sentences.contrasts(found), [tables.arms(found)]
    ),
    Section("plots", "Plots", plots=plots),
  ]
  if effects:
    chosen.append(Section("axes", "What each axis does", [FACTORIAL], tables=effects))
  elif found.factorial:
    chosen.append(Section("axes", "What each axis does", [f"{_why(found.factorial.why_not)}"]))
  if cost:
    note = "Mean and standard deviation over seeds. Tokens are those trained on, and sampled."
    chosen.append(Section("cost", "Time, tokens, memory", [note], tables=[cost]))
  chosen.append(Section("metrics", "All metrics", tables=[metrics]))
  if samples.prompts:
    text = f"{len(samples.prompts)} of {samples.total} test prompts, evenly spaced."
    chosen.append(Section("samples", "Answers", [text], samples=samples))
  return [*chosen, Section("reading", "How to read this", READING)]


def _why(reason: str) -> str:
  return f"The effects of the axes cannot be told apart: {reason}."
