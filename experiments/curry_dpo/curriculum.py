r"""Curry-DPO: pairs of the best response with each other one, from easy to hard, stage by stage.

    python -m larpo_jax.sweep --config experiments/curry_dpo/curriculum.py:cpu \
      --workdir runs/curry_dpo --seeds 5
    python -m larpo_jax.report runs/curry_dpo --metric sampled/gold/reward

Curry-DPO (https://arxiv.org/abs/2403.07230) ranks four responses to a prompt, R1 to R4, makes the
pairs (R1, R4), (R1, R3) and (R1, R2), and learns them in three stages in that order; the reference
of a stage is the policy that the last one left. Published: MT-Bench 7.43 for Zephyr-7B, adjusted
win rates of 90.7, 87.1 and 87.9 % on Vicuna, WizardLM and UltraFeedback, up to 7.5 above DPO.

That comparison mixes three things: more pairs a prompt, a reference that moves, and the order. Here
all arms have the same samples and optimiser steps, and differ in one thing at a time: the claim of
the order is that easy to hard beats the same pairs shuffled, and these the reverse, with the
reference moving in all three; optimiser and schedule go on from stage to stage in all arms.
`sweep_noisy` asks the same of a judge who errs as Bradley and Terry say, so that pairs of a narrow
gap are mislabelled most; `sweep_difficulty` orders by other measures of difficulty;
`sweep_frontier` has three orders over beta.

Pairs of one score are no pairs, so prompts with ties give fewer.

Measured at `:cpu`, five seeds, 5 minutes on one busy CPU core. Reward of samples: 0.40 before;
0.70 from easy to hard with a moving reference, 0.67 shuffled, 0.67 from hard to easy, 0.67 by the
single pair with a fixed one. Undecided: in the claimed order, and no two arms differ beyond chance.
Over four betas, from other starts, easy to hard is 0.02 above shuffled (p = 0.04 over seeds; seeds
and prompts together say less). docs/results.md has the tables.
"""

from experiments import common
from experiments.larpo import objectives


def get_config(arg=""):
  """The page; `:cpu` as in objectives.py, `:smoke` for seconds."""
  config = objectives.get_config(arg)
  config.loss = dict(name="pairwise.dpo", beta=0.1)
  steps = config.rounds.count * config.rounds.steps_per_round
  config.rounds.update(count=1, candidates=4, steps_per_round=steps)
  config.rounds.lists = dict(name="lists.best_each")
  config.rounds.curriculum = dict(name="curriculum.easy_to_hard", stages=3)
  config.rounds.difficulty = "place"
  config.rounds.reference = "stage"
  config.rounds.optimizer = "kept"
  config.rounds.noise = None
  if arg == "cpu":
    config.evaluate.every = 4  # of a stage's eight
  if arg == "smoke":
    config = common.smoke(config)
    config.rounds.steps_per_round = 3
  return config


def sweep():
  """One pair or all, a reference that stays or moves, three orders."""
  for name in ("best_worst", "best_each"):
    for reference in ("round", "stage"):
      pairs = {"rounds.lists": dict(name=f"lists.{name}"), "rounds.reference": reference}
      yield {**pairs, **_order("shuffled")}
  for reference in ("round", "stage"):
    yield {**_order("easy_to_hard"), "rounds.reference": reference}
  yield {**_order("hard_to_easy"), "rounds.reference": "stage"}


def sweep_noisy():
  """The same seven; of pairs whose scores differ by 0.2 a quarter have their labels swapped."""
  for point in sweep():
    yield {**point, "rounds.noise": dict(name="noise.bradley_terry", scale=0.18)}


def sweep_difficulty():
  """What makes a pair hard."""
  for difficulty in ("place", "label_gap", "logp_gap"):
    for order in ("easy_to_hard", "hard_to_easy"):
      yield {**_order(order), "rounds.difficulty": difficulty}


def sweep_frontier():
  """Three orders of the same pairs under a reference that moves, at four strengths of it."""
  orders = ("easy_to_hard", "shuffled", "hard_to_easy")
  return common.at_betas(_order(name) for name in orders)


def _order(name):
  return {"rounds.curriculum": dict(name=f"curriculum.{name}", stages=3)}
