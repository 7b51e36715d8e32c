"""LarPO's loop: retrieve K candidates a prompt, rerank them by a reward, build lists, learn.

LLM Alignment as Retriever Optimization, https://arxiv.org/abs/2502.03699, Algorithm 1: the policy
at the start of a round samples the candidates and is the reference of that round's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np

from larpo_jax import coverage, loop, novelty, retrieval, stage, workdir
from larpo_jax.data import grouping, problems, store
from larpo_jax.data.candidates import Tokens
from larpo_jax.data.novelty import Importance
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.session import Session
from larpo_jax.types import Reward

Pools = Mapping[int, store.TokenizedData]  # the number of a round -> its candidates


def learn(
  session: Session,
  params: Any,
  prompts: store.TokenizedData,
  reward: Reward,
  *,
  before: Mapping[str, float],
  evaluate: Callable[[Any], Evaluation],
) -> Any:
  """The parameters after all rounds.

  Each takes the next rounds.prompts of the prompts, or where these are shared the same ones. Writes
  a row a round under the stage "rounds": how the policy does at its start, which before says of
  params, and what it sampled.
  """
  config, rounds, start = session.config, session.config.rounds, params
  pools: dict[int, store.TokenizedData] = {}
  for number in range(rounds.count):
    pools[number] = retrieval.retrieve(session, params, number, prompts, reward)
    if number:
      ask = functools.partial(evaluate, params)
      before = stage.remembered(session, f"round_{number}", ask)
    sampled = retrieval.described(session, number) | coverage.described(session, number)
    tell(session, number, before, sampled)
    known = {n: pools[n] for n in grouping.remembered(rounds, number)}
    params = stage.train(
      session,
      f"round_{number}",
      params,
      build(session, number, known, novelty.importance(session, list(pools.values()), start)),
      loss=config.loss,
      optimizer=config.optimizer,
      batch_size=config.data.batch_size,
      steps=rounds.steps_per_round,
      epochs=config.epochs,
      reference=start if rounds.reference == "start" else params,
    )
  return params


def tell(
  session: Session, number: int, results: Mapping[str, float], lists: Mapping[str, float] = {}
) -> None:
  """Writes the row of a round: the results of its start, and what it sampled."""
  session.writer.rewind(number - 1, stage="rounds")  # a resumed run writes this row again
  session.writer.write(number, {**loop.named(results), **lists}, stage="rounds")


def build(
  session: Session, number: int, pools: Pools, importance: Importance | None = None
) -> store.TokenizedData:
  """The lists that a round learns from, built by rounds.lists of the pools it remembers.

  Read where they are already. Beside the token ids lies lists.jsonl, {"prompt", "responses",
  "scores"} a line, which `readers.lists` reads: its scores are the labels that the loss sees.
  importance, of each candidate of each round, goes with the candidate, and into both files. Raises
  ValueError where no candidate is preferred to another.
  """
  directory = session.workdir / "rounds" / str(number)
  # Process 0 alone looks: a later one would find what was just written, and not wait.
  if jax.process_index() == 0 and store.load(directory / "lists") is None:
    _write(session, number, pools, directory, importance)
  stage.together(f"the lists of round {number} are written")
  return store.load(directory / "lists")  # type: ignore[return-value]


def _write(
  session: Session,
  number: int,
  pools: Pools,
  directory: pathlib.Path,
  importance: Importance | None,
) -> None:
  rounds, end = session.config.rounds, pools[number].end
  strategy, decode = grouping.resolve(rounds.lists), session.tokenizer.batch_decode
  report, lines = problems.Report(f"round {number}"), []
  width = grouping.widest(rounds, number)
  with store.Writer(directory / "lists", candidates=width) as writer:
    for source, tokens, rng in _known(session, number, pools, importance):
      prompt, *texts = decode([tokens.prompt, *tokens.responses], skip_special_tokens=True)
      found = grouping.group(strategy, texts, tokens.labels, rng, dedupe=rounds.dedupe)
      for places, labels in found:
        some = _some(tokens, places, labels)
        writer.add(some, source)
        line = dict(prompt=prompt, responses=[texts[i] for i in places], scores=labels)
        line |= {} if some.importance is None else {"importance": some.importance}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
      report.rows += max(len(found), 1)
      report.kept += len(found)
      if not found:
        report.rejected["all_tied"] += 1
    if not report.kept:
      raise ValueError(
        f"in round {number} every list has equal rewards, so there is nothing to learn: raise "
        "rounds.temperature or rounds.candidates, or use a finer reward"
      )
    workdir.write_text(directory / "lists.jsonl", "".join(lines))
    writer.finish(report, pad=pools[number].pad, end=end)


def _known(
  session: Session, number: int, pools: Pools, importance: Importance | None
) -> Iterator[tuple[int, Tokens, np.random.Generator]]:
  """Source and candidates of each prompt, with what draws its lists.

  Where rounds share their prompts, the candidates of a prompt are merged, the oldest first. Else
  each round's are on their own, and give the lists that they gave in that round.
  """
  shared = session.config.rounds.prompt_split == "shared"
  draws = lambda n, place: np.random.default_rng([session.config.seed, n, place, 1])  # noqa: E731
  row = lambda n, place: pools[n][place]._replace(  # noqa: E731
    importance=None if importance is None else importance[n][place]
  )
  for origin, pool in {number: pools[number]}.items() if shared else pools.items():
    for place in range(len(pool)):
      tokens = _merged([row(n, place) for n in pools]) if shared else row(origin, place)
      yield int(pool.sources[place]), tokens, draws(origin, place)


def _merged(rows: list[Tokens]) -> Tokens:
  """The responses of several rows to one prompt."""
  together = lambda field: [value for row in rows for value in getattr(row, field)]  # noqa: E731
  known = Tokens(rows[0].prompt, together("responses"), together("masks"), together("labels"))
  given = rows[0].importance is not None
  return known._replace(importance=together("importance")) if given else known


def _some(tokens: Tokens, places: list[int], labels: list[float]) -> Tokens:
  pick = lambda field: [getattr(tokens, field)[i] for i in places]  # noqa: E731
  importance = None if tokens.importance is None else pick("importance")
  return Tokens(tokens.prompt, pick("responses"), pick("masks"), labels, importance=importance)
