"""LarPO's loop: retrieve K candidates a prompt, rerank them by a reward, build lists, learn.

LLM Alignment as Retriever Optimization, https://arxiv.org/abs/2502.03699, Algorithm 1: the policy
at the start of a round samples the candidates and is the reference of that round's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import functools
import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np

from larpo_jax import coverage, difficulty, loop, novelty, retrieval, stage, step_pairs, workdir
from larpo_jax.data import grouping, problems, store
from larpo_jax.data.batching import Data
from larpo_jax.data.candidates import Tokens
from larpo_jax.data.grouping import Judged
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
  params, what it sampled, and what lists that made.
  """
  rounds, start = session.config.rounds, params
  pools: dict[int, store.TokenizedData] = {}
  course = stage.Course(rounds.count * rounds.steps_per_round)
  for number in range(rounds.count):
    pools[number] = retrieval.retrieve(session, params, number, prompts, reward)
    if number:
      ask = functools.partial(evaluate, params)
      before = stage.remembered(session, f"round_{number}", ask)
    lists, said = _prepared(session, number, params, start, pools)
    tell(session, number, before, said)
    parts = difficulty.parts(session, number, lists, params, start)
    params, course = _learnt(session, number, params, start, parts, course, evaluate)
  return params


def _prepared(
  session: Session, number: int, params: Any, start: Any, pools: Pools
) -> tuple[store.TokenizedData, dict[str, float]]:
  """What a round learns from, and what its row says of that."""
  rounds = session.config.rounds
  said = retrieval.described(session, number) | coverage.described(session, number)
  if rounds.steps is not None:
    pairs = step_pairs.build(session, number, params, pools[number])
    return pairs, said | step_pairs.described(session, number, params, pairs)
  known = {n: pools[n] for n in grouping.remembered(rounds, number)}
  explored = novelty.importance(session, list(pools.values()), start)
  lists = build(session, number, known, explored)
  if rounds.noise is not None:
    said["lists/misjudged"] = misjudged(lists)
  return lists, said


def _learnt(
  session: Session,
  number: int,
  params: Any,
  start: Any,
  parts: list[Data],
  course: stage.Course,
  evaluate: Callable[[Any], Evaluation],
) -> tuple[Any, stage.Course]:
  """The parameters after the parts of a round, one after the other, and how far the course is."""
  config, rounds, begun = session.config, session.config.rounds, params
  rate = (rounds.learning_rates or [config.optimizer.learning_rate] * rounds.count)[number]
  for part, (data, steps) in enumerate(zip(parts, _shared_out(rounds, len(parts)))):
    state = stage.train(
      session,
      f"round_{number}" if len(parts) == 1 else f"round_{number}_{part}",
      params,
      data,
      loss=config.loss,
      optimizer={**config.optimizer, "learning_rate": rate},
      batch_size=config.data.batch_size,
      steps=steps,
      epochs=config.epochs,
      evaluate=lambda params: evaluate(params).numbers,
      reference={"start": start, "round": begun, "stage": params}[rounds.reference],
      course=course if rounds.optimizer == "kept" else None,
    )
    params = state.params
    if rounds.optimizer == "kept":
      course = course._replace(done=course.done + steps, state=state.opt_state)
    del state  # its moments, which else would lie beside those of the next stage
  return params, course


