"""The answer in words: which arm to use, and each arm against the baseline.

Names of arms stand in backticks.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

from larpo_jax.report import statistics
from larpo_jax.report.findings import Comparison, Findings, mean, shown

SHOWN = 10  # names that are listed
NAMED = 3  # in the answer


def answer(found: Findings) -> list[str]:
  """What to use, in a few sentences for someone who has not seen a report before."""
  metric, best = words(found.metric), code(found.best)
  values = found.arms[found.best]
  value = f"{mean(values):.3g} on average over {len(values)} seeds"
  if len(values) == 1:
    value = f"{mean(values):.3g} of one seed"
  if len(found.arms) == 1:
    return [f"One arm, nothing to compare: {metric} {value}."]
  if all(math.isnan(p) for _, p in found.rivals.values()):
    return [
      f"{best} has the highest {metric}, {value}; but arms were run with one common seed, so it "
      f"may be chance: run the sweep again with --seeds 5."
    ]
  worse = [arm for arm, (gap, p) in found.rivals.items() if shown(p) and gap.difference > 0]
  unmet = [arm for arm in found.arms if arm != found.best and arm not in found.rivals]
  close = [*(arm for arm in found.rivals if arm not in worse), *unmet]  # the nearest first
  if not close:
    said = [
      f"Use {best}: its {metric}, {value}, is higher than that of {_others(len(worse))}, by more "
      f"than chance explains."
    ]
  elif worse:
    said = [
      f"Use {best}, or {_any_of(close)}: the first has the highest {metric}, {value}, but no "
      f"difference between it and {'this' if len(close) == 1 else 'these'} was shown. It is better "
      f"than {_others(len(worse))}."
    ]
  else:
    said = [
      f"No best arm was shown: {best} has the highest {metric}, {value}, but where every two arms "
      f"are compared no difference to another one is shown, so it may be chance."
      f"{_than_the_baseline(found)}"
    ]
  return [*said, *_more_seeds(found, close), *_at_equal_kl(found), *_axes(found)]


def _than_the_baseline(found: Findings) -> str:
  """What the comparison with the baseline alone, which fewer others share 5 % with, shows of it."""
  each = found.against.get(found.best)
  if each is None or not shown(each.p):
    return ""
  return f" With the baseline alone, {code(found.baseline)}, it is shown: p = {each.p:.2g}."


def _more_seeds(found: Findings, close: list[str]) -> list[str]:
  nearest = [arm for arm in found.rivals if arm in close][:1]
  for arm in nearest:
    gap, _ = found.rivals[arm]
    pairs = math.comb(len(found.arms), 2)  # of which each is told apart at its share of 5 %
    need = statistics.seeds_for(gap.effect, statistics.SIGNIFICANT / pairs)
    if need is not None and need > gap.seeds:
      return [
        f"To show a difference such as that to {code(arm)} ({gap.difference:+.2g}), if it is real, "
        f"takes about {need} seeds."
      ]
  return []


def _at_equal_kl(found: Findings) -> list[str]:
  """Whether the best is better than the baseline by more than having moved further."""
  each = found.against.get(found.best)
  if each is None or each.matched is None or not shown(each.p):
    return []
  there = f"at the same KL to the start ({each.matched.kl:.2g} nats)"
  baseline = code(found.baseline)
  if not shown(each.matched_p):
    return [f"It may only have moved further: {there} no difference to {baseline} was shown."]
  if each.matched.contrast.difference < 0:
    return [f"It only moved further: {there} it is worse than {baseline}."]
  return [f"It did not only move further: {there} it is better than {baseline}, too."]


def _axes(found: Findings) -> list[str]:
  """What the axes of a factorial sweep do, each over all values of the others."""
  said = []
  for term in found.factorial.terms if found.factorial else ():
    names = [code(name) for name in term.axes]
    if not shown(term.p):
      continue
    if term.levels:
      best = max(term.levels, key=lambda level: level.mean)
      said.append(f"Over all other settings, {names[0]} is best at {code(str(best.value))}.")
    else:
      said.append(f"Which {names[0]} is best depends on {names[1]}.")
  return said


def contrasts(found: Findings) -> list[str]:
  """A sentence for each arm against the baseline, the highest first."""
  ranked = sorted(found.against, key=lambda arm: -found.against[arm].contrast.difference)
  return [_contrast(found, arm, found.against[arm]) for arm in ranked]


def _contrast(found: Findings, arm: str, each: Comparison) -> str:
  gap = each.contrast
  text = f"{code(arm)} - {code(found.baseline)}: {gap.difference:+.3g} {words(found.metric)}"
  if math.isnan(gap.low):
    prompts = ""
    if each.prompts:
      prompts = f" (on its prompts alone [{each.prompts.low:+.3g}, {each.prompts.high:+.3g}])"
    return f"{text}, of one seed{prompts}: nothing is certain; run more with --seeds"
  text += f" {interval(gap.low, gap.high)}, p = {each.p:.2g}, n = {gap.seeds} seeds: "
  text += verdict(gap.difference, each.p)
  if each.matched is None:
    return text
  same = each.matched.contrast
  text += (
    f"; at matched KL ({each.matched.kl:.2g} nats): {verdict(same.difference, each.matched_p)}"
  )
  if shown(each.matched_p):
    text += f", {same.difference:+.3g} {interval(same.low, same.high)}, p = {each.matched_p:.2g}"
  return text


def warnings(found: Findings) -> list[str]:
  """What a reader has to know of before believing the rest."""
  said = []
  if found.missing:
    said.append(f"**{_runs(found.missing, 'is', 'are')} missing**: {_some(found.missing)}.")
  if found.diverged:
    names = [run.directory.name for run in found.diverged]
    count = _runs(names, "ended in nan and is", "ended in nan and are")
    said.append(f"**{count} in no comparison**: {_some(names)}.")
  alone = [arm for arm in found.arms if arm != found.baseline and arm not in found.against]
  if alone:
    said.append(f"No seed in common with the baseline: {_listed(alone)}.")
  return said


def verdict(difference: float, p: float) -> str:
  """The word for a difference; higher counts as better."""
  if not shown(p):
    return "no difference was shown"
  return "better" if difference > 0 else "worse"


def interval(low: float, high: float) -> str:
  """[low, high]; empty where it is not known."""
  return "" if math.isnan(low) else f"[{low:+.3g}, {high:+.3g}]"


def words(metric: str) -> str:
  """A metric's name as words: "sampled gold reward"."""
  return metric.replace("/", " ").replace("_", " ")


def code(name: str) -> str:
  """A name in backticks, in one line."""
  return "`" + " ".join(name.replace("`", "'").split()) + "`"


def _others(count: int) -> str:
  return "the other arm" if count == 1 else f"each of the other {count} arms"


def _any_of(arms: list[str]) -> str:
  return code(arms[0]) if len(arms) == 1 else f"any of {_listed(arms, NAMED)}"


def _runs(names: Sequence[str], one: str, more: str) -> str:
  return f"1 run {one}" if len(names) == 1 else f"{len(names)} runs {more}"


def _listed(arms: list[str], most: int = SHOWN) -> str:
  return _some([code(arm) for arm in arms], most)


def _some(names: Sequence[str], most: int = SHOWN) -> str:
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more
