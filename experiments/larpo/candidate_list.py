r"""LarPO's candidate list: how many candidates a prompt, and which lists are built of them.

    python -m larpo_jax.sweep --config experiments/larpo/candidate_list.py --workdir runs/lists

LarPO (https://arxiv.org/abs/2502.03699), Fig. 4c: with the contrastive loss, the best of K against
all others, AlpacaEval's length-controlled win rate is 50.0, 52.6, 55.2 and 55.5 at K = 4, 6, 8 and
10 (read off the figure; one seed). Every point here takes the same optimiser steps on batches of
as many lists, from as many prompts; what grows with K is what is sampled, and trained on in a list.
`sweep_tokens` spends as many samples and steps at every K: on many prompts or on many candidates.
`sweep_grouping` asks the same of what a list of 8 is cut into, `sweep_rso` of RSO's filter
(https://arxiv.org/abs/2309.06657), which finds rejection sampling > all samples for every loss and
a tournament a little better than the first round (Table 2: 93.35 and 92.37 on TL;DR).

ListMLE is DPO on a pair and the contrastive loss on one label 1 among labels 0, so the strategy
alone says what is learnt. At equal steps `all_pairs` and `best_each` see fewer of the prompts.

Measured at `:cpu`, five seeds, 7 minutes each on two busy CPU cores. Reward of samples: 0.40
before; 0.69, 0.72, 0.75 and 0.77 with 2, 4, 8 and 16 candidates of as many prompts, the last three
above the first beyond chance; 0.77, 0.76, 0.75 and 0.75 with as many samples. Of what
eight samples are cut into, the best and the worst earn most (0.77), all pairs, a tournament, or the
best and the second least (0.66, 0.67, 0.66). Supported at this scale, where prompts are as many;
docs/results.md has the tables.
"""

from experiments import common
from experiments.larpo import objectives

PAIRS = ("best_worst", "best_second", "best_random", "best_each", "matched_ranks", "all_pairs")
GROUPINGS = ("whole", "best_all", "top_bottom", *PAIRS, "first_round", "tournament")


def get_config(arg=""):
  """The page; `:cpu` as in objectives.py, `:smoke` for seconds."""
  config = objectives.get_config(arg)
  config.loss = dict(name="listwise.listmle", beta=0.1)
  config.rounds.candidates = 8
  config.rounds.lists = dict(name="lists.best_all")
  config.rounds.dedupe = True
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """Fig. 4c: the best against all others, of more and more candidates."""
  for candidates in (2, 4, 8, 16):
    yield {"rounds.candidates": candidates}


def sweep_tokens():
  """`:cpu` at equal samples a round, and equal responses a step, of more and more prompts."""
  for candidates, prompts, batch_size in ((16, 64, 8), (8, 128, 16), (4, 256, 32), (2, 512, 64)):
    yield {
      "rounds.candidates": candidates,
      "rounds.prompts": prompts,
      "data.batch_size": batch_size,
    }


def sweep_grouping():
  """What 8 candidates are made into; LarPO's four presets, Curry-DPO's pairs and RSO's among it."""
  for name in GROUPINGS:
    yield {"rounds.lists": {"name": f"lists.{name}"}}
  yield {"rounds.lists": {"name": "lists.top_bottom", "positives": 1, "negatives": 3}}
  yield {"rounds.lists": {"name": "lists.matched_ranks", "pairs": 1}}


def sweep_rso():
  """Pairs of 8 of 32 candidates, against pairs of 8 and of all 32; rewards lie in [0, 1]."""
  for pairing in ("first_round", "tournament"):
    for candidates in (8, 32):
      yield {"rounds.candidates": candidates, "rounds.lists": {"name": f"lists.{pairing}"}}
    for beta in (0.03, 0.1, 0.3):
      filtered = {"name": "lists.rso", "beta": beta, "keep": 8, "pairing": pairing}
      yield {"rounds.candidates": 32, "rounds.lists": filtered}


def sweep_frontier():
  """The shortest and the longest list at four strengths of the reference."""
  return common.at_betas({"rounds.candidates": candidates} for candidates in (2, 16))
