"""How much of what a world has to find was sampled so far, and what the search has cost."""

from __future__ import annotations

import numpy as np

from larpo_jax import workdir, worlds
from larpo_jax.session import Session


def described(session: Session, number: int) -> dict[str, float]:
  """Of all samples up to a round; {} where the world does not say what its modes are.

  candidates/seen is how many responses were sampled that differ, or whose prompts do; found the
  share of the prompts that were asked for which the best mode was sampled, modes the share of all
  modes of these; regret the mean over samples of the best mode's gold reward minus their own.
  """
  config = session.config
  world = None if config.world is None else worlds.find(config.world["name"])
  if world is None or not hasattr(world, "modes"):
    return {}
  sampled: dict[str, list[str]] = {}
  for earlier in range(number + 1):
    for row in workdir.read_jsonl(session.workdir / "rounds" / str(earlier) / "candidates.jsonl"):
      sampled.setdefault(row["prompt"], []).extend(row["responses"])
  asked = {prompt: world.modes(prompt) for prompt in sampled}
  there = [[mode in sampled[prompt] for mode in modes] for prompt, modes in asked.items()]
  best = world.gold(asked, [modes[:1] for modes in asked.values()])  # [prompts, 1]
  own = [world.gold([prompt], [responses])[0] for prompt, responses in sampled.items()]
  lost = np.concatenate([most - rewards for most, rewards in zip(best, own)])
  return {
    "candidates/seen": float(sum(len(set(responses)) for responses in sampled.values())),
    "candidates/found": float(np.mean([found[0] for found in there])),
    "candidates/modes": float(np.mean(np.concatenate(there))),
    "candidates/regret": float(np.mean(lost)),
  }
