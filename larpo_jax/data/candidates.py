"""Which responses of a list are kept, and how much of them: always one decision for the whole list.

* A text that stands in a list twice is kept once, in its first place, with its best label.
* Equal labels are kept; a list whose labels are all equal prefers nothing and is a bad row.
* Of a list longer than `candidates` evenly spaced ranks are kept, the best and the worst included.
* A prompt keeps its end and is the same for every response. A response that is cut keeps its start
  and gets no end-of-turn token, for it did not end there. Never are there 0 tokens to train on.
* Responses that are equal once they are cut count as one; a list needs two that differ.
* What else is known of a response, such as a second score, goes with the label that is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
import dataclasses
from typing import NamedTuple

import numpy as np

from larpo_jax.data.problems import BadRow
from larpo_jax.data.readers import Example


@dataclasses.dataclass(frozen=True)
class Policy:
  """What happens to long, wide and oddly bounded lists; always one decision for the whole list."""

  max_prompt: int  # tokens; of a longer prompt the end is kept, and its BOS
  max_response: int  # tokens, the end of turn among them; a longer one keeps its start, without end
  candidates: int = 0  # responses; of a longer list evenly spaced ranks are kept; 0 is no limit
  overlong: str = "truncate"  # or "drop": an overlong response, or a list with an overlong prompt
  eos: bool = True  # responses end in one end-of-turn token that is trained on
  chat: bool = False  # texts become a user's and an assistant's turn
  boundary: str = "joint"  # or "apart": texts of prompt and response are tokenised on their own
  loss_on: str = "last"  # or "all_assistant": every assistant turn, those of the prompt too
  spans: bool = False  # the tokens that differ from the best response are marked, and numbered

  def __post_init__(self) -> None:
    for name, allowed in (
      ("overlong", ("truncate", "drop")),
      ("boundary", ("joint", "apart")),
      ("loss_on", ("last", "all_assistant")),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(f"data.{name} is one of {allowed}, not {getattr(self, name)!r}")
    for name in ("max_prompt", "max_response"):
      if not getattr(self, name) > 0:
        raise ValueError(f"data.{name} is {getattr(self, name)}: leave room for at least one token")
    if self.candidates < 0:
      raise ValueError(f"data.candidates is {self.candidates}: 0 is no limit, else at least 1")


class Tokens(NamedTuple):
  """A row: ids int32, mask bool (what is trained on), a label for each response.

  What not every data set has is None, in all rows or in none.
  """

  prompt: np.ndarray
  responses: list[np.ndarray]
  masks: list[np.ndarray]
  labels: list[float]
  scores: list[float] | None = None  # a second judge's, one a response
  importance: list[float] | None = None  # what each response counts
  spans: list[np.ndarray] | None = None  # uint16, like ids: 0 shared, i > 0 the i-th edited span


def distinct(example: Example, notes: Counter) -> Example:
  """Each text once, in the place where it first stands, with its best label."""
  best: dict[str, int] = {}  # where the text has its best label
  for place, (response, label) in enumerate(zip(example.responses, example.labels)):
    before = best.setdefault(repr(response), place)
    if label > example.labels[before]:
      best[repr(response)] = place
  notes["duplicate_candidates"] += len(example.responses) - len(best)
  if example.ranked:
    labels = {example.labels[place] for place in best.values()}
    if len(example.responses) < 2:
      raise BadRow("one_candidate", f"{len(example.responses)} responses")
    if len(best) < 2:
      raise BadRow("equal", f"all {len(example.responses)} responses are the same")
    if len(labels) < 2:
      raise BadRow("all_tied", f"all {len(best)} labels are {labels.pop():g}")
    notes["lists_with_ties"] += len(labels) < len(best)
  return _take(example, best.values())


def thin(example: Example, limit: int, notes: Counter) -> Example:
  """At most limit responses, evenly spaced by rank, the best and the worst among them."""
  count = len(example.responses)
  if limit == 1 and example.ranked:
    raise ValueError("data.candidates is 1, and a list has a best and a worst: give at least 2")
  if not limit or count <= limit:
    return example
  ranks = np.argsort(-np.asarray(example.labels), kind="stable")
  chosen = sorted(ranks[np.round(np.linspace(0, count - 1, limit)).astype(int)])
  notes.update(lists_thinned=1, candidates_thinned=count - limit)
  return _take(example, chosen)


def _take(example: Example, places: Iterable[int]) -> Example:
  """The responses at those places, with all that is known of each."""
  places = list(places)
  return example._replace(
    responses=[example.responses[i] for i in places],
    labels=[example.labels[i] for i in places],
    scores=_pick(example.scores, places),
    importance=_pick(example.importance, places),
  )


def _pick(values: list[float] | None, places: list[int]) -> list[float] | None:
  return None if values is None else [values[i] for i in places]


def cut(tokens: Tokens, policy: Policy, notes: Counter, *, bos: int | None, ranked: bool) -> Tokens:
  """Applies the length limits to the list, and leaves out what they make equal or empty."""
  prompt, limit = tokens.prompt, policy.max_prompt
  counts = Counter(prompts=1, prompt_tokens=len(prompt))
  if len(prompt) > limit:
    if policy.overlong == "drop":
      raise BadRow("overlong", f"a prompt of {len(prompt)} tokens")
    counts.update(prompts_cut=1, prompt_tokens_cut=len(prompt) - limit)
    keep = 1 if prompt[0] == bos and limit > 1 else 0
    prompt = np.concatenate([prompt[:keep], prompt[len(prompt) - limit + keep :]])
  kept: dict[tuple[bytes, bytes], tuple[np.ndarray, np.ndarray, int]] = {}
  labels = tokens.labels
  for place, (ids, mask) in enumerate(zip(tokens.responses, tokens.masks)):
    counts.update(responses=1, response_tokens=len(ids))
    if not mask.any():
      raise BadRow("no_tokens", "a response of no tokens")
    if len(ids) > policy.max_response:
      counts.update(responses_cut=1, response_tokens_cut=len(ids) - policy.max_response)
      if policy.overlong == "drop":
        continue
    ids, mask = ids[: policy.max_response], mask[: policy.max_response]
    key = (ids.tobytes(), mask.tobytes())
    if not mask.any() or (key in kept and labels[kept[key][2]] >= labels[place]):
      counts["candidates_lost"] += 1
      continue
    counts["candidates_lost"] += key in kept
    kept[key] = (ids, mask, place)
  notes.update(counts)
  rest = list(kept.values())
  places = [place for _, _, place in rest]
  labels = [labels[place] for place in places]
  _check_rest(labels, len(tokens.responses), policy, ranked)
  return Tokens(
    prompt,
    [ids for ids, _, _ in rest],
    [mask for _, mask, _ in rest],
    labels,
    _pick(tokens.scores, places),
    _pick(tokens.importance, places),
  )


def _check_rest(labels: list[float], given: int, policy: Policy, ranked: bool) -> None:
  if given and (not labels or (ranked and (len(labels) < 2 or len(set(labels)) < 2))):
    kind = "overlong" if policy.overlong == "drop" else "equal_after_truncation"
    raise BadRow(kind, f"{len(labels)} of {given} responses are left")
