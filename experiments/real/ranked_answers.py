r"""Ranked answers: a Hugging Face checkpoint, lists of scored answers, LarPO's ListMLE.

    python -m larpo_jax.main --config experiments/real/ranked_answers.py:oasst_ranked \
        --workdir runs/oasst --config.model.path=CHECKPOINT

The argument names one of the sets below, under $LARPO_DATA (default ../shared/data). Data of your
own: any of them with --config.data.train.path=FILE --config.data.test.path=FILE and, where its
columns have other names, --config.data.reader.prompt=COLUMN and so on. A column is a dotted path
that maps over lists. `python -m larpo_jax.inspect --config ...` shows what the model will read.

One to four minutes on two CPU cores with a 5.7M-parameter checkpoint; held-out preference accuracy
of the implicit reward went from 0.500 to 0.627 on oasst_ranked, 0.520 on fg_qa_feedback and 0.596
on vicuna80_listwise (28, 77 and 8 prompts).
"""

from experiments import common

READERS = {
  # human ranks of two to five sibling replies in a conversation
  "oasst_ranked": dict(prompt="messages", responses="candidates.text", rank="candidates.rank"),
  # four answers a question, scored by six human comparisons
  "fg_qa_feedback": dict(prompt="question", responses="candidates.text", scores="candidates.score"),
  # up to 36 systems a question, scored by GPT-4; eight of them, evenly spaced in rank
  "vicuna80_listwise": dict(
    prompt="prompt", responses="candidates.text", scores="candidates.score"
  ),
}


def get_config(arg=""):
  """The page; the argument is a data set, `smoke`, or DATA,smoke."""
  config, size = common.real(arg, "readers.lists", READERS)
  config.data.candidates = 8
  config.data.chat = True  # plain prompts go through the tokenizer's template too
  config.data.batch_size = 8
  config.data.max_prompt = 96
  config.data.max_response = 96
  config.data.skip = ("all_tied", "one_candidate")  # such lists prefer nothing

  config.loss = dict(name="listwise.listmle", beta=0.1)
  config.epochs = 1.0
  config.optimizer.learning_rate = 1e-4
  return common.smoke(config) if size == "smoke" else config


def sweep():
  """Which ranking objective, at which temperature of the reward."""
  for name in ("contrastive", "lambdarank", "listmle"):
    for beta in (0.05, 0.1, 0.5):
      yield {"loss": dict(name=f"listwise.{name}", beta=beta)}
