"""Rows of any preference data set -> a prompt with its labelled responses.

A reader is named in the config, as in `dict(name="readers.lists", prompt="question",
responses="candidates.text", scores="candidates.score")`. A column is a dotted path that maps over
lists, so `candidates.text` is the text of each candidate; "{instruction}\n{input}" puts several
columns into one text, stripped. A value is a text or a conversation: a list of {role, content}.
Whatever is not as it should be raises BadRow.
"""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import json
import math
import re
from typing import Any, NamedTuple

from larpo_jax.data.problems import BadRow

Message = dict[str, Any]
Conversation = list[Message]
Text = str | Conversation
Row = dict[str, Any]

# How a preference model is shown two answers; its own is A or B, the better one.
VERDICT = "{prompt}\n\nA: {first}\n\nB: {second}\n\nWhich answer is better, A or B?"


class Example(NamedTuple):
  """A prompt, the responses to it and their labels, higher is better."""

  prompt: Text | None  # None for bare text
  responses: list[Text]
  labels: list[float]
  tools: list[Any] | None = None
  ranked: bool = False  # the responses compete: at least two, with different labels
  scores: list[float] | None = None  # a second judge's rewards, one a response
  importance: list[float] | None = None  # what each response counts


def pairs(
  row: Row,
  *,
  prompt: str = "prompt",
  chosen: str = "chosen",
  rejected: str = "rejected",
  chosen_score: str = "",
  rejected_score: str = "",
  chosen_importance: str = "",
  rejected_importance: str = "",
) -> Example:
  """Chosen (label 1) against rejected (label 0).

  The prompt is implicit where prompt="" or the row has no such column, and where the answers are
  whole conversations beside a prompt of plain text: it is then the prefix that the two share, up to
  the last white space before they part. Source of that rule: TRL's `extract_prompt`. A second
  judge's scores, and what each answer counts, are columns of numbers, both answers' or neither's.
  """
  scores = _both(row, chosen_score, rejected_score)
  importance = _both(row, chosen_importance, rejected_importance)
  better, worse = _text(row, chosen), _text(row, rejected)
  if isinstance(better, str) != isinstance(worse, str):
    raise BadRow(f"type:{rejected}", "one answer is a text and the other a conversation")
  given = _text(row, prompt) if prompt and ("{" in prompt or _has(row, prompt)) else None
  whole = not isinstance(better, str) and better[0]["role"] != "assistant"
  if given is None or (whole and isinstance(given, str)):
    if better == worse:
      raise BadRow("equal", "chosen and rejected are the same")
    given, better, worse = _split(better, worse)
  return Example(given, [better, worse], [1.0, 0.0], _tools(row), True, scores, importance)


def lists(
  row: Row,
  *,
  prompt: str,
  responses: str,
  scores: str = "",
  rank: str = "",
  second_scores: str = "",
  importance: str = "",
) -> Example:
  """Any number of responses with a score each (higher is better) or a rank each (lower is better).

  The label is the score, or minus the rank. Raises ValueError unless one of the two is named.
  second_scores are another judge's, importance is what each response counts; "": not there.
  """
  if bool(scores) == bool(rank):
    raise ValueError("readers.lists needs one of scores (higher is better) and rank (0 is best)")
  found = _list(row, responses)
  labels = _numbers(row, scores or rank, len(found))
  sign = 1.0 if scores else -1.0
  return Example(
    _text(row, prompt),
    [_check(value, responses) for value in found],
    [sign * label + 0.0 for label in labels],  # no -0
    _tools(row),
    ranked=True,
    scores=_numbers(row, second_scores, len(found)) if second_scores else None,
    importance=_numbers(row, importance, len(found)) if importance else None,
  )


