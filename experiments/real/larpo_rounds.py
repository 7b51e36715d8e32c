r"""LarPO on a checkpoint and real prompts: two rounds, ranked by a reward model. Three commands:

    python scripts/make_checkpoint.py --out runs/checkpoint
    python -m larpo_jax.main --config experiments/rewards/bradley_terry.py --workdir runs/reward
    python -m larpo_jax.main --config experiments/real/larpo_rounds.py --workdir runs/larpo

The first makes a small instruction-tuned model (with a checkpoint of your own, leave it out and
give the others --config.model.path=CHECKPOINT), the second a reward model from it, and the third
samples K answers to prompts of oasst_ranked from it, ranks them by the reward model and learns from
the lists, twice. candidates/reward of runs/larpo/metrics.jsonl, stage "rounds", is what the answers
earn, and the test split says whether the policy agrees with the human ranks more than before: the
reward model is a proxy of those, so look at both.

LarPO: https://arxiv.org/abs/2502.03699, Algorithm 1. The control arm of the sweep is the best
against the worst answer, iterative DPO; a prompt of several turns reaches the reward as one text.

Measured once, seed 0, on two busy CPU cores in 8.5 minutes, with a checkpoint that knows next to
nothing: the reward of samples went from -0.225 to -0.210 after a round, agreement with the human
ranks of 28 unseen prompts from 0.500 to 0.524 after two. docs/results.md has more.
"""

from experiments import common


def get_config(arg=""):
  """The page, or `smoke`, which has a rule for its reward."""
  config, size = common.real(arg, "readers.prompts", {"oasst_ranked": dict(prompt="messages")})
  columns = dict(prompt="messages", responses="candidates.text", rank="candidates.rank")
  config.data.test.reader = dict(name="readers.lists", **columns)
  config.data.chat = True
  config.data.batch_size = 8
  config.data.max_prompt = 96
  config.data.max_response = 96
  config.data.skip = ("all_tied", "one_candidate")  # such lists prefer nothing

  config.reward = dict(name="models.scalar", path="runs/reward/export")
  config.rounds = dict(count=2, prompts=80, candidates=8, max_tokens=96, temperature=0.8)
  config.rounds.update(batch_size=40, dedupe=True)
  config.loss = dict(name="listwise.listmle", beta=0.1)
  config.epochs = 2.0
  config.optimizer.learning_rate = 3e-5
  return common.smoke(config) if size == "smoke" else config


def sweep():
  """ListMLE of all candidates, and the best against the worst."""
  for candidates in (4, 8):
    for name in ("listwise.listmle", "pairwise.dpo"):
      yield {"loss": dict(name=name, beta=0.1), "rounds.candidates": candidates}
