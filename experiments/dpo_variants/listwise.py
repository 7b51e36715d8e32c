r"""Every loss of a list, on the same ranked lists: LarPO's, its code's presets, and their kin.

    python -m larpo_jax.main --config experiments/dpo_variants/listwise.py --workdir runs/listwise \
        --config.model.path=CHECKPOINT --config.loss.name=listwise.lambdarank

The data is oasst_ranked (human ranks of 2 to 5 replies) under $LARPO_DATA, default ../shared/data.

Run so far as `:smoke` only, seconds of training within half a minute; in full it is one pass over
161 lists. For ListMLE at these settings see the table of real data in the README.
"""

from experiments import common

LISTWISE = "contrastive lambdarank listmle lipo_lambda code_contrastive code_matched_pairs"
TARGETS = "listnet infonca nca swepo multi_positive"
NAMES = [f"listwise.{name}" for name in LISTWISE.split()]
NAMES += [f"targets.{name}" for name in TARGETS.split()]


def get_config(arg=""):
  """The page; `:smoke` shrinks it to seconds."""
  config = common.base()
  config.model.path = "runs/checkpoint"

  config.data.train.path = common.data("oasst_ranked", "train")
  config.data.test.path = common.data("oasst_ranked", "test")
  config.data.reader = dict(
    name="readers.lists", prompt="messages", responses="candidates.text", rank="candidates.rank"
  )
  config.data.candidates = 8
  config.data.chat = True
  config.data.batch_size = 8
  config.data.max_prompt = 96
  config.data.max_response = 96
  config.data.skip = ("all_tied", "one_candidate")

  config.loss = dict(name="listwise.listmle", beta=0.1)
  config.epochs = 1.0
  config.optimizer.learning_rate = 1e-4
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """Each objective at several strengths of the pull to the reference."""
  for name in NAMES:
    for beta in (0.05, 0.1, 0.5):
      yield {"loss": dict(name=name, beta=beta)}


def sweep_reduction():
  """The published sum grows with the list, and so do its steps: is that what helps?"""
  for name in ("listwise.lambdarank", "listwise.listmle"):
    for reduction in ("sum", "mean_pairs", "mean_items"):
      yield {"loss": dict(name=name, beta=0.1, reduction=reduction)}


def sweep_of_the_authors_code():
  """What the scripts of LarPO's authors train, beside what the paper prints."""
  yield {"loss": dict(name="listwise.contrastive", beta=0.1)}
  yield {"loss": dict(name="listwise.code_contrastive", beta=0.1, positives=1, negatives=3)}
  yield {"loss": dict(name="listwise.listmle", beta=0.1)}
  yield {"loss": dict(name="listwise.code_contrastive", beta=0.1, positives=2, negatives=2)}
  yield {"loss": dict(name="listwise.lambdarank", beta=0.1)}
  yield {"loss": dict(name="listwise.code_matched_pairs", beta=0.1, pairs=2)}


def sweep_without_a_reference():
  """Ranked likelihoods, with the supervised term that holds them."""
  for flavor, rank_weight in (("paper", 1.0), ("code", 100.0)):
    yield {"loss": dict(name="reference_free.rrhf", flavor=flavor, rank_weight=rank_weight)}
  for sft in (0.0, 0.05, 0.5):
    yield {"loss": dict(name="reference_free.pro", sft=sft)}