def verdicts(
  row: Row, *, prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected"
) -> Example:
  """Which of two answers is better, as VERDICT asks: the responses are "A" and "B".

  The label is 1 for the chosen answer's letter and 0 for the other's. The texts' own hash says
  which of the two is A, so that a letter tells nothing. All three columns are texts.
  """
  given, *answers = (_text(row, column) for column in (prompt, chosen, rejected))
  for column, value in zip((prompt, chosen, rejected), (given, *answers)):
    if not isinstance(value, str):
      raise BadRow(f"type:{column}", "needs a text, not a conversation")
  if answers[0] == answers[1]:
    raise BadRow("equal", "chosen and rejected are the same")
  swapped = hashlib.blake2b(repr((given, *answers)).encode(), digest_size=1).digest()[0] % 2
  first, second = answers[::-1] if swapped else answers
  shown = VERDICT.format(prompt=given, first=first, second=second)
  return Example(shown, ["A", "B"], [1.0 - swapped, 0.0 + swapped], ranked=True)


def unpaired(
  row: Row,
  *,
  prompt: str = "prompt",
  completion: str = "completion",
  label: str = "label",
  importance: str = "",
) -> Example:
  """One response that is good (true or +1: label 1) or bad (false or -1: label -1).

  importance is a column of numbers, what each response counts; "": not there.
  """
  value = _get(row, label)
  if value is None:
    raise BadRow(f"null:{label}")
  if not isinstance(value, bool) and (not isinstance(value, int | float) or abs(value) != 1):
    raise BadRow(f"type:{label}", f"needs true, false, +1 or -1, not {value!r:.40}")
  sign = 1.0 if value > 0 else -1.0
  counts = [_number(_get(row, importance), importance)] if importance else None
  given, answer = _text(row, prompt), _text(row, completion)
  return Example(given, [answer], [sign], _tools(row), importance=counts)


def supervised(row: Row, *, prompt: str = "prompt", response: str = "response") -> Example:
  """One response to imitate (label 1); with response="" the last turn of the conversation."""
  given = _text(row, prompt)
  if response:
    return Example(given, [_text(row, response)], [1.0], _tools(row))
  if isinstance(given, str) or len(given) < 2:
    raise BadRow(f"type:{prompt}", "needs a conversation of at least two turns where response=''")
  return Example(given[:-1], [given[-1:]], [1.0], _tools(row))


def prompts(row: Row, *, prompt: str = "prompt") -> Example:
  """A prompt to sample responses for."""
  return Example(_text(row, prompt), [], [], _tools(row))


def text(row: Row, *, text: str = "text") -> Example:
  """Bare text, all of which is trained on (label 1)."""
  value = _text(row, text)
  if not isinstance(value, str):
    raise BadRow(f"type:{text}", "needs a text, not a conversation")
  return Example(None, [value], [1.0])


def texts(example: Example) -> Iterator[str]:
  """Every text of an example."""
  for value in (example.prompt or "", *example.responses):
    if isinstance(value, str):
      yield value
    else:
      yield from (m["content"] for m in value if isinstance(m.get("content"), str))


def _get(row: Any, path: str) -> Any:
  """The value at a dotted path; over a list, the list of its items' values."""
  value = row
  for step in path.split("."):
    items = value if isinstance(value, list) else [value]
    for item in items:
      if not isinstance(item, dict):
        raise BadRow(f"type:{path}", f"no {step!r} in {_kind(item)}")
      if step not in item:
        raise BadRow(f"missing:{path}", f"no {step!r}; there are {', '.join(map(str, item)):.200}")
    value = [item[step] for item in items] if isinstance(value, list) else value[step]
  return value


def _has(row: Row, path: str) -> bool:
  return path.split(".")[0] in row


def _text(row: Row, column: str) -> Text:
  """A checked text or conversation, of one column or of several in braces."""
  if "{" not in column:
    return _check(_get(row, column), column)

  def fill(match: re.Match[str]) -> str:
    value = _get(row, match[1])
    if not isinstance(value, str):
      kind = "null" if value is None else "type"
      raise BadRow(f"{kind}:{match[1]}", f"needs a text, not {_kind(value)}")
    return value

  return _check(re.sub(r"\{([\w.-]+)\}", fill, column).strip(), column)


