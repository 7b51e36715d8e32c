r"""A proxy of the world's reward: a small model of it, learnt from few noisy pairs of one policy.

    python -m larpo_jax.main --config experiments/rdpo/flips.py:cpu --workdir runs/sampled \
      --config.rounds.noise.rate=0.2
    python -m larpo_jax.main --config experiments/rdpo/flips.py:cpu --workdir runs/held_out \
      --config.seed=1
    python -m larpo_jax.main --config experiments/rewards/arithmetic_proxy.py --workdir runs/proxy

The first run leaves the pairs that it learnt from, one of each of 384 prompts, a fifth of them with
their labels flipped; the third learns from these, and is tested on four answers each of another
policy to other prompts, by the gold reward. "Preference accuracy, reward model" is over all pairs
of a list. runs/proxy/export is then the reward of over_optimisation.py. Elsewhere than in these
directories: --config.data.train.path=FILE --config.data.test.path=FILE.

The control arms of the sweep are a proxy half and one twice as wide.

Measured once, seed 0, on one busy CPU core in 30 seconds: held-out accuracy 0.262 before, with a
fresh head, and 0.723 after. docs/results.md, "A proxy that is learnt from noisy pairs".
"""

from experiments import common


def get_config(arg=""):
  """The page; `:smoke` for seconds."""
  config = common.arithmetic()
  config.supervised = config.reward = None
  config.scorer = dict(name="rewards.scalar")
  config.data.train.path = "runs/sampled/rounds/0/lists.jsonl"
  config.data.test.path = "runs/held_out/rounds/0/candidates.jsonl"
  columns = dict(prompt="prompt", responses="responses", scores="scores")
  config.data.reader = dict(name="readers.lists", **columns)
  config.data.skip = ("empty", "all_tied", "one_candidate", "equal")
  config.data.batch_size = 16

  config.loss = dict(name="reward_models.bradley_terry", centering=0.01)
  config.epochs = 20.0
  config.optimizer.learning_rate = 1e-3
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """The width of the proxy."""
  for width in (64, 128, 256):
    yield {"model.shape.hidden_size": width, "model.shape.intermediate_size": 3 * width}
