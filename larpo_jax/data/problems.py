"""What can be wrong with a row, and the account of a data set's bad rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
import dataclasses
import json
import pathlib
from typing import Any

# A kind may carry the column it concerns after a colon: "null:chosen".
KINDS = {
  "broken_json": "the line is not JSON",
  "not_utf8": "the line is not UTF-8",
  "not_object": "the line is JSON but not an object",
  "missing": "a column that the reader names is not there",
  "null": "a column is null",
  "type": "a column has another type than the reader needs",
  "empty": "a text is empty or only white space",
  "lone_surrogate": "a text holds half a surrogate pair, which no tokenizer can encode",
  "not_finite": "a label is nan or infinite",
  "unequal_lengths": "responses and labels are not equally many",
  "one_candidate": "a list with fewer than two responses",
  "equal": "the responses of a list are all the same text",
  "all_tied": "the labels of a list are all equal, so nothing is preferred",
  "no_prompt": "chosen and rejected share no prefix to take as the prompt",
  "messages": "a conversation that is not a list of {role, content}, or whose turns do not fit",
  "template": "the chat template refuses the conversation",
  "bos_inside": "a beginning-of-sequence token inside the sequence",
  "no_tokens": "a prompt or response of no tokens",
  # By policy, stated in the config: counted, and never a reason to stop.
  "overlong": "longer than max_prompt or max_response under overlong='drop'",
  "equal_after_truncation": "fewer than two different responses are left after truncation",
}
POLICY = ("overlong", "equal_after_truncation")
SHOWN = 3  # bad rows that an error message names
PATIENCE = 100  # bad rows beyond the allowed after which reading stops


class BadRow(ValueError):
  """A row that cannot be trained on; kind is one of KINDS, with ":column" where one is to blame."""

  def __init__(self, kind: str, detail: str = "") -> None:
    super().__init__(f"{kind}: {detail or KINDS[kind.partition(':')[0]]}")
    self.kind = kind
    self.detail = detail or KINDS[kind.partition(":")[0]]


@dataclasses.dataclass
class Report:
  """The account of a data set: every row is either kept or rejected for one kind of reason."""

  source: str
  rows: int = 0  # read
  kept: int = 0
  rejected: Counter[str] = dataclasses.field(default_factory=Counter)
  notes: Counter[str] = dataclasses.field(default_factory=Counter)  # of the rows that were kept

  def bad(self, skip: Iterable[str]) -> Counter[str]:
    """The rejected rows that neither a policy nor skip accounts for, by kind."""
    return Counter({kind: n for kind, n in self.rejected.items() if is_bad(kind, skip)})

  def check(self, skip: Iterable[str], max_bad_rows: int, listed: pathlib.Path) -> None:
    """Raises ValueError when more rows are bad than allowed, or none is left.

    listed is the file that has the rejected rows, a JSON object with where, kind and detail a line.
    """
    bad = self.bad(skip)
    if bad.total() > max_bad_rows:
      counts = ", ".join(f"{kind} {count}" for kind, count in bad.most_common())
      raise ValueError(
        f"{bad.total()} of {self.rows} rows of {self.source} are bad, {max_bad_rows} allowed"
        f" ({counts}); first {'; '.join(_first(listed, skip))}: mend them, leave such rows out with"
        f" data.skip={_bases(bad)}, or set data.max_bad_rows={bad.total()}; all are in {listed}"
      )
    if not self.kept:
      counts = ", ".join(f"{kind} {count}" for kind, count in self.rejected.most_common())
      raise ValueError(f"no row of {self.source} is left of {self.rows} ({counts}); see {listed}")

  def __str__(self) -> str:
    """One line: what was kept, what was not, what was cut."""
    parts = [f"{self.kept} of {self.rows} rows of {self.source} kept"]
    for title, counts in (("left out", self.rejected), ("of these", self.notes)):
      listed = ", ".join(
        f"{count} {kind.replace('_', ' ')}" for kind, count in counts.most_common()
      )
      parts += [f"{title}: {listed}"] if listed else []
    return "; ".join(parts)

  def to_json(self) -> dict[str, Any]:
    """The account as plain JSON."""
    return {**vars(self), "rejected": dict(self.rejected), "notes": dict(self.notes)}

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> Report:
    """The account that to_json wrote."""
    counters = {key: Counter(value[key]) for key in ("rejected", "notes")}
    return cls(**{**value, **counters})


def is_bad(kind: str, skip: Iterable[str]) -> bool:
  """Whether a rejected row of that kind counts as bad: it was not asked for."""
  base = kind.partition(":")[0]
  return base not in POLICY and not any(name in (kind, base) for name in skip)


def _bases(kinds: Iterable[str]) -> tuple[str, ...]:
  """Kinds without their columns."""
  return tuple(dict.fromkeys(kind.partition(":")[0] for kind in kinds))


def _first(listed: pathlib.Path, skip: Iterable[str]) -> list[str]:
  found = []
  with listed.open(encoding="utf-8") as file:
    for line in file:
      row = json.loads(line)
      if is_bad(row["kind"], skip):
        found.append(f"{row['where']} {row['kind']} ({row['detail']})")
      if len(found) == SHOWN:
        break
  return found


def check_skip(skip: Iterable[str]) -> tuple[str, ...]:
  """The kinds to leave out; ValueError that lists the kinds there are when one is unknown."""
  if isinstance(skip, str):
    raise ValueError(f"data.skip is a tuple of kinds, such as ({skip!r},)")
  names = tuple(skip)
  for name in names:
    if name.partition(":")[0] not in KINDS:
      raise ValueError(f"data.skip names no kind of bad row: {name!r}; kinds: {', '.join(KINDS)}")
  return names
