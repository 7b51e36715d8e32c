"""LarPO's loop: retrieve K candidates a prompt, rerank them by a reward, learn from the lists.

LLM Alignment as Retriever Optimization, https://arxiv.org/abs/2502.03699, Algorithm 1: the policy
at the start of a round samples the candidates and is the reference of that round's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import json
from typing import Any

import jax
import numpy as np

from larpo_jax import loop, stage, workdir, writers
from larpo_jax.data import batching, problems, store
from larpo_jax.data.candidates import Tokens
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.session import Session
from larpo_jax.types import Reward

SAMPLED = ("candidates", "max_tokens", "temperature", "top_k", "top_p")  # what sampling takes


def learn(
  session: Session,
  params: Any,
  prompts: store.TokenizedData,
  reward: Reward,
  *,
  before: Mapping[str, float],
  evaluate: Callable[[Any], Evaluation],
) -> Any:
  """The parameters after all rounds: each takes the next rounds.prompts of the prompts.

  Writes a row a round under the stage "rounds": how the policy does at its start, which before says
  of params, and what it sampled.
  """
  config, rounds = session.config, session.config.rounds
  earlier: list[store.TokenizedData] = []
  for number in range(rounds.count):
    lists = retrieve(session, params, number, prompts, reward)
    if number:
      ask = functools.partial(evaluate, params)
      before = stage.remembered(session, f"round_{number}", ask)
    tell(session, number, before, _described(session, number))
    data = remember(session, number, [*earlier, lists])
    earlier = {"none": [], "previous": [lists], "all": [*earlier, lists]}[rounds.memory]
    params = stage.train(
      session,
      f"round_{number}",
      params,
      data,
      loss=config.loss,
      optimizer=config.optimizer,
      batch_size=config.data.batch_size,
      steps=rounds.steps_per_round,
      epochs=config.epochs,
    )
  return params


def tell(
  session: Session, number: int, results: Mapping[str, float], lists: Mapping[str, float] = {}
) -> None:
  """Writes the row of a round: the results of its start, and what its lists are like."""
  session.writer.rewind(number - 1, stage="rounds")  # a resumed run writes this row again
  session.writer.write(number, {**loop.named(results), **lists}, stage="rounds")


def retrieve(
  session: Session, params: Any, number: int, prompts: store.TokenizedData, reward: Reward
) -> store.TokenizedData:
  """The lists of a round, sampled and scored, or read where they are already.

  Beside the token ids lies candidates.jsonl, {"prompt", "responses", "scores", "finished",
  "lengths"} a line, which `readers.lists` reads. A list whose scores are all equal teaches
  nothing and is left out.
  """
  directory = session.workdir / "rounds" / str(number)
  found = store.load(directory / "tokens")
  if found is not None:
    return found
  rows, lines = _sample(session, params, number, prompts, reward)
  if jax.process_index() == 0:
    report = problems.Report(f"round {number}")
    with store.Writer(directory / "tokens") as writer:
      for row, tokens in rows:
        report.rows += 1
        if len(set(tokens.labels)) > 1:
          report.kept += 1
          writer.add(tokens, row)
        else:
          report.rejected["all_tied"] += 1
      if not report.kept:
        raise ValueError(
          f"in round {number} every list has equal rewards, so there is nothing to learn: raise "
          "rounds.temperature or rounds.candidates, or use a finer reward"
        )
      text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
      workdir.write_text(directory / "candidates.jsonl", text)
      writer.finish(report, pad=prompts.pad, end=prompts.end)
  stage.together(f"round {number} is written")
  return store.load(directory / "tokens")  # type: ignore[return-value]


def remember(
  session: Session, number: int, lists: list[store.TokenizedData]
) -> store.TokenizedData:
  """The lists that a round learns from: its own, and those of the rounds that are remembered."""
  if len(lists) == 1:
    return lists[0]
  directory = session.workdir / "rounds" / str(number) / "pool"
  if jax.process_index() == 0 and store.load(directory) is None:
    report = problems.Report(f"rounds up to {number}")
    with store.Writer(directory) as writer:
      for data in lists:
        for row in range(len(data)):
          report.rows += 1
          report.kept += 1
          writer.add(data[row], row)
      writer.finish(report, pad=lists[0].pad, end=lists[0].end)
  stage.together(f"the pool of round {number} is written")
  return store.load(directory)  # type: ignore[return-value]


def _sample(
  session: Session, params: Any, number: int, prompts: store.TokenizedData, reward: Reward
) -> tuple[list[tuple[int, Tokens]], list[dict[str, Any]]]:
  """A round's rows of tokens, and its lines of text."""
  rounds = session.config.rounds
  turn = _Turn(prompts, number, rounds.prompts)
  feed = batching.prompt_batches(
    turn, batch_size=rounds.batch_size, shuffle=False, epochs=1, shapes=1, shard=stage.shard()
  )
  count = -(-len(turn) // rounds.batch_size)
  key = session.key(2, number)
  how = {name: rounds[name] for name in SAMPLED} | dict(eos=prompts.end, pad=prompts.pad)
  rows: list[tuple[int, Tokens]] = []
  lines: list[dict[str, Any]] = []
  with writers.Progress(f"retrieve {number}", total=count, unit="batch") as progress:
    for done, batch in enumerate(feed, 1):
      session.poll()
      asked = session.put(batch)
      noise = asked.row + number * rounds.prompts
      drawn = session.sample(params, asked.prompt, asked.prompt_mask, key, rows=noise, **how)
      found = stage.gathered((asked, drawn))
      progress.update(done, tokens=int(found[1].mask.sum()), responses=found[1].finished.size)
      for row, tokens, line in _judged(session, found[0], found[1], reward):
        rows.append((int(turn.rows[row]), tokens))
        lines.append(line)
  return rows, lines


class _Turn:
  """The prompts of a round, as data to batch: the next ones, from the first on after the last."""

  def __init__(self, prompts: store.TokenizedData, number: int, count: int) -> None:
    self.rows = np.arange(number * count, (number + 1) * count) % len(prompts)
    self.prompt_lengths = prompts.prompt_lengths[self.rows]
    self.response_lengths = prompts.response_lengths[self.rows]
    self.row_lengths = prompts.row_lengths[self.rows]
    self.pad, self.candidates = prompts.pad, prompts.candidates
    self._prompts = prompts

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Tokens:
    return self._prompts[int(self.rows[index])]


def _judged(session: Session, asked: Any, drawn: Any, reward: Reward) -> Any:
  """Row number, tokens and line of each real prompt of a batch."""
  texts = session.decode(drawn.response, drawn.mask)
  questions = [ids for (ids,) in session.decode(asked.prompt, asked.prompt_mask)]
  real = np.flatnonzero(asked.weight > 0)
  scores = reward([questions[b] for b in real], [texts[b] for b in real])
  for b, labels in zip(real, np.asarray(scores, np.float64)):
    kept = drawn.mask[b] > 0
    responses = [ids[on] for ids, on in zip(drawn.response[b], kept)]
    masks = [np.ones(len(ids), bool) for ids in responses]
    labels = [float(label) for label in labels]
    tokens = Tokens(asked.prompt[b, 0][asked.prompt_mask[b, 0]], responses, masks, labels)
    line = dict(prompt=questions[b], responses=texts[b], scores=labels)
    lengths = [len(ids) for ids in responses]
    line |= {"finished": drawn.finished[b].tolist(), "lengths": lengths}
    yield int(asked.row[b]), tokens, line


def _described(session: Session, number: int) -> dict[str, float]:
  """What a round's candidates are like, read back from its file."""
  path = session.workdir / "rounds" / str(number) / "candidates.jsonl"
  rows = workdir.read_jsonl(path)
  scores = [np.asarray(row["scores"]) for row in rows]
  return {
    "candidates/reward": float(np.mean([each.mean() for each in scores])),
    "candidates/best": float(np.mean([each.max() for each in scores])),
    "candidates/all_tied": float(np.mean([each.max() == each.min() for each in scores])),
    "candidates/unique": float(
      np.mean([len(set(r["responses"])) / len(r["scores"]) for r in rows])
    ),
    "candidates/finished": float(np.mean([np.mean(row["finished"]) for row in rows])),
    "candidates/tokens": float(sum(sum(row["lengths"]) for row in rows)),
  }
