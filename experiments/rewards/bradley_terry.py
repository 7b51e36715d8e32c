r"""A reward model on preference pairs: a checkpoint, a score head, Bradley-Terry.

    python -m larpo_jax.main --config experiments/rewards/bradley_terry.py:hh_rlhf_harmless \
        --workdir runs/reward --config.model.path=CHECKPOINT

The argument names one of the sets below, under $LARPO_DATA (default ../shared/data). CHECKPOINT is
a language model, which gets a fresh head, or a *ForSequenceClassification of one label. The run
tells the accuracy on held-out pairs before and after, and leaves runs/reward/export: what
transformers reads as AutoModelForSequenceClassification, and a reward for runs with rounds,

    config.reward = dict(name="models.scalar", path="runs/reward/export")

which reads texts under the data settings of this page; experiments/real/larpo_rounds.py is one.

Bradley-Terry as in https://arxiv.org/abs/2203.02155, Eq. 1. Of the sweep: centring
(https://arxiv.org/abs/2312.09244) keeps scores of different prompts near 0, at 0.01 as TRL's
documentation recommends; 0 is the control arm.

Measured once, seed 0, from a checkpoint that knows next to nothing, on two busy CPU cores: held-out
accuracy 0.547 before and 0.564 after for hh_rlhf_harmless (6 minutes), 0.505 and 0.596 for
pandalm_pairs (3 minutes).
"""

from experiments import common

READERS = {
  # noisy labels of crowd workers, several turns
  "hh_rlhf_harmless": dict(prompt="messages", chosen="chosen", rejected="rejected"),
  # three annotators a pair; where most of them see a tie, chosen is null and the row is left out
  "pandalm_pairs": dict(prompt="{instruction}\n{input}", chosen="chosen", rejected="rejected"),
}


def get_config(arg=""):
  """The page; the argument is a data set, `smoke`, or DATA,smoke."""
  config, size = common.real(arg, "readers.pairs", READERS)
  config.scorer = dict(name="rewards.scalar")
  config.data.chat = True  # plain prompts go through the tokenizer's template too
  config.data.batch_size = 16
  config.data.max_prompt = 96
  config.data.max_response = 96
  config.data.skip = ("null", "empty", "type")  # ties, and answers that are no text

  config.loss = dict(name="reward_models.bradley_terry", centering=0.01)
  config.epochs = 1.0
  config.optimizer.learning_rate = 1e-4
  return common.smoke(config) if size == "smoke" else config


def sweep():
  """The learning rate, and the scores with and without a centre."""
  for rate in (3e-5, 1e-4, 3e-4):
    for centering in (0.0, 0.01):
      loss = dict(name="reward_models.bradley_terry", centering=centering)
      yield {"optimizer.learning_rate": rate, "loss": loss}
