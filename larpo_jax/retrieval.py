"""The candidates of a round: written by the policy and by others, scored by the reward, on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np

from larpo_jax import inputs, responders, stage, workdir, worlds
from larpo_jax.data import problems, separability, store
from larpo_jax.data.candidates import Tokens
from larpo_jax.responders import Answered
from larpo_jax.session import Session
from larpo_jax.types import Reward


def retrieve(
  session: Session, params: Any, number: int, prompts: store.TokenizedData, reward: Reward
) -> store.TokenizedData:
  """A row of candidates for each prompt of a round, read where they are already.

  Beside the token ids lies what there was to choose from, candidates.jsonl: {"prompt", "responses",
  "scores", "sources", "finished", "lengths"} a line, which `readers.lists` reads. What was sampled
  for the negatives of rounds.negatives="unrelated" lies in unrelated.jsonl, without scores.
  """
  directory = session.workdir / "rounds" / str(number)
  found = store.load(directory / "tokens")
  stage.together(f"every process has looked for round {number}")
  if found is not None:
    _clear(session, number)  # what a kill may have left beside them
    return found
  taught = responders.taught(session, number, prompts)  # first: a wrong path is said soon
  key = session.key(2, number)
  answered = responders.sampled(session, params, number, prompts, key, name="own")
  strangers = _strangers(session, params, number, answered)
  given = responders.given(session, prompts, answered)
  pool = [responders.joined(parts) for parts in zip(answered, *taught, *given)]
  scores = _scored(session, reward, pool)
  rows = _candidates(session, pool, scores, strangers, reward, prompts.end)
  stage.together(f"every process has read the batches of round {number}")
  if jax.process_index() == 0:
    report = problems.Report(f"round {number}", len(rows), len(rows))
    with store.Writer(directory / "tokens") as writer:
      for each, row in zip(pool, rows):
        responses, labels = [one.ids for one in row], [one.label for one in row]
        masks = [np.ones(len(ids), bool) for ids in responses]
        writer.add(Tokens(each.prompt, responses, masks, labels), each.row)
      _tell(directory / "candidates.jsonl", pool, scores)
      if session.config.rounds.negatives == "unrelated":
        _tell(directory / "unrelated.jsonl", strangers)
      writer.finish(report, pad=prompts.pad, end=prompts.end)
    _clear(session, number)
  stage.together(f"round {number} is written")
  return store.load(directory / "tokens")  # type: ignore[return-value]


def _clear(session: Session, number: int) -> None:
  """Removes the batches of a round that is written, and what a kill left half-written."""
  if jax.process_index() == 0:
    directory = session.workdir / "rounds" / str(number)
    for path in (responders.partial(session, number), *directory.glob(".*")):
      shutil.rmtree(path, ignore_errors=True)


def described(session: Session, number: int) -> dict[str, float]:
  """What the policy sampled in a round, in numbers, read back from its files.

  candidates/tokens are those of all that was sampled, by teachers and for other prompts, too;
  candidates/separable is `separability` of the best and the worst that lists are built of.
  """
  directory = session.workdir / "rounds" / str(number)
  rows = workdir.read_jsonl(directory / "candidates.jsonl")
  strangers = workdir.read_jsonl(directory / "unrelated.jsonl")
  own = [_only(row, ("greedy", "self")) for row in rows]
  sampled = [_only(row, ("greedy", "self", "teacher")) for row in rows + strangers]
  scores = [np.asarray(row["scores"]) for row in own]
  return {
    "candidates/reward": float(np.mean([each.mean() for each in scores])),
    "candidates/best": float(np.mean([each.max() for each in scores])),
    "candidates/all_tied": float(np.mean([each.max() == each.min() for each in scores])),
    "candidates/unique": float(np.mean([len(set(r["responses"])) / len(r["scores"]) for r in own])),
    "candidates/finished": float(np.mean([np.mean(row["finished"]) for row in own])),
    "candidates/tokens": float(sum(sum(row["lengths"]) for row in sampled)),
    "candidates/separable": _separable(store.load(directory / "tokens")),  # type: ignore[arg-type]
  }


def _only(row: dict[str, Any], sources: Sequence[str]) -> dict[str, Any]:
  """A line of candidates without those of other sources."""
  kept = [place for place, source in enumerate(row["sources"]) if source in sources]
  return {name: [row[name][i] for i in kept] for name in row if name != "prompt"}


def _separable(pool: store.TokenizedData) -> float:
  pairs = []
  for tokens in (pool[place] for place in range(len(pool))):
    best, worst = np.argmax(tokens.labels), np.argmin(tokens.labels)
    if tokens.labels[best] > tokens.labels[worst]:
      pairs.append((tokens.responses[best], tokens.responses[worst]))
  return separability.separability([better for better, _ in pairs], [worse for _, worse in pairs])


def _strangers(
  session: Session, params: Any, number: int, answered: list[Answered]
) -> list[Answered]:
  """For each prompt of a round another one, whose responses it takes as its negatives."""
  rounds = session.config.rounds
  if rounds.negatives == "unrelated":
    prompts, key = inputs.unrelated(session), session.key(4, number)
    return responders.sampled(session, params, number, prompts, key, name="unrelated")
  if rounds.negatives == "other_prompt":
    return [_other(answered, place) for place in range(len(answered))]
  return []


def _other(answered: list[Answered], place: int) -> Answered:
  """The next one, the first coming after the last, that has another prompt."""
  for other in answered[place + 1 :] + answered[:place]:
    if other.question != answered[place].question:
      return other
  raise ValueError(
    "rounds.negatives='other_prompt' needs two prompts that differ in a round: raise rounds.prompts"
  )


def _scored(session: Session, reward: Reward, pool: list[Answered]) -> list[list[float]]:
  """The reward of every response, asked for a batch of prompts at a time."""
  scores: list[list[float]] = []
  size = session.config.rounds.batch_size
  for some in (pool[start : start + size] for start in range(0, len(pool), size)):
    given = reward([each.question for each in some], [each.texts for each in some])
    scores += np.asarray(given, np.float64).tolist()
  return scores


class Candidate(NamedTuple):
  """A response that lists are built of."""

  ids: np.ndarray
  text: str
  source: str
  label: float  # higher is better


def _candidates(
  session: Session,
  pool: list[Answered],
  scores: list[list[float]],
  strangers: list[Answered],
  reward: Reward,
  end: int | None,
) -> list[list[Candidate]]:
  """The candidates of the sources to learn from; of all the best alone before a stranger's."""
  rounds = session.config.rounds
  rows = [
    _preferred(list(map(Candidate, each.responses, each.texts, each.sources, values)), rounds)
    for each, values in zip(pool, scores)
  ]
  if strangers:
    values = reward([each.question for each in pool], [each.texts for each in strangers])
    for row, each, value in zip(rows, strangers, np.asarray(values, np.float64).tolist()):
      best = max(row, key=lambda one: one.label)
      row[:] = best, *map(Candidate, each.responses, each.texts, each.sources, value)
  if not rounds.styled:
    return rows
  world = worlds.find(session.config.world["name"])
  return [_styled(session, world.styled, row, end) for row in rows]


