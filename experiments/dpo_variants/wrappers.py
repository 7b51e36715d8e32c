r"""What can be put around any loss: noise, weights, lengths, divergences, likelihood.

    python -m larpo_jax.main --config experiments/dpo_variants/wrappers.py --workdir runs/wrappers \
        --config.model.path=CHECKPOINT

The data is hh_rlhf_harmless (noisy labels of crowd workers) under $LARPO_DATA, default
../shared/data.

Run so far as `:smoke` only, seconds of training within half a minute; in full it is 40 steps of 16
pairs. For DPO at these settings see the table of real data in the README.
"""

from experiments import common

INNER = (
  dict(name="pairwise.dpo", beta=0.1),
  dict(name="pairwise.ipo", beta=0.5),
  dict(name="pairwise.hinge", beta=0.05),
)


def get_config(arg=""):
  """The page; `:smoke` shrinks it to seconds."""
  config = common.base()
  config.model.path = "runs/checkpoint"

  config.data.train.path = common.data("hh_rlhf_harmless", "train")
  config.data.test.path = common.data("hh_rlhf_harmless", "test")
  config.data.reader = dict(name="readers.pairs", prompt="messages")
  config.data.batch_size = 16
  config.data.max_prompt = 96
  config.data.max_response = 96
  config.data.skip = ("null", "empty", "type", "equal", "equal_after_truncation")

  config.loss = dict(name="wrappers.robust", epsilon=0.2, kernel=dict(INNER[0]))
  config.steps = 40
  config.optimizer.learning_rate = 1e-4
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """Each wrapper around several losses."""
  for inner in INNER:
    yield {"loss": inner}
    for epsilon in (0.1, 0.2):
      yield {"loss": dict(name="wrappers.robust", epsilon=epsilon, kernel=inner)}
    for name in ("smoothed", "distributionally_robust", "wpo", "ld_dpo", "with_sft"):
      yield {"loss": dict(name=f"wrappers.{name}", kernel=inner)}


def sweep_divergence():
  """DPO with other divergences than the reverse KL."""
  for beta in (0.05, 0.1, 0.5):
    inner = dict(name="pairwise.dpo", beta=beta)
    yield {"loss": inner}
    for name in ("forward_kl", "js_divergence"):
      yield {"loss": dict(name=f"wrappers.{name}", kernel=inner)}
    for alpha in (0.3, 0.5, 0.7):
      yield {"loss": dict(name="wrappers.alpha_divergence", alpha=alpha, kernel=inner)}


def sweep_of_sums():
  """Sums of losses: iterative RPO, and MPO's three."""
  dpo, sft = dict(name="pairwise.dpo", beta=0.1), dict(name="pointwise.sft")
  for weight in (0.005, 0.1, 1.0):
    yield {"loss": (dpo, sft | dict(weight=weight))}
  bco = dict(name="pairwise.bco_pair", beta=0.1)
  yield {"loss": (dpo | dict(weight=0.8), bco | dict(weight=0.2), sft)}
