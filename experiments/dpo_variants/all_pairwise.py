r"""Every loss of a pair, on the same pairs, at its published defaults.

    python -m larpo_jax.main --config experiments/dpo_variants/all_pairwise.py:pairwise.simpo \
        --workdir runs/simpo --config.model.path=CHECKPOINT

The argument names a loss, pairwise.dpo without one; `:smoke` trains the sum of all of them. The
data is pandalm_pairs (three annotators a pair) under $LARPO_DATA, default ../shared/data.

DPO, measured on two CPU cores that other work used too, with a 5.7M-parameter checkpoint: 41 steps
in six minutes, held-out preference accuracy of the implicit reward 0.500 -> 0.737 (99 pairs). The
other losses have been run as `:smoke` only, half a minute alone.
"""

from experiments import common

PAIRWISE = (
  "dpo cdpo ipo ipo_sum hinge exo nca bco_pair sppo_hard apo_zero apo_down discopop sigmoid_norm "
  "simpo"
)
FREE = "slic cpo orpo simper alphapo rrhf pro"
MARGINS = "dpop r_dpo odpo cal_dpo chi_po focalpo dpo_shift minor_dpo npo spin"
BATCHWISE = "aot aot_unpaired dr_dpo bco_pair_shift beta_dpo"
TOKENWISE = "rrpo tdpo1 tdpo2 sampo step_dpo ddpo"
EXPLORATION = "selm xpo copo"
NAMES = [
  f"{family}.{name}"
  for family, names in (
    ("pairwise", PAIRWISE),
    ("reference_free", FREE),
    ("margins", MARGINS),
    ("batchwise", BATCHWISE),
    ("tokenwise", TOKENWISE),
    ("exploration", EXPLORATION),
  )
  for name in names.split()
]


def get_config(arg=""):
  """The page; the argument is a loss, or `smoke`: the sum of all losses, for two steps."""
  if arg not in ("", "smoke", *NAMES):
    raise ValueError(f"no loss {arg!r} here; there are: {', '.join(NAMES)}")
  config = common.base()
  config.model.path = "runs/checkpoint"

  config.data.train.path = common.data("pandalm_pairs", "train")
  config.data.test.path = common.data("pandalm_pairs", "test")
  config.data.reader = dict(
    name="readers.pairs", prompt="{instruction}\n{input}", chosen="chosen", rejected="rejected"
  )
  config.data.chat = True
  config.data.spans = True  # for those that look at what was edited
  config.data.batch_size = 16
  config.data.max_prompt = 96
  config.data.max_response = 96
  config.data.skip = ("null", "empty", "type")  # ties, and answers that are no text

  config.loss = dict(name=arg if arg in NAMES else "pairwise.dpo")
  config.epochs = 1.0
  config.optimizer.learning_rate = 1e-4
  if arg == "smoke":
    del config.loss
    config.loss = tuple(dict(name=name, weight=1.0 / len(NAMES)) for name in NAMES)
    config = common.smoke(config)
  return config


def sweep():
  """Each loss once, as its paper sets it."""
  for name in NAMES:
    yield {"loss": dict(name=name)}


def sweep_strength():
  """How far from the reference: without this a comparison of losses is one of step sizes."""
  for name in ("pairwise.dpo", "pairwise.cdpo", "pairwise.ipo", "pairwise.hinge", "pairwise.nca"):
    for beta in (0.01, 0.05, 0.1, 0.5, 1.0):
      yield {"loss": dict(name=name, beta=beta)}
  for gamma in (0.0, 0.5, 1.0, 1.6):
    for beta in (2.0, 10.0):
      yield {"loss": dict(name="pairwise.simpo", beta=beta, gamma=gamma)}
