r"""A preference model: a language model is shown two answers and says which is better, A or B.

    python -m larpo_jax.main --config experiments/rewards/pairwise_preference.py:pandalm_pairs \
        --workdir runs/preference --config.model.path=CHECKPOINT

The argument names one of the sets below, under $LARPO_DATA (default ../shared/data). "Preference
accuracy, mean log-prob" is how often the held-out verdicts are right, 0.5 by chance. The export is
a reward that ranks lists by asking both orders of every two,

    config.reward = dict(name="models.pairwise", path="runs/preference/export")

whose scores depend on the list, as those of the PairRM that LarPO uses do
(https://arxiv.org/abs/2502.03699; https://arxiv.org/abs/2306.02561).

The loss is the pairwise ranking model of RSO, https://arxiv.org/abs/2309.06657, section 3.3; the
control arm of the sweep imitates the right verdict by DPO against the checkpoint.

Not yet measured here.
"""

from experiments import common

READERS = {
  # three annotators a pair; where most of them see a tie, chosen is null and the row is left out
  "pandalm_pairs": dict(prompt="{instruction}\n{input}", chosen="chosen", rejected="rejected"),
  # noisy labels of crowd workers; the turns as one text
  "hh_rlhf_harmless": dict(prompt="prompt", chosen="chosen", rejected="rejected"),
}


def get_config(arg=""):
  """The page; the argument is a data set, `smoke`, or DATA,smoke."""
  config, size = common.real(arg, "readers.verdicts", READERS)
  config.data.chat = True
  config.data.batch_size = 16
  config.data.max_prompt = 384  # both answers; what is cut is the start of the question
  config.data.max_response = 2  # the letter and its end
  config.data.skip = ("null", "empty", "type", "equal")  # ties, and answers that are no text

  config.loss = dict(name="reward_models.pairwise_preference")
  config.epochs = 1.0
  config.optimizer.learning_rate = 1e-4
  return common.smoke(config) if size == "smoke" else config


def sweep():
  """The loss of verdicts at three learning rates, and DPO on them."""
  for rate in (3e-5, 1e-4, 3e-4):
    for loss in (dict(name="reward_models.pairwise_preference"), dict(name="pairwise.dpo")):
      yield {"optimizer.learning_rate": rate, "loss": loss}
