r"""Thumbs up, thumbs down: KTO and its kin, on single labelled responses.

    python -m larpo_jax.main --config experiments/dpo_variants/unpaired.py --workdir runs/unpaired \
        --config.model.path=CHECKPOINT

The data is kto_demo under $LARPO_DATA, default ../shared/data: 213 responses, desirable or not; the
held-out pairs are those of hh_rlhf_harmless, another domain. KTO's baseline needs responses of
other prompts, which data.mismatched adds.

Run so far as `:smoke` only, seconds of training within half a minute; in full it is three passes
over 213 responses.
"""

from experiments import common


def get_config(arg=""):
  """The page; `:smoke` shrinks it to seconds."""
  config = common.base()
  config.model.path = "runs/checkpoint"

  config.data.train.path = common.data("kto_demo", "train")
  config.data.test.path = common.data("hh_rlhf_harmless", "test")
  config.data.test.reader = dict(name="readers.pairs", prompt="messages")
  config.data.reader = dict(name="readers.unpaired", prompt="messages")
  config.data.mismatched = True
  config.data.chat = True
  config.data.batch_size = 16
  config.data.max_prompt = 96
  config.data.max_response = 96

  config.loss = dict(name="unpaired.kto", beta=0.1)
  config.epochs = 3.0
  config.optimizer.learning_rate = 1e-4
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """Each loss of single responses."""
  for beta in (0.1, 0.5):
    for name in ("kto", "apo_zero_unpaired", "bco"):
      yield {"loss": dict(name=f"unpaired.{name}", beta=beta)}
  for tau in (0.1, 1.0):
    yield {"loss": dict(name="unpaired.dro", tau=tau)}


def sweep_balance():
  """How much an undesirable response weighs against a desirable one."""
  for weight in (0.5, 1.0, 1.33, 2.0):
    yield {"loss": dict(name="unpaired.kto", beta=0.1, undesirable_weight=weight)}


def sweep_supervised():
  """Imitation of the best responses, two ways to take the mean."""
  for name in ("sft", "sft_tokens"):
    yield {"loss": dict(name=f"pointwise.{name}")}
