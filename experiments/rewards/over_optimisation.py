r"""Over-optimisation: rounds that are ranked by a proxy, and what the gold reward says of them.

    python -m larpo_jax.sweep --config experiments/rewards/over_optimisation.py:cpu \
      --workdir runs/over_optimisation --seeds 5
    python -m larpo_jax.report runs/over_optimisation

runs/proxy/export is the proxy: run the three commands of arithmetic_proxy.py first. Every run then
has gold/reward, proxy/reward and kl at the start of each round and at the end, in the stage
"rounds" of its metrics.jsonl. Gao et al. (https://arxiv.org/abs/2210.10760) see the proxy's reward
go on rising with the distance from the start while the gold reward turns and falls.

The control arms have the gold reward in place of the proxy, at the same strengths of the reference.

Measured at `:cpu`, five seeds, 18 minutes on one busy CPU core. Gold reward of samples: 0.40
before; at beta 0.1 by the proxy 0.70 after four rounds and 0.68 after six, at beta 1 0.73 and 0.74;
by gold 0.80 and 0.83, 0.82 and 0.84. That the proxy costs is supported at this scale, that gold
turns is undecided. docs/results.md has the table.
"""

from experiments import common
from experiments.larpo import objectives

PROXY = dict(name="models.scalar", path="runs/proxy/export")


def get_config(arg=""):
  """The page; `:cpu` as in objectives.py, `:smoke` for seconds, with a rule for its reward."""
  config = objectives.get_config(arg)
  config.reward = dict(PROXY)
  config.rounds.count = 6
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """The proxy and the gold reward, each held to the start of its round weakly and strongly."""
  for beta in (0.1, 1.0):
    for reward in (PROXY, dict(name="worlds.arithmetic")):
      yield {"reward": dict(reward), "loss": dict(name="listwise.listmle", beta=beta)}
