r"""RSO: whose pairs to learn from, and with which loss.

    python -m larpo_jax.sweep --config experiments/rso/rejection.py:cpu \
      --workdir runs/rejection --seeds 5
    python -m larpo_jax.report runs/rejection

Statistical Rejection Sampling Optimization (https://arxiv.org/abs/2309.06657) labels pairs by a
reward model and asks where their responses come from: people (direct), the supervised policy (sft),
or 8 of 64 of its samples that are accepted as if by the optimal policy (rso). Table 1, win rates
against the supervised target by the proxy, the gold reward model and a language model as judge, on
Reddit TL;DR and on Anthropic's helpful dialogues:

                          TL;DR                  helpful
    sigmoid-norm direct   84.35 / 76.09 / 67.72  51.63 / 36.13 / 24.01
    sigmoid-norm sft      88.63 / 78.14 / 69.02  85.09 / 58.65 / 39.56
    sigmoid-norm rso      92.37 / 82.22 / 71.86  86.94 / 59.15 / 40.98
    hinge direct          86.92 / 79.76 / 60.54  35.95 / 27.56 / 15.69
    hinge sft             90.15 / 80.19 / 67.34  80.82 / 54.55 / 30.66
    hinge rso             93.36 / 84.40 / 69.26  82.21 / 55.22 / 32.56
    hinge-norm direct     83.93 / 76.43 / 66.63  49.55 / 37.23 / 22.89
    hinge-norm sft        88.04 / 76.57 / 68.46  82.40 / 56.55 / 35.96
    hinge-norm rso        92.80 / 83.45 / 70.84  84.44 / 57.75 / 38.58

Table 2, proxy / judge on TL;DR, for pairs of the first round and of a tournament: sft with 8
samples 88.63 / 68.51 and 90.69 / 68.57, rso 92.37 / 71.86 and 93.35 / 71.69, sft with all 64
88.91 / 68.84 and 91.14 / 71.08.

Here direct are eight of the world's demonstrations a prompt: another policy than the one that
learns, of better quality, for it is what that has imitated. All sources give eight responses a
prompt, and random pairs of these; ties are dropped, so that a source may give fewer, and all train
on batches of as many pairs for as many steps. The loss has the paper's gamma, 0.05, which is `beta`
here and 1 / delta in slic. The sampler's beta has another unit: rewards lie in [0, 1], not on the
paper's scale of logits, where 0.5 is best; `sweep_beta` looks for it.

Measured at `:cpu`, five seeds, 9 minutes on one busy core. Reward of samples: 0.40 before, then
0.59 direct, 0.65 sft, 0.58 rso, alike for the three losses. That own samples beat other people's
answers is supported at this scale; that rejection sampling beats them is not supported, at any of
its betas. What RSO keeps here without repeating a text can hold one right answer only, as a problem
has one. Over four betas of the loss (`sweep_frontier`), from other starts, the same order:
docs/results.md.
"""

from experiments import common
from experiments.larpo import objectives

LOSSES = {
  "sigmoid-norm": dict(name="pairwise.dpo", beta=0.05),
  "hinge": dict(name="reference_free.slic", delta=20.0, sft=0.0),
  "hinge-norm": dict(name="pairwise.hinge", beta=0.05),
}


def get_config(arg=""):
  """The page; `:cpu` as in objectives.py, `:smoke` for seconds."""
  config = objectives.get_config(arg)
  rounds = config.rounds
  # Offline: sampled once, from the start.
  rounds.update(count=1, steps_per_round=3 * rounds.steps_per_round)
  rounds.update(candidates=64, human=0, prefer=(), dedupe=True)
  rounds.lists = dict(name="lists.rso", beta=0.1, keep=8)
  config.loss = LOSSES["sigmoid-norm"]
  if arg == "cpu":
    rounds.update(candidates=32, batch_size=64)
    config.evaluate.every = 10  # reward against KL on the way
  return common.smoke(config) if arg == "smoke" else config


def sources(beta=0.1):
  """Direct, sft and rso; the policy has to sample one that direct does not look at."""
  first = {"name": "lists.first_round"}
  people = {"rounds.candidates": 1, "rounds.human": 8, "rounds.prefer": ("human",)}
  own = {"rounds.human": 0, "rounds.prefer": ("self",)}
  yield {**people, "rounds.lists": first}
  yield {**own, "rounds.candidates": 8, "rounds.lists": first}
  yield {**own, "rounds.candidates": 32, "rounds.lists": dict(name="lists.rso", beta=beta, keep=8)}


def sweep():
  """Table 1: three sources by three losses."""
  for source in sources():
    for loss in LOSSES.values():
      yield {**source, "loss": loss}


def sweep_beta():
  """From the best of the candidates to nearly all alike."""
  for beta in (0.0, 0.03, 0.1, 0.3, 1.0):
    yield {"rounds.lists": dict(name="lists.rso", beta=beta, keep=8)}


def sweep_pairing():
  """Table 2: how what is accepted, or all, is paired."""
  for pairing in ("first_round", "tournament"):
    for candidates in (8, 32):
      yield {"rounds.candidates": candidates, "rounds.lists": {"name": f"lists.{pairing}"}}
    kept = dict(name="lists.rso", beta=0.1, keep=8, pairing=pairing)
    yield {"rounds.candidates": 32, "rounds.lists": kept}


def sweep_frontier():
  """The three sources at four strengths of the reference."""
  arms = [{**source, "loss": dict(name="pairwise.dpo")} for source in sources()]
  return common.at_betas(arms, betas=(0.05, 0.1, 0.3, 1.0))
