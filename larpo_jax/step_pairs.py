"""Pairs of single steps: the first wrong step of an answer against one that goes on right.

Step-DPO, https://arxiv.org/abs/2406.18629, Eq. 2: what is right so far belongs to the prompt, one
step of each side is scored, and no end of sequence is appended, for a step is not the end of an
answer. Here the world's exact checker finds the error, where the paper asks another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np

from larpo_jax import responders, stage, workdir, worlds
from larpo_jax.data import batching, problems, store
from larpo_jax.data.candidates import Tokens
from larpo_jax.data.selection import Selected
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.responders import Draw
from larpo_jax.session import Session


class Pair(NamedTuple):
  """A wrong answer, and a right one that is the same up to the error."""

  source: int  # row of the prompt in the data
  prompt: np.ndarray  # token ids
  question: str
  wrong: list[str]  # steps
  first: int  # the place of the first wrong one
  located: int  # the place that is compared
  right: Sequence[str] = ()  # steps; none until they are found


class _Prefixes:
  """Prompts that go on with what is right of a wrong answer, as data to batch."""

  def __init__(self, session: Session, pairs: list[Pair], pad: int) -> None:
    self._rows = [_prefixed(session, pair, pair.first) for pair in pairs]
    self.pad, self.candidates = pad, 0
    self.prompt_lengths = self.row_lengths = np.asarray([len(ids) for ids in self._rows])
    self.response_lengths = np.zeros_like(self.prompt_lengths)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Tokens:
    return Tokens(self._rows[index], [], [], [])


def build(
  session: Session, number: int, params: Any, pool: store.TokenizedData
) -> store.TokenizedData:
  """The pairs of a round by rounds.steps, of the candidates that the policy sampled in it.

  One a prompt, of its first wrong answer in which a step is wrong and not just missing. Read where
  they are already; lists.jsonl has what `rounds.build` writes, and of each pair the places
  "first_wrong" and "located". Raises ValueError where there is no pair, or too few to misplace.
  """
  directory = session.workdir / "rounds" / str(number)
  found = store.load(directory / "lists")
  stage.together(f"every process has looked for the steps of round {number}")
  if found is not None:
    _clear(session, number)  # what a kill may have left beside them
    return found
  flawed = list(_flawed(session, pool))
  pairs, tokens = _completed(session, number, params, flawed, pool)
  stage.together(f"every process has read the continuations of round {number}")
  if not pairs:
    raise ValueError(
      f"in round {number} none of {len(flawed)} wrong answers has a right continuation: raise "
      "rounds.prompts, rounds.candidates or rounds.steps.continuations"
    )
  pairs = _misplaced(session, number, pairs[: session.config.rounds.steps.pairs or None])
  if jax.process_index() == 0:
    report = problems.Report(f"round {number}", len(flawed), len(pairs))
    report.notes["continuation_tokens"] = tokens
    with store.Writer(directory / "lists") as writer:
      lines = [_line(session, pair) for pair in pairs]
      for pair, line in zip(pairs, lines):
        writer.add(_tokens(session, pair, line, pool.end), pair.source)
      text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
      workdir.write_text(directory / "lists.jsonl", text)
      writer.finish(report, pad=pool.pad, end=pool.end)
    _clear(session, number)
  stage.together(f"the steps of round {number} are written")
  return store.load(directory / "lists")  # type: ignore[return-value]


def described(
  session: Session, number: int, params: Any, data: store.TokenizedData
) -> dict[str, float]:
  """How many wrong answers and pairs a round has, and how likely the policy finds each side.

  steps/tokens is what was sampled beside the candidates. steps/chosen_logp and steps/rejected_logp
  are mean log-probs of whole responses in nats, under the policy at the start of the round, before
  it learns from them.
  """
  name = f"steps_{number}"
  numbers = stage.remembered(session, name, lambda: _likely(session, params, data))
  return {
    "steps/wrong_answers": float(data.report.rows),
    "steps/pairs": float(len(data)),
    "steps/tokens": float(data.report.notes["continuation_tokens"]),
    **numbers,
  }


def _flawed(session: Session, pool: store.TokenizedData) -> Iterator[Pair]:
  """Of each prompt the first whole answer that is wrong, by a step that is there."""
  world = worlds.find(session.config.world["name"])
  for place in range(len(pool)):
    tokens = pool[place]
    question, *texts = session.tokenizer.batch_decode(
      [tokens.prompt, *tokens.responses], skip_special_tokens=True
    )
    (right,) = world.accuracy([question], [texts])
    for text, ids, is_right in zip(texts, tokens.responses, right):
      steps, first = world.steps(text), world.first_wrong(question, text)
      ended = ids[-1] == pool.end  # else it is cut, and no answer
      if ended and not is_right and first is not None and first < len(steps):
        yield Pair(int(pool.sources[place]), tokens.prompt, question, steps, first, first)
        break


def _completed(
  session: Session, number: int, params: Any, flawed: list[Pair], pool: store.TokenizedData
) -> tuple[list[Pair], int]:
  """Those with a right answer, and how many tokens were sampled to find them.

  It is the world's own, or the first of the policy's that ends right without an error on the way:
  the paper's rule is a right end, then a filter of what is right by luck. Where a right answer has
  no step in the place of the wrong one, as it ends there, there is nothing to choose.
  """
  world = worlds.find(session.config.world["name"])
  if session.config.rounds.steps.chosen == "oracle":
    answers, tokens = [[world.styled(world.solution(pair.question))] for pair in flawed], 0
  else:
    answers, tokens = _continued(session, number, params, flawed, pool)
  found = []
  for pair, texts in zip(flawed, answers):
    right = (world.steps(text) for text in texts if world.first_wrong(pair.question, text) is None)
    steps = next((steps for steps in right if len(steps) > pair.first), None)
    if steps is not None:
      found.append(pair._replace(right=steps))
  return found, tokens


def _continued(
  session: Session, number: int, params: Any, flawed: list[Pair], pool: store.TokenizedData
) -> tuple[list[list[str]], int]:
  """The whole answers that the policy makes of each wrong one's right beginning; the tokens."""
  if not flawed:
    return [], 0
  rounds = session.config.rounds
  draws = [Draw("self", rounds.steps.continuations, rounds.temperature)]
  asked = Selected(_Prefixes(session, flawed, pool.pad), np.arange(len(flawed)))
  key, kept = session.key(8, number), _batches(session, number) / "own"
  found = responders.answered(
    session, params, number, asked, pool.end, key, draws, kept=kept, title=f"continue {number}"
  )
  answers = []
  for pair, each in zip(flawed, found):
    begun = "".join(pair.wrong[: pair.first])
    answers.append([begun + text for text, done in zip(each.texts, each.finished) if done])
  return answers, sum(len(ids) for each in found for ids in each.responses)