def _check(value: Any, column: str) -> Text:
  if value is None:
    raise BadRow(f"null:{column}")
  if isinstance(value, list):
    return _conversation(value, column)
  if not isinstance(value, str):
    raise BadRow(f"type:{column}", f"needs a text or a conversation, not {_kind(value)}")
  if not value.strip():
    raise BadRow(f"empty:{column}")
  _encodable(value, column)
  return value


def _conversation(value: list[Any], column: str) -> Conversation:
  """A checked conversation; entries that are None, as tables fill them in, are left out."""
  if not value:
    raise BadRow(f"empty:{column}")
  turns = []
  for turn in value:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
      shown = ", ".join(map(str, turn)) if isinstance(turn, dict) else _kind(turn)
      raise BadRow("messages", f"{column}: a turn needs role and content, not {shown:.100}")
    turn = {key: entry for key, entry in turn.items() if entry is not None}
    content = turn.get("content", "" if turn.get("tool_calls") else None)
    if not isinstance(content, str):
      raise BadRow("messages", f"{column}: content of {turn['role']} is {_kind(content)}, not text")
    _encodable(json.dumps(turn, ensure_ascii=False), column)
    turns.append(turn)
  if not turns[-1].get("tool_calls") and not turns[-1].get("content", "").strip():
    raise BadRow(f"empty:{column}", "the last turn is empty")
  return turns


def _encodable(value: str, column: str) -> None:
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise BadRow(f"lone_surrogate:{column}", f"character {error.start + 1}") from None


def _list(row: Row, column: str) -> list[Any]:
  value = _get(row, column)
  if not isinstance(value, list):
    raise BadRow(f"type:{column}", f"needs a list, not {_kind(value)}")
  return value


def _numbers(row: Row, column: str, count: int) -> list[float]:
  """A number for each of count responses."""
  values = _list(row, column)
  if len(values) != count:
    raise BadRow("unequal_lengths", f"{count} responses and {len(values)} of {column}")
  return [_number(value, column) for value in values]


def _both(row: Row, chosen: str, rejected: str) -> list[float] | None:
  """Two columns' numbers; None where neither is named, ValueError where one is."""
  if bool(chosen) != bool(rejected):
    raise ValueError(
      f"readers.pairs has {chosen or rejected!r} for one answer, and for the other? name both"
    )
  return [_number(_get(row, name), name) for name in (chosen, rejected)] if chosen else None


def _number(value: Any, column: str) -> float:
  if value is None:
    raise BadRow(f"null:{column}")
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise BadRow(f"type:{column}", f"needs a number, not {_kind(value)}")
  try:
    number = float(value)
  except OverflowError:
    number = math.inf
  # Labels are float32 on the device.
  if not math.isfinite(number) or abs(number) > 3e38:
    raise BadRow(f"not_finite:{column}", f"it is {number}")
  return number


def _tools(row: Row) -> list[Any] | None:
  """The `tools` column, as a list or as JSON text."""
  tools = row.get("tools")
  if isinstance(tools, str) and tools.strip():
    try:
      tools = json.loads(tools)
    except ValueError as error:
      raise BadRow("type:tools", f"its text is not JSON: {error}") from None
  if tools and not isinstance(tools, list):
    raise BadRow("type:tools", f"needs a list, not {_kind(tools)}")
  return tools or None


def _split(better: Any, worse: Any) -> tuple[Any, Any, Any]:
  """Prompt, chosen and rejected of two values that begin alike."""
  shared = 0
  while shared < min(len(better), len(worse)) and better[shared] == worse[shared]:
    shared += 1
  if isinstance(better, str) and shared and better[shared - 1] == " ":
    shared -= 1  # tokenizers put a space at the start of a word
  prompt, better, worse = better[:shared], better[shared:], worse[shared:]
  if not prompt or (isinstance(prompt, str) and not prompt.strip()):
    raise BadRow("no_prompt")
  for name, rest in (("chosen", better), ("rejected", worse)):
    if not rest or (isinstance(rest, str) and not rest.strip()):
      raise BadRow(f"empty:{name}", "nothing is left after the shared prefix")
  return prompt, better, worse


def _kind(value: Any) -> str:
  return "null" if value is None else type(value).__name__
