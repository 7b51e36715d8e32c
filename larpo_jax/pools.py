"""Pools of samples, one a test prompt and temperature, and what `evaluators.recall` finds there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from larpo_jax import inputs, lookup, stage, worlds, writers
from larpo_jax.data import batching
from larpo_jax.evaluators import generation, recall
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.session import Session


class Shares(NamedTuple):
  """How the samples of all prompts are drawn in parts that fit into memory."""

  prompts: int  # at a time
  candidates: int  # of each of them at a time
  calls: int  # of so many candidates, until there are enough


def shares(rows: int, samples: int, batch_size: int, devices: int) -> Shares:
  """About batch_size responses at a time, and a prompt for each device at least."""
  each = min(batch_size // (devices * samples), -(-rows // devices))
  prompts = devices * max(each, 1)
  calls = -(-samples // max(batch_size // prompts, 1))
  candidates = -(-samples // calls)  # so that the last call draws few in vain
  return Shares(prompts, candidates, -(-samples // candidates))


def measure(session: Session, params: Any) -> Evaluation:
  """The numbers of all pools of the world's test prompts, NAME@N/T=TEMPERATURE, and their lines.

  The noise of a sample depends on the seed, its prompt and its number only: neither on how many are
  drawn at a time, nor on the temperature, nor on the policy, so that policies are compared by it.
  """
  config = session.config.evaluate
  data = inputs.problems(session, "test", config.rows, split="test")
  lines: dict[int, dict[str, Any]] = {}
  for temperature in config.temperatures:
    for row, numbers in _pools(session, params, data, float(temperature)):
      line = lines.setdefault(row, {"set": "written", "row": row})
      line |= {f"{name}/T={temperature:g}": value for name, value in numbers.items()}
  ordered = [lines[row] for row in sorted(lines)]
  return Evaluation(
    generation.weighted_means([{"weight": 1.0, **line} for line in ordered]), ordered
  )


def _pools(
  session: Session, params: Any, data: Any, temperature: float
) -> Iterator[tuple[int, dict[str, float]]]:
  """Row number and numbers of each test prompt."""
  config = session.config.evaluate
  share = shares(len(data), config.samples, config.batch_size, session.layout["split"][0])
  feed = batching.prompt_batches(
    data, batch_size=share.prompts, shuffle=False, epochs=1, shapes=1, shard=stage.shard()
  )
  count = -(-len(data) // share.prompts) * share.calls
  how = dict(temperature=temperature, candidates=share.candidates, **inputs.ending(session, data))
  with writers.Progress(f"samples at T={temperature:g}", total=count, unit="batch") as progress:
    for number, batch in enumerate(feed):
      asked, texts = session.put(batch), []
      prompts, key = (asked.prompt, asked.prompt_mask), session.key(4)
      for call in range(share.calls):
        session.poll()
        how["first"] = call * share.candidates
        drawn = stage.gathered(session.sample(params, *prompts, key, rows=asked.row, **how))
        texts.append(session.decode(drawn.response, drawn.mask))
        done = number * share.calls + call + 1
        progress.update(done, tokens=int(drawn.mask.sum()), responses=drawn.finished.size)
      pool = [[text for part in parts for text in part][: config.samples] for parts in zip(*texts)]
      yield from _judged(session, stage.gathered(asked), pool)


def _judged(
  session: Session, asked: Any, texts: list[list[str]]
) -> Iterator[tuple[int, dict[str, float]]]:
  """What the world says of a batch, and the config's reward where that is another."""
  world, config = worlds.find(session.config.world["name"]), session.config
  real = np.flatnonzero(asked.weight > 0)
  questions = [ids for (ids,) in session.decode(asked.prompt[real], asked.prompt_mask[real])]
  pools = [texts[b] for b in real]
  proxy = None
  if config.reward is not None and config.reward["name"] != f"worlds.{config.world['name']}":
    reward = lookup.resolve(config.reward, "larpo_jax.rewards")
    proxy = np.asarray(reward(questions, pools), np.float64)
  found = recall.curves(
    pools,
    [[world.answer(text) for text in pool] for pool in pools],
    correct=world.accuracy(questions, pools),
    gold=world.gold(questions, pools),
    proxy=proxy,
  )
  for place, row in enumerate(asked.row[real]):
    yield int(row), {name: float(values[place]) for name, values in found.items()}
