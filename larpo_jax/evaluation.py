"""Every number that a run can say of a policy, before, between and after its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import operator
from typing import Any

import jax
import numpy as np

from larpo_jax import inputs, lookup, pools, stage, worlds
from larpo_jax.data import batching
from larpo_jax.evaluators import generation, preference, winrate
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.session import Session
from larpo_jax.types import Array, Batch, LogProbs, Metrics, Reward

JUDGES = {  # a metric, and the function that gives it of a world that has one
  "gold/reward": "gold",
  "gold/accuracy": "accuracy",
  "gold/steps": "progress",
  "style": "style",
}


def evaluate(session: Session, start: Any, params: Any) -> Evaluation:
  """What the config's world and test split say of a policy that came from start."""
  config = session.config
  found = Evaluation({}, [])
  if config.world is not None and not session.classifies:
    found = written(session, start, params)
  if config.data.test.path:
    more = ranked(session, start, params)
    found = Evaluation(found.numbers | more.numbers, found.lines + more.lines)
  return found


def ends(session: Session, start: Any, params: Any) -> Evaluation:
  """`evaluate`, who wins and, where config.evaluate says so, `held_out` and pools.

  For both ends of a run. sampled/win_rate and its length-controlled one are those of the samples
  against the start's, each to the same prompts, by the gold reward; 0.5 of the start itself.
  """
  found = evaluate(session, start, params)
  wrote = [line for line in found.lines if line["set"] == "written" and "gold/reward" in line]
  begun = wrote if params is start else stage.lines(session, "before")
  if wrote:
    found = found._replace(numbers=found.numbers | _won(begun, wrote))
  if session.config.evaluate.held_out:
    more = held_out(session, start, params)
    found = Evaluation(found.numbers | more.numbers, found.lines + more.lines)
  if not session.config.evaluate.samples:
    return found
  more = pools.measure(session, params)
  by_row = {line["row"]: line for line in more.lines}
  joined = lambda line: line | by_row[line["row"]] if line["set"] == "written" else line  # noqa: E731
  return Evaluation(found.numbers | more.numbers, [joined(line) for line in found.lines])


def _won(
  begun: Sequence[Mapping[str, Any]], wrote: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
  """The win rates of samples over those of the start, of the prompts that both have lines of."""
  rows = {line["row"]: _sampled(line) for line in begun if line["set"] == "written"}
  wrote = [line for line in wrote if line["row"] in rows]
  first, second = [rows[line["row"]] for line in wrote], [_sampled(line) for line in wrote]
  text, gold = operator.itemgetter("text"), operator.itemgetter("gold/reward")
  judged = winrate.by_reward(
    [line["prompt"] for line in wrote],
    [*map(text, first)],
    [*map(text, second)],
    (np.array([*map(gold, first)]), np.array([*map(gold, second)])),
  )
  found = winrate.win_rate(judged)
  return {"sampled/win_rate": found.plain, "sampled/win_rate_lc": found.length_controlled}


def _sampled(line: Mapping[str, Any]) -> Mapping[str, Any]:
  return next(each for each in line["responses"] if each["kind"] == "sampled")


def written(session: Session, start: Any, params: Any) -> Evaluation:
  """What the policy writes to unseen problems of the world.

  Judged by the world, and as proxy/reward by config.reward where that is a model.
  """
  world = worlds.find(session.config.world["name"])
  prompts, ending = _unseen(session)
  judges: dict[str, Reward] = {
    name: getattr(world, judge) for name, judge in JUDGES.items() if hasattr(world, judge)
  }
  reward = session.config.reward
  found = reward and lookup.find(reward.name, "larpo_jax.rewards")
  if getattr(found, "stands_in", False):
    judges["proxy/reward"] = lookup.resolve(reward, "larpo_jax.rewards")
  draw = functools.partial(session.sample, **ending)
  return generation.generation(
    lambda *asked, **how: stage.gathered(draw(*asked, **how)),
    lambda params, batch: stage.gathered(session.score(session.whole(params), batch)),
    params,
    start,
    prompts,
    decode=session.decode,
    judges=judges,
    key=session.key(3),
  )


def held_out(session: Session, start: Any, params: Any) -> Evaluation:
  """How the implicit reward ranks answers of the start to unseen problems, by the gold reward.

  config.evaluate.held_out samples of each at temperature 1, the same at both ends of a run; the
  numbers are those of `preference.ranking`, over problems whose answers are not all worth the same.
  """
  prompts, ending = _unseen(session)
  asked = dict(temperature=1.0, candidates=session.config.evaluate.held_out, **ending)
  drawn = stage.gathered(session.sample(start, prompts.ids, prompts.mask, session.key(5), **asked))
  gold = worlds.find(session.config.world["name"]).gold
  label = gold(prompts.texts, session.decode(drawn.response, drawn.mask))
  batch = generation.as_batch(prompts.ids, prompts.mask, drawn)
  batch = dataclasses.replace(batch, label=np.asarray(label, np.float32))
  policy = session.score(session.whole(params), batch)
  reference = policy if params is start else session.score(session.whole(start), batch)
  metrics = stage.gathered(_rank(policy, reference.token, batch))
  ordered = metrics.pop("ordered")
  named = {f"held_out/{name}": metric for name, metric in metrics.items()}
  lines = generation.ranked(named, batch.row, ordered, "held_out")
  return Evaluation(generation.weighted_means(lines), lines)


def _unseen(session: Session) -> tuple[generation.Prompts, dict[str, Any]]:
  """The world's test problems, and where their answers end."""
  data = inputs.problems(session, "test", session.config.evaluate.rows, split="test")
  asked = next(batching.prompt_batches(data, batch_size=len(data), shuffle=False, shapes=1))
  texts = [ids for (ids,) in session.decode(asked.prompt, asked.prompt_mask)]
  prompts = generation.Prompts(texts, asked.prompt, asked.prompt_mask)
  return prompts, inputs.ending(session, data)


def ranked(session: Session, start: Any, params: Any) -> Evaluation:
  """How the policy, or a reward model, ranks the labelled responses of the test split."""
  config = session.config
  data = inputs.read(session, "test")
  attach = None if session.classifies else stage.cache_reference(session, start, data)
  feed = dict(batch_size=config.data.batch_size, shuffle=False, epochs=1, **session.layout)
  lines = []
  for batch in batching.batches(data, shard=stage.shard(), attach=attach, **feed):
    session.poll()
    placed = session.put(batch)
    policy = session.score(session.whole(params), placed)
    if session.classifies:
      found = _rank_scores(policy, placed)
    else:
      # The start is its own reference: exactly, not but for what rounding makes of the cache.
      found = _rank(policy, policy.token if params is start else placed.reference, placed)
    metrics = stage.gathered(found)
    row, weight = stage.gathered((placed.row, placed.weight))
    lines += generation.ranked(metrics, row, weight * metrics.pop("ordered"))
  return Evaluation(generation.weighted_means(lines), lines)


_rank_scores = jax.jit(preference.scored)


@jax.jit
def _rank(policy: LogProbs, reference: Array, batch: Batch) -> Metrics:
  return preference.ranking(policy, dataclasses.replace(policy, token=reference), batch)
