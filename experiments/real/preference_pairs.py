r"""Preference pairs: a Hugging Face checkpoint, chosen and rejected answers, DPO.

    python -m larpo_jax.main --config experiments/real/preference_pairs.py:hh_rlhf_harmless \
        --workdir runs/hh --config.model.path=CHECKPOINT

The argument names one of the sets below, under $LARPO_DATA (default ../shared/data). Data of your
own: any of them with --config.data.train.path=FILE --config.data.test.path=FILE and, where its
columns have other names, --config.data.reader.prompt=COLUMN and so on.

Two to six minutes on two CPU cores with a 5.7M-parameter checkpoint; held-out preference accuracy
of the implicit reward went from 0.500 to 0.677 on pandalm_pairs, and to 0.611 in 40 steps on
hh_rlhf_harmless (99 and 234 pairs).

DPO: https://arxiv.org/abs/2305.18290.
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
  config.data.chat = True  # plain prompts go through the tokenizer's template too
  config.data.batch_size = 16
  config.data.max_prompt = 96
  config.data.max_response = 96
  config.data.skip = ("null", "empty", "type")  # ties, and answers that are no text

  config.loss = dict(name="pairwise.dpo", beta=0.1)
  config.epochs = 1.0
  config.optimizer.learning_rate = 1e-4
  return common.smoke(config) if size == "smoke" else config


def sweep():
  """The strength of the pull to the reference, with and without smoothed labels."""
  for beta in (0.05, 0.1, 0.5):
    for name in ("dpo", "cdpo"):
      yield {"loss": dict(name=f"pairwise.{name}", beta=beta)}