def _batches(session: Session, number: int) -> pathlib.Path:
  """Where the sampled batches of a round lie until its pairs are written."""
  return session.workdir / "rounds" / str(number) / "continued"


def _clear(session: Session, number: int) -> None:
  if jax.process_index() == 0:
    shutil.rmtree(_batches(session, number), ignore_errors=True)


def _misplaced(session: Session, number: int, pairs: list[Pair]) -> list[Pair]:
  """The pairs, a share rounds.steps.misplaced of them located too late.

  The place is drawn among the later ones where the two answers differ; before the error they are
  the same. A larger share has the pairs of a smaller one among its own, located alike. Raises
  ValueError where too few pairs have such a place.
  """
  seed, share = session.config.seed, session.config.rounds.steps.misplaced
  later = [
    [
      j
      for j, both in enumerate(zip(pair.wrong, pair.right))
      if j > pair.first and both[0] != both[1]
    ]
    for pair in pairs
  ]
  rng = np.random.default_rng([seed, number, 2])
  movable = rng.permutation([place for place, choices in enumerate(later) if choices])
  asked = round(share * len(pairs))
  if asked > len(movable):
    raise ValueError(
      f"config.rounds.steps.misplaced={share} of {len(pairs)} pairs, but in round {number} only "
      f"{len(movable)} go on to differ after the error: lower it, or give the world errors that "
      "are followed by more steps"
    )
  moved = list(pairs)
  for place in movable[:asked]:
    choices = later[place]
    at = np.random.default_rng([seed, number, int(place), 3]).integers(len(choices))
    moved[place] = pairs[place]._replace(located=choices[at])
  return moved


def _line(session: Session, pair: Pair) -> dict[str, Any]:
  """A pair as text: single steps, or whole answers."""
  if session.config.rounds.steps.unit == "answer":
    prompt, sides = pair.question, ["".join(pair.right), "".join(pair.wrong)]
  else:
    at = pair.located
    prompt, sides = pair.question + "".join(pair.wrong[:at]), [pair.right[at], pair.wrong[at]]
  line = dict(prompt=prompt, responses=sides, scores=[1.0, 0.0])
  return line | dict(first_wrong=pair.first, located=pair.located)


def _tokens(session: Session, pair: Pair, line: dict[str, Any], end: int | None) -> Tokens:
  """A pair as token ids: the prompt's own, and those of each step; whole answers end."""
  whole = session.config.rounds.steps.unit == "answer"
  prompt = pair.prompt if whole else _prefixed(session, pair, pair.located)
  close = [end] if whole else []
  sides = [np.asarray([*_ids(session, text), *close], np.int32) for text in line["responses"]]
  return Tokens(prompt, sides, [np.ones(len(ids), bool) for ids in sides], line["scores"])


def _prefixed(session: Session, pair: Pair, place: int) -> np.ndarray:
  """The prompt's ids, and those of the wrong answer's steps before a place."""
  ids = _ids(session, "".join(pair.wrong[:place]))
  return np.concatenate([pair.prompt, np.asarray(ids, np.int32)])


def _ids(session: Session, text: str) -> list[int]:
  return session.tokenizer(text, add_special_tokens=False)["input_ids"]


def _likely(session: Session, params: Any, data: store.TokenizedData) -> Evaluation:
  """Log-probs of the chosen and of the rejected responses."""
  feed = dict(batch_size=session.config.data.batch_size, shuffle=False, epochs=1, **session.layout)
  whole, lines = session.whole(params), []
  for batch in batching.batches(data, shard=stage.shard(), **feed):
    session.poll()
    placed = session.put(batch)
    found = stage.gathered(session.score(whole, placed)).sequence
    row, weight = stage.gathered((placed.row, placed.weight))
    for b in np.flatnonzero(weight > 0):
      chosen, rejected = map(float, found[b])
      lines.append({"row": int(row[b]), "chosen_logp": chosen, "rejected_logp": rejected})
  names = ("chosen_logp", "rejected_logp")
  means = {f"steps/{name}": float(np.mean([line[name] for line in lines])) for name in names}
  return Evaluation(means, lines)
