"""The candidates of a round: sampled by the policy, scored by the reward, kept on disk."""

from __future__ import annotations

from collections.abc import Iterator
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from larpo_jax import inputs, stage, workdir, worlds, writers
from larpo_jax.data import batching, problems, store
from larpo_jax.data.candidates import Tokens
from larpo_jax.data.selection import Selected
from larpo_jax.session import Session
from larpo_jax.types import Reward

SAMPLED = ("max_tokens", "top_k", "top_p")  # what sampling takes as it is


class Answered(NamedTuple):
  """A prompt, and what the policy wrote to it."""

  source: int  # its row in the data
  prompt: np.ndarray  # token ids
  question: str
  responses: list[np.ndarray]  # token ids
  texts: list[str]
  finished: list[bool]


def retrieve(
  session: Session, params: Any, number: int, prompts: store.TokenizedData, reward: Reward
) -> store.TokenizedData:
  """A row of candidates for each prompt of a round, read where they are already.

  Beside the token ids lies what was sampled, candidates.jsonl: {"prompt", "responses", "scores",
  "finished", "lengths"} a line, which `readers.lists` reads. What was sampled for the negatives of
  rounds.negatives="unrelated" lies in unrelated.jsonl, without scores.
  """
  directory = session.workdir / "rounds" / str(number)
  found = store.load(directory / "tokens")
  if found is not None:
    return found
  answered: list[Answered] = []
  scores: list[list[float]] = []
  for batch in _sampled(session, params, number, prompts, session.key(2, number)):
    answered += batch
    given = reward([each.question for each in batch], [each.texts for each in batch])
    scores += np.asarray(given, np.float64).tolist()
  strangers = _strangers(session, params, number, answered)
  rows = _candidates(session, prompts.end, answered, scores, strangers, reward)
  if jax.process_index() == 0:
    report = problems.Report(f"round {number}", len(rows), len(rows))
    with store.Writer(directory / "tokens") as writer:
      for each, tokens in zip(answered, rows):
        writer.add(tokens, each.source)
      _tell(directory / "candidates.jsonl", answered, scores)
      if session.config.rounds.negatives == "unrelated":
        _tell(directory / "unrelated.jsonl", strangers)
      writer.finish(report, pad=prompts.pad, end=prompts.end)
  stage.together(f"round {number} is written")
  return store.load(directory / "tokens")  # type: ignore[return-value]


def described(session: Session, number: int) -> dict[str, float]:
  """What was sampled in a round, in numbers, read back from its files."""
  directory = session.workdir / "rounds" / str(number)
  rows = workdir.read_jsonl(directory / "candidates.jsonl")
  strangers = workdir.read_jsonl(directory / "unrelated.jsonl")
  scores = [np.asarray(row["scores"]) for row in rows]
  return {
    "candidates/reward": float(np.mean([each.mean() for each in scores])),
    "candidates/best": float(np.mean([each.max() for each in scores])),
    "candidates/all_tied": float(np.mean([each.max() == each.min() for each in scores])),
    "candidates/unique": float(
      np.mean([len(set(r["responses"])) / len(r["scores"]) for r in rows])
    ),
    "candidates/finished": float(np.mean([np.mean(row["finished"]) for row in rows])),
    "candidates/tokens": float(sum(sum(row["lengths"]) for row in rows + strangers)),
  }


def _sampled(
  session: Session, params: Any, number: int, prompts: store.TokenizedData, key: jax.Array
) -> Iterator[list[Answered]]:
  """What the policy writes to the prompts of a round, batch by batch."""
  rounds = session.config.rounds
  turn = _turn(prompts, 0 if rounds.prompt_split == "shared" else number, rounds.prompts)
  feed = batching.prompt_batches(
    turn, batch_size=rounds.batch_size, shuffle=False, epochs=1, shapes=1, shard=stage.shard()
  )
  count = -(-len(turn) // rounds.batch_size)
  ends = dict(eos=prompts.end, pad=prompts.pad)
  with writers.Progress(f"retrieve {number}", total=count, unit="batch") as progress:
    for done, batch in enumerate(feed, 1):
      session.poll()
      asked = session.put(batch)
      drawn = _drawn(session, params, asked, asked.row + number * rounds.prompts, key, ends)
      found = stage.gathered(asked)
      progress.update(done, tokens=int(drawn.mask.sum()), responses=drawn.finished.size)
      yield list(_answered(session, turn, found, drawn))


def _drawn(session: Session, params: Any, asked: Any, noise: Any, key: jax.Array, ends: Any) -> Any:
  """rounds.candidates responses a prompt on the host; with rounds.greedy the first is greedy."""
  rounds = session.config.rounds
  how = {name: rounds[name] for name in SAMPLED} | ends | dict(rows=noise)

  def draw(candidates: int, temperature: float) -> Any:
    count = dict(candidates=candidates, temperature=temperature)
    drawn = session.sample(params, asked.prompt, asked.prompt_mask, key, **how, **count)
    return stage.gathered(drawn)

  if not rounds.greedy:
    return draw(rounds.candidates, rounds.temperature)
  parts = draw(1, 0.0), draw(rounds.candidates - 1, rounds.temperature)
  return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)


