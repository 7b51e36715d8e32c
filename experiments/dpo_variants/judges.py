r"""Judges instead of policies: a generative reward model, and a model of verdicts.

    python -m larpo_jax.main --config experiments/dpo_variants/judges.py --workdir runs/judge \
        --config.model.path=CHECKPOINT

The log-prob of a response is taken as its score, so any language model is a reward model; the data
is hh_rlhf_harmless, as in wrappers.py.

Run so far as `:smoke` only, seconds of training within half a minute; in full it takes what
wrappers.py takes.
"""

from experiments import common
from experiments.dpo_variants import wrappers


def get_config(arg=""):
  """The page; `:smoke` shrinks it to seconds."""
  config = wrappers.get_config()
  config.loss = dict(name="reward_models.bradley_terry")
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """A margin, a centre, and verdicts."""
  for margin in (0.0, 1.0):
    for centering in (0.0, 0.01):
      yield {"loss": dict(name="reward_models.bradley_terry", margin=margin, centering=centering)}
  yield {"loss": dict(name="reward_models.pairwise_preference")}