def _shared_out(rounds: Any, parts: int) -> list[int]:
  """The steps of each part of a round; -1 where they follow from the epochs."""
  total = rounds.steps_per_round
  ends = [total * part // parts for part in range(parts + 1)]
  return [end - begin if total >= 0 else -1 for begin, end in itertools.pairwise(ends)]


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
  "scores"} a line, which `readers.lists` reads: its scores are the labels that the loss sees. Where
  rounds.noise gave these, "second_scores" are the rewards, as `readers.lists` calls them, too, and
  losses that read a second judge's scores read those. The noise of a list depends on the seed, and
  on the round and the place that its own draws depend on. importance, of each candidate of each
  round, goes with the candidate, and into both files. Raises ValueError where no list is left.
  """
  directory = session.workdir / "rounds" / str(number)
  # Process 0 alone looks: a later one would find what was just written, and not wait.
  if jax.process_index() == 0 and store.load(directory / "lists") is None:
    _write(session, number, pools, directory, importance)
  stage.together(f"the lists of round {number} are written")
  return store.load(directory / "lists")  # type: ignore[return-value]


def misjudged(lists: store.TokenizedData) -> float:
  """The share of lists in which the noise changed who is preferred, of those left out too."""
  report = lists.report
  rejected = report.rejected
  return report.notes["misjudged"] / (report.rows - rejected["all_tied"] - rejected["narrow"])


def _write(
  session: Session,
  number: int,
  pools: Pools,
  directory: pathlib.Path,
  importance: Importance | None,
) -> None:
  rounds, end = session.config.rounds, pools[number].end
  strategy, decode = grouping.resolve(rounds.lists), session.tokenizer.batch_decode
  noise = grouping.noise(rounds.noise)
  report, lines = problems.Report(f"round {number}"), []
  width = grouping.widest(rounds, number)
  with store.Writer(directory / "lists", candidates=width) as writer:
    for source, tokens, rng in _known(session, number, pools, importance):
      prompt, *texts = decode([tokens.prompt, *tokens.responses], skip_special_tokens=True)
      found = grouping.group(strategy, texts, tokens.labels, rng, dedupe=rounds.dedupe)
      wide = grouping.wide(found, tokens.labels, rounds.min_gap)
      # A generator of its own: what a strategy draws is nothing to the judge.
      judged = grouping.judge(noise, wide, tokens.labels, rng.spawn(1)[0])
      kept = [each for each in judged if not (rounds.agreed and each.misjudged)]
      for each in kept:
        some = _some(tokens, each)
        writer.add(some, source)
        lines.append(_line(prompt, [texts[i] for i in each.places], some))
      report.rows += max(len(found), 1)
      report.kept += len(kept)
      report.notes["misjudged"] += sum(each.misjudged for each in judged)
      report.rejected.update(all_tied=not found, narrow=len(found) - len(wide))
      report.rejected.update(contradicted=len(judged) - len(kept))
    report.rejected = +report.rejected
    if not report.kept:
      raise ValueError(_nothing(number, report))
    workdir.write_text(directory / "lists.jsonl", "".join(lines))
    writer.finish(report, pad=pools[number].pad, end=end)


def _nothing(number: int, report: problems.Report) -> str:
  """Why a round has no list to learn from."""
  if report.rejected["contradicted"]:
    return (
      f"in round {number} the noise changed who is preferred in every list, and rounds.agreed "
      "leaves such lists out: lower the noise, or raise rounds.prompts"
    )
  if report.rejected["narrow"]:
    return (
      f"in round {number} no list has rewards that differ by rounds.min_gap: lower it, or raise "
      "rounds.prompts or rounds.candidates"
    )
  return (
    f"in round {number} every list has equal rewards, so there is nothing to learn: raise "
    "rounds.temperature or rounds.candidates, or use a finer reward"
  )


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


def _some(tokens: Tokens, each: Judged) -> Tokens:
  """The responses of a list, with what a judge said of them."""
  pick = lambda field: [getattr(tokens, field)[i] for i in each.places]  # noqa: E731
  importance = None if tokens.importance is None else pick("importance")
  responses, masks = pick("responses"), pick("masks")
  return Tokens(tokens.prompt, responses, masks, each.labels, each.scores, importance)


def _line(prompt: str, texts: list[str], row: Tokens) -> str:
  """A line of lists.jsonl."""
  line: dict[str, Any] = dict(prompt=prompt, responses=texts, scores=row.labels)
  line |= {} if row.scores is None else {"second_scores": row.scores}
  line |= {} if row.importance is None else {"importance": row.importance}
  return json.dumps(line, ensure_ascii=False) + "\n"
