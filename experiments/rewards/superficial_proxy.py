r"""A proxy that likes the word "very": what becomes of the gold reward that it is near to.

    python -m larpo_jax.sweep --config experiments/rewards/superficial_proxy.py:cpu \
      --workdir runs/superficial_proxy --seeds 5
    python -m larpo_jax.report runs/superficial_proxy

Scaling Laws for Reward Model Overoptimization (https://arxiv.org/abs/2210.10760): as a policy is
optimised against a proxy, the proxy reward goes on to rise with the KL to the start, and the gold
reward rises first and then falls. The paper's learned proxy is a noisy reading of a larger reward
model; https://arxiv.org/abs/2406.02900 finds the same in DPO and its relatives. Here both rewards
are exact: gold is of the attributes that a text is asked for, the proxy adds strength times the
share of words that are "very", and noise that the text decides.

For three topics and nine words, the text that a proxy of strength 1 likes best has all topics and a
gold reward of 0.85; of strength 3, it is "very" and nothing else, and 0.37. strength 0 is the
control: the same noise, and nothing to be misled by. Watch gold/reward, proxy/reward and kl from
round to round, and their ends against beta. The world has a supervised stage of its own.

Measured at `:cpu`, five seeds, 27 minutes on one busy CPU core. Gold reward of samples: 0.76
before; 0.91 with strength 0 after six rounds, 0.89 with 1; with 3 it is 0.86 after four and 0.85
after six, while the proxy's goes from 0.94 to 1.44. Supported at this scale; docs/results.md.
"""

from experiments import common
from experiments.larpo import objectives


def get_config(arg=""):
  """The page; `:cpu` as in objectives.py, `:smoke` for seconds."""
  config = objectives.get_config(arg)
  config.world = dict(name="attributes", topics=3, slip=0.7, very=0.1)
  config.reward = dict(name="worlds.attributes_proxy", strength=1.0, noise=0.1)
  config.data.max_response = 24
  config.supervised.update(examples=32_000, steps=1000)
  config.rounds.update(count=6, max_tokens=24)
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """How misleading the proxy is, by how far the policy may go."""
  for strength in (0.0, 1.0, 3.0):
    for beta in (0.03, 0.1, 0.3):
      yield {"reward.strength": strength, "loss.beta": beta}