def _turn(prompts: store.TokenizedData, number: int, count: int) -> Selected:
  """The prompts of a round: the next ones, from the first on after the last."""
  return Selected(prompts, np.arange(number * count, (number + 1) * count) % len(prompts))


def _answered(session: Session, turn: Selected, asked: Any, drawn: Any) -> Iterator[Answered]:
  """Each real prompt of a batch, without padding."""
  texts = session.decode(drawn.response, drawn.mask)
  questions = [ids for (ids,) in session.decode(asked.prompt, asked.prompt_mask)]
  for b in np.flatnonzero(asked.weight > 0):
    kept = drawn.mask[b] > 0
    yield Answered(
      source=int(turn.rows[asked.row[b]]),
      prompt=asked.prompt[b, 0][asked.prompt_mask[b, 0]],
      question=questions[b],
      responses=[ids[on] for ids, on in zip(drawn.response[b], kept)],
      texts=texts[b],
      finished=drawn.finished[b].tolist(),
    )


def _strangers(
  session: Session, params: Any, number: int, answered: list[Answered]
) -> list[Answered]:
  """For each prompt of a round another one, whose responses it takes as its negatives."""
  negatives = session.config.rounds.negatives
  if negatives == "unrelated":
    prompts = inputs.unrelated(session)
    found = _sampled(session, params, number, prompts, session.key(4, number))
    return list(itertools.chain.from_iterable(found))
  if negatives == "other_prompt":
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


def _candidates(
  session: Session,
  end: int | None,
  answered: list[Answered],
  scores: list[list[float]],
  strangers: list[Answered],
  reward: Reward,
) -> list[Tokens]:
  """What was sampled; the gold answer after it; of these the best alone before a stranger's."""
  questions = [each.question for each in answered]
  rows = [list(zip(each.responses, values)) for each, values in zip(answered, scores)]
  if session.config.rounds.gold:
    world = worlds.find(session.config.world["name"])
    texts = [world.solution(question) for question in questions]
    golden = session.tokenizer(texts, add_special_tokens=False)["input_ids"]
    values = reward(questions, [[text] for text in texts])
    for row, ids, (value,) in zip(rows, golden, values):
      row.append((np.asarray([*ids, end], np.int32), float(value)))
  if strangers:
    values = reward(questions, [each.texts for each in strangers])
    rows = [
      [max(row, key=lambda response: response[1]), *zip(each.responses, map(float, value))]
      for row, each, value in zip(rows, strangers, values)
    ]
  return [_tokens(each.prompt, row) for each, row in zip(answered, rows)]


def _tokens(prompt: np.ndarray, row: list[tuple[np.ndarray, float]]) -> Tokens:
  responses = [ids for ids, _ in row]
  masks = [np.ones(len(ids), bool) for ids in responses]
  return Tokens(prompt, responses, masks, [score for _, score in row])


def _tell(
  path: pathlib.Path, answered: list[Answered], scores: list[list[float]] | None = None
) -> None:
  """Writes what was sampled, a prompt a line."""
  lines = []
  for place, each in enumerate(answered):
    line: dict[str, Any] = dict(prompt=each.question, responses=each.texts)
    line |= {} if scores is None else {"scores": scores[place]}
    line |= {"finished": each.finished, "lengths": [len(ids) for ids in each.responses]}
    lines.append(json.dumps(line, ensure_ascii=False) + "\n")
  workdir.write_text(path, "".join(lines))
