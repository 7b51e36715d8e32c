r"""COPO: what was sampled seldom is made likelier, by exact counts and by a coin-flip network.

    python -m larpo_jax.sweep --config experiments/copo/counts.py:cpu \
      --workdir runs/copo --seeds 5
    python -m larpo_jax.report runs/copo --metric sampled/gold/accuracy

COPO (https://arxiv.org/abs/2501.12735), figures from its public reviews: AlpacaEval 2,
length-controlled, of Zephyr-7B after online DPO 22.19, SELM 24.25, COPO 27.21; of
Llama-3-8B-Instruct 33.17, 34.67 and 35.54.

The world and what is measured are those of experiments/selm/exploration.py. Where answers are few
they can be counted, so the network can be compared with what it stands for: that is what
scripts/novelty_against_counts.py does with a finished run. `COPO` is the published preset, by the
network on the greedy answer alone; `sweep` explores all candidates, and `sweep_explored` has the
preset and what lies between. The weight on a response is alpha / 10 times the novelty, so that
alpha = 10 is a log-likelihood with weight 1; at the published 1e-4 no difference is to be expected.
The controls: the same without counts, where each sample is pushed alike; SELM; and DPO on warmer
samples. Rounds share their prompts, so that counts rise.

Measured at `:cpu`, five seeds, 25 minutes on one busy CPU core. Share of samples that are the best
answer: 0.01 before; DPO 0.04; COPO with counts 0.05, 0.16 and 0.35 at alpha 1e-4, 0.03 and 0.1;
without counts 0.37; by the network 0.02; SELM 0.06; DPO on samples at temperature 1.5 and 2 0.37
and 0.43. Undecided, and not the counts are what helps. docs/results.md has the table.
"""

from experiments import common
from experiments.selm import exploration

COUNTS = {"name": "novelty.counts", "exponent": 0.5}
COIN_FLIPS = {"name": "novelty.coin_flips"}
DPO = {"loss": {"name": "pairwise.dpo", "beta": 0.01}}


def copo(alpha, novelty):
  """A point at COPO's beta; a novelty of None is a bonus without counts."""
  loss = {"name": "exploration.copo", "beta": 0.01, "alpha": alpha}
  return {"loss": loss, "rounds.novelty": novelty}


COPO = copo(1e-4, {**COIN_FLIPS, "learning_rate": 1e-4, "explored": "first"})


def get_config(arg=""):
  """The page; `:cpu` as in selm/exploration.py, `:smoke` for seconds."""
  config = exploration.get_config(arg)
  config.loss = dict(name="exploration.copo", beta=0.01, alpha=1e-4)
  config.rounds.prompt_split = "shared"
  # The smoke takes the network, which has everything in it that counts have.
  config.rounds.novelty = dict(name="novelty.coin_flips" if arg == "smoke" else "novelty.counts")
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """The published alpha, a bonus that is felt, what it is without counts, and the controls."""
  yield {**DPO, "rounds.novelty": None}
  for alpha in (1e-4, 0.03, 0.1):
    yield copo(alpha, COUNTS)
  yield copo(0.1, None)
  yield copo(0.1, COIN_FLIPS)
  yield {**exploration.selm(0.1), "rounds.novelty": {"name": "novelty.first"}}
  for temperature in (1.5, 2.0):
    yield {**DPO, "rounds.novelty": None, "rounds.temperature": temperature}


def sweep_alpha():
  """COPO's alpha over decades, with counts and without."""
  for novelty in (COUNTS, None):
    for alpha in (1e-4, 1e-2, 0.1, 1.0, 10.0):
      yield copo(alpha, novelty)


def sweep_explored():
  """The greedy answer alone or all candidates, by counts and by the network; the preset first."""
  yield COPO
  for novelty in (COUNTS, COIN_FLIPS):
    for explored in ("first", "all"):
      yield copo(0.1, {**novelty, "explored": explored})


def sweep_frontier():
  """DPO, the bonus that is felt, and warmer samples, at two strengths of the reference."""
  dpo = {**DPO, "rounds.novelty": None}
  arms = (dpo, copo(0.1, COUNTS), {**dpo, "rounds.temperature": 1.5})
  return common.at_betas(arms, betas=(0.01, 0.1))
