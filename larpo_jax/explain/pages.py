"""What is known of losses as text: for a terminal, and as docs/losses.md.

The page has no measured numbers, which differ by machine; the terminal shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import re
import textwrap

import numpy as np

from larpo_jax.explain import measured, subject
from larpo_jax.explain.cases import FAR
from larpo_jax.explain.subject import Subject

WIDTH, INDENT = 100, 11
COMMAND = "python -m larpo_jax.explain"
PICTURES = {  # of the page: file, what is drawn and what is seen
  "losses_pairwise.png": (
    "pairwise.dpo pairwise.ipo_sum pairwise.hinge pairwise.simpo",
    "One pair, at the defaults. Where the slope is flat nothing is learnt from a pair: DPO and "
    "SimPO let go of it slowly, the hinge at once, and IPO pulls it back to its target.",
  ),
  "losses_weights.png": (
    "pairwise.apo_down pairwise.nca margins.dpo_shift margins.npo --set beta=0.1",
    "Losses that weigh the two responses unlike, at one beta: the lowest row says what a nat "
    "of each is worth, below 0 where the response is made less likely.",
  ),
}
READ = {
  ("best", "middle", "worst"): "every response of a list counts",
  ("best", "worst"): "of a list the best and the worst response count",
  ("best",): "of a list the best response counts",
  ("worst",): "of a list the worst response counts",
}


def behaviour(loss: Subject) -> Iterator[str]:
  """What was measured of a loss, a sentence each."""
  facts = measured.facts(loss.kernel)
  read = READ.get(facts.reads, f"of a list these count: {', '.join(facts.reads)}")
  beside = facts.counts_middle and "middle" not in facts.reads
  yield read + (", the others by their scores or lengths" if beside else "")
  if facts.verdicts:
    yield "labels are verdicts: above 0 desirable, below 0 undesirable, 0 none"
  what = "log-ratio" if loss.attribute("needs_reference", True) else "log-prob"
  if facts.margin_only:
    yield f"depends on margins only: a constant added to every {what} changes nothing"
  else:
    yield f"not a function of margins alone: a constant added to every {what} changes it"
  if facts.by_sum:
    yield "sums over tokens: not normalised by length"
  elif facts.by_mean:
    yield "normalised by length: means over tokens"
  else:
    yield "length counts: neither sums over tokens alone nor means alone"
  yield from _bounds(facts)


def _bounds(facts: measured.Facts) -> Iterator[str]:
  where = {1: "above", -1: "below"}
  if facts.falls:
    sides = " and ".join(where[sign] for sign in facts.falls)
    yield f"unbounded below: still falling at margins of {FAR:,.0f} nats {sides} 0"
  else:
    yield f"bounded below, as far as margins of {FAR:,.0f} nats either way"


def at_reference(loss: Subject) -> str:
  """Value and slopes of a pair where the policy is the reference, in numbers."""
  verdicts = measured.facts(loss.kernel).verdicts
  found = measured.curve(loss.kernel, np.zeros(1), verdicts=verdicts)
  where = "policy == reference" if loss.attribute("needs_reference", True) else "equal log-probs"
  level = f"a pair of {measured.LENGTH} tokens each at {measured.LEVEL:g} nats a token"
  slopes = f"{found.chosen[0] + 0.0:.4g} (chosen), {found.rejected[0] + 0.0:.4g} (rejected)"
  return f"at {where} ({level}): loss {found.loss[0] + 0.0:.6g}, d loss / d log p {slopes}"


def page(loss: Subject) -> str:
  """Everything about one loss, for a terminal."""
  lines = [f"{loss.title}: {loss.summary}", ""]
  for part in _chain(loss):
    name = f"{part.name}: " if loss.inner else ""
    lines += _field("formula" if part is loss else "", [name + part.section("Formula")])
  for part in _chain(loss):
    notation = subject.about(part.name.partition(".")[0])[1]
    lines += _field("notation" if part is loss else "", notation.split("\n\n"))
  for title in ("Source", "Defaults", "Traps"):
    for part in _chain(loss):
      name = f"{part.name}: " if loss.inner else ""
      values = f"{_values(part)}. " if title == "Defaults" and part.values else ""
      said = values + part.section(title)
      lines += _field(title.lower() if part is loss else "", [name + (said or "none")])
    if title == "Source":
      lines += _field("needs", loss.needs())
      lines += _field("measured", [*behaviour(loss), at_reference(loss)])
  lines += [f"{'config':{INDENT}}config.loss = {loss.node()}"]
  lines += [f"{'':{INDENT}}{setting}  # {why}" for setting, why in loss.settings()]
  return "\n".join(lines)


def overview() -> str:
  """All losses by family, a line each, for a terminal."""
  lines = []
  for family, names in subject.families().items():
    lines += [f"{family}: {subject.about(family)[0]}", ""]
    width = max(map(len, names))
    lines += [f"  {name:{width}}  {subject.parse(name).summary}" for name in names] + [""]
  return "\n".join([*lines, f"{COMMAND} NAME explains one; --plot FILE.png draws several."])


def markdown() -> str:
  """The page docs/losses.md."""
  families = subject.families()
  parts = [_HEAD, *_pictures(), "## All of them", "", _table(families)]
  for family, names in families.items():
    title, notes = subject.about(family)
    parts += [f"## {family}", "", _prose(title), "", *([_prose(notes), ""] if notes else [])]
    parts += [section(subject.parse(name)) for name in names]
  return "\n".join(parts).rstrip() + "\n"


def section(loss: Subject) -> str:
  """A loss as a section of the page."""
  formula = textwrap.fill(loss.section("Formula"), WIDTH, break_long_words=False)
  around = f"Measured around `{loss.inner.title}`" if loss.inner else "Measured"
  defaults = f"{_values(loss, '`')}. {_prose(loss.section('Defaults'))}" if loss.values else "none."
  lines = [f"### {loss.name}", "", _prose(loss.summary), "", "```text", formula, "```", ""]
  lines += [f"* **Source:** {_prose(loss.section('Source'))}"]
  lines += [f"* **Needs:** {'; '.join(_own_needs(loss))}."]
  lines += [f"* **{around}:** {'; '.join(behaviour(loss))}."]
  lines += [f"* **Defaults:** {defaults}", f"* **Traps:** {_prose(loss.section('Traps'))}"]
  lines += [f"* **Config:** `config.loss = {loss.node()}`"]
  lines += [f"  * `{setting}`: {why}" for setting, why in loss.settings()]
  return "\n".join([*lines, ""])


def _own_needs(loss: Subject) -> Iterable[str]:
  """What a kernel needs; of a wrapper what it needs beside its kernel's."""
  if loss.inner is None:
    return loss.needs()
  theirs = loss.inner.attribute("needs", ())
  own = [field for field in loss.attribute("needs", ()) if field not in theirs]
  return ["what its kernel needs", *(subject.NEEDS[field] for field in own)]