def _preferred(row: list[Candidate], rounds: Any) -> list[Candidate]:
  """Those of the sources of rounds.prefer, labelled by their place in it if there are several."""
  prefer = list(rounds.prefer)
  if not prefer:
    return row
  kept = [one for one in row if one.source in prefer]
  if len(prefer) == 1:
    return kept
  return [one._replace(label=float(len(prefer) - 1 - prefer.index(one.source))) for one in kept]


def _styled(
  session: Session, style: Callable[[str], str], row: list[Candidate], end: int | None
) -> list[Candidate]:
  """The row with what rounds.styled names written in another style."""
  styled = session.config.rounds.styled
  best = max(range(len(row)), key=lambda place: row[place].label)
  result = []
  for place, one in enumerate(row):
    text = style(one.text)
    chosen = one.source in styled or ("best" in styled and place == best)
    if chosen and text != one.text:
      ids = responders.encoded(session, text, end if one.ids[-1] == end else None)
      one = one._replace(text=text, ids=ids)
    result.append(one)
  return result


def _tell(
  path: pathlib.Path, answered: list[Answered], scores: list[list[float]] | None = None
) -> None:
  """Writes the answers to each prompt, a prompt a line."""
  lines = []
  for place, each in enumerate(answered):
    line: dict[str, Any] = dict(prompt=each.question, responses=each.texts)
    line |= {} if scores is None else {"scores": scores[place]}
    line |= {"sources": each.sources, "finished": each.finished}
    line["lengths"] = [len(ids) for ids in each.responses]
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  workdir.write_text(path, "".join(lines))
