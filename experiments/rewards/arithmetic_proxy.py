r"""A proxy of the world's reward: a small model of it, learnt from few lists of one policy.

    python -m larpo_jax.main --config experiments/larpo/objectives.py:cpu --workdir runs/sampled
    python -m larpo_jax.main --config experiments/rewards/arithmetic_proxy.py --workdir runs/proxy

The first run leaves what each of its rounds sampled, with the gold reward of every answer; the
second learns from the best and the worst of each list of its first round (128 of them), and is
tested on those of the second, which another policy wrote. "Preference accuracy, reward model" is
over all pairs of a list. runs/proxy/export is then the reward of over_optimisation.py. Elsewhere
than in runs/sampled: --config.data.train.path=FILE --config.data.test.path=FILE.

The control arms of the sweep are a proxy half and one twice as wide.

Not yet measured here.
"""

from experiments import common


def get_config(arg=""):
  """The page; `:smoke` for seconds."""
  config = common.arithmetic()
  config.supervised = config.reward = None
  config.scorer = dict(name="rewards.scalar")
  config.data.train.path = "runs/sampled/rounds/0/candidates.jsonl"
  config.data.test.path = "runs/sampled/rounds/1/candidates.jsonl"
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
