r"""LarPO's memory: learning from the candidates of earlier rounds, too.

    python -m larpo_jax.sweep --config experiments/larpo/memory.py --workdir runs/memory --seeds 5

LarPO (https://arxiv.org/abs/2502.03699), Table 4, with two samples a prompt and DPO on the best and
the worst of all that is remembered of it: AlpacaEval 2 win rates, length-controlled and raw, of
47.03 and 48.38 before; 55.06 and 66.56 with this round's samples, 55.62 and 70.92 with the previous
round's, 56.02 and 72.50 with all (one seed). Its scripts give each round prompts of its own: then
what is remembered is a replay of old pairs, and only where rounds share their prompts does a list
become longer. Both are here, at equal optimiser steps. `sweep_reference` asks what the reference
is: the policy of the round's start, as in the paper, or that before the first round;
`sweep_frontier` has nothing and all over beta.

Measured at `:cpu`, five seeds, 10 minutes on two busy CPU cores. Reward of samples: 0.40 before;
with prompts of their own 0.69 by this round's samples, 0.68 with the previous round's, 0.69 with
all; on shared prompts 0.67, 0.72 and 0.72. No two arms differ beyond chance: undecided.
docs/results.md has the table, and that of `sweep_reference`, which changes little.
"""

from experiments import common
from experiments.larpo import objectives


def get_config(arg=""):
  """The page; `:cpu` as in objectives.py, `:smoke` for seconds."""
  config = objectives.get_config(arg)
  config.loss = dict(name="pairwise.dpo", beta=0.1)
  config.rounds.candidates = 2
  config.rounds.lists = dict(name="lists.best_worst")
  config.rounds.memory = "none"
  config.rounds.prompt_split = "shared"
  config.rounds.reference = "round"
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """Table 4, for prompts that each round has for itself and for shared ones."""
  for split in ("disjoint", "shared"):
    for memory in ("none", "previous", "all"):
      yield {"rounds.prompt_split": split, "rounds.memory": memory}


def sweep_reference():
  """A reference that moves with the rounds, or stays."""
  for reference in ("round", "start"):
    for memory in ("none", "all"):
      yield {"rounds.reference": reference, "rounds.memory": memory}


def sweep_frontier():
  """Nothing and all that shared prompts remember, at four strengths of the reference."""
  return common.at_betas({"rounds.memory": memory} for memory in ("none", "all"))
