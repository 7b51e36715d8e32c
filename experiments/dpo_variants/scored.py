r"""What a reward model's scores add to verdicts: distillation, soft labels, adaptive margins.

    python -m larpo_jax.main --config experiments/dpo_variants/scored.py --workdir runs/scored \
        --config.model.path=CHECKPOINT --config.loss.name=scored.soft_label

The data is math_rm_listwise under $LARPO_DATA, default ../shared/data: eight solutions a problem,
scored by a reward model, which ranks them too. Where a judge who prefers and one who scores are
two, name the second one's column: --config.data.reader.second_scores=COLUMN.

Run so far as `:smoke` only, seconds of training within half a minute; in full it is two passes over
60 problems.
"""

from experiments import common


def get_config(arg=""):
  """The page; `:smoke` shrinks it to seconds."""
  config = common.base()
  config.model.path = "runs/checkpoint"

  config.data.train.path = common.data("math_rm_listwise", "train")
  config.data.test.path = common.data("math_rm_listwise", "test")
  config.data.reader = dict(
    name="readers.lists",
    prompt="question",
    responses="candidates.text",
    scores="candidates.rm_score",
    second_scores="",
  )
  config.data.candidates = 4
  config.data.chat = True
  config.data.batch_size = 4
  config.data.max_prompt = 96
  config.data.max_response = 128
  config.data.skip = ("one_candidate", "equal_after_truncation")

  config.loss = dict(name="scored.madpo", beta=0.1)
  config.epochs = 2.0
  config.optimizer.learning_rate = 1e-4
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """Each loss that reads scores, and DPO, which does not."""
  yield {"loss": dict(name="pairwise.dpo", beta=0.1)}
  yield {"loss": dict(name="margins.odpo", beta=0.1)}
  for name in ("reward_distillation", "soft_label", "rank_conditioned", "sppo"):
    yield {"loss": dict(name=f"scored.{name}")}
  for name in ("rpo_squared", "rpo_backward_kl", "rpo_forward_kl"):
    for eta in (0.3, 1.0, 3.0):
      yield {"loss": dict(name=f"scored.{name}", eta=eta)}
  for eta in (0.1, 1.0):
    yield {"loss": dict(name="scored.rebel", eta=eta)}


def sweep_madpo():
  """MADPO's parts: amplification, regularisation, the cut-off; and the margin it is not."""
  for side in ("full", "amplify", "regularise"):
    for c_max in (2.0, 4.0):
      yield {"loss": dict(name="scored.madpo", side=side, c_max=c_max, c_min=1 / c_max, tau=7.0)}
  yield {"loss": dict(name="scored.madpo", cutoff=False)}
  yield {"loss": dict(name="scored.madpo_margin")}