_HEAD = f"""# Losses

Generated by `{COMMAND} --markdown > docs/losses.md` from the docstrings, signatures and
attributes of the functions in `larpo_jax/losses`, and from evaluating them; change those, not this
page. `{COMMAND} NAME` prints the same of one loss, with its values at the reference.

A loss is named in a config as `config.loss = dict(name="pairwise.dpo", beta=0.1)`, or as a tuple of
such nodes with a `weight` each. A wrapper holds another: `dict(name="wrappers.robust", epsilon=0.1,
kernel=dict(name="pairwise.ipo"))`.

## Shapes
"""


def _pictures() -> Iterator[str]:
  for file, (drawn, seen) in PICTURES.items():
    yield f"![{drawn}]({file})\n\n{seen}\n"
    yield f"```bash\n{COMMAND} {drawn} --plot docs/{file}\n```\n"


def _table(families: dict[str, list[str]]) -> str:
  """A line for each loss; yes where something has to be thought of."""
  heads = "reads a reference | reads all of a list | couples prompts | carries statistics"
  head = f"| loss | what it is | {heads} |"
  lines = [head, "|---|---|---|---|---|---|"]
  for names in families.values():
    for loss in map(subject.parse, names):
      flags = [
        loss.attribute("needs_reference", True),
        "middle" in measured.facts(loss.kernel).reads,
        loss.attribute("couples_prompts", False),
        bool(loss.attribute("statistics", None)),
      ]
      told = ["its kernel's"] * 3 + [""] if loss.inner else ["yes" if on else "" for on in flags]
      summary = _prose(loss.summary).replace("|", "\\|")
      cells = [f"[`{loss.name}`](#{loss.name.replace('.', '')})", summary, *told]
      lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def _chain(loss: Subject) -> Iterator[Subject]:
  """A wrapper, what it wraps, and so on to the kernel."""
  part: Subject | None = loss
  while part is not None:
    yield part
    part = part.inner


def _values(loss: Subject, quote: str = "") -> str:
  return ", ".join(
    f"{quote}{key}={subject.shown(value)}{quote}" for key, value in loss.values.items()
  )


def _prose(text: str) -> str:
  """Text of a docstring as Markdown: what is not in backticks stays as it is written."""
  parts = re.split(r"(`[^`]*`)", text)
  return "".join(p if p[:1] == "`" else re.sub(r"([*<])", r"\\\1", p) for p in parts)


def _field(title: str, texts: Iterable[str]) -> list[str]:
  """Lines of a titled block, each text on its own."""
  lines = []
  for text in filter(None, texts):
    first = f"{title:{INDENT}}"
    lines.append(
      textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
      )
    )
    title = ""
  return [*lines, ""] if lines else []
