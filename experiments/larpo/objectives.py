r"""LarPO's four objectives at equal K: which one, how far from the start.

    python -m larpo_jax.sweep --config experiments/larpo/objectives.py:cpu \
      --workdir runs/objectives --seeds 5
    python -m larpo_jax.report runs/objectives

LarPO (https://arxiv.org/abs/2502.03699), Table 3, with Gemma2-2b-it, length-controlled win rate:
supervised 36.4, pairs 41.4, contrastive 43.4, LambdaRank 43.8, ListMLE 49.8; with Mistral-7b-it the
order of the last three is another one. There a pair is of two samples a prompt and the others of
four, at one beta and one seed. Here all have the same eight candidates, steps and tokens.

Measured at `:cpu`, five seeds, 25 minutes on two CPU cores beside other work (and 14 minutes for
the supervised stages, which all arms of a seed share): reward of samples 0.40 at the start; 0.81 by
pairs, 0.79 by contrastive, 0.79 by LambdaRank, 0.80 by ListMLE on average over beta, and no two
arms differ beyond chance. Expect +-0.08 between seeds. The claim is not supported at this scale;
docs/results.md has the table and the pictures. The full size has not been run.
"""

from experiments import common

OBJECTIVES = ("pairwise.dpo", "listwise.contrastive", "listwise.lambdarank", "listwise.listmle")


def get_config(arg=""):
  """The page, for an accelerator; `:cpu` for two cores, `:smoke` for seconds."""
  config = common.arithmetic()
  config.loss = dict(name="listwise.listmle", beta=0.1)
  config.rounds = dict(count=3, prompts=2048, candidates=8, temperature=1.0, max_tokens=40)
  config.rounds.update(batch_size=256, memory="none", steps_per_round=32)
  config.data.batch_size = 64
  config.optimizer.learning_rate = 3e-4
  config.evaluate.rows = 1024
  config.export = False
  if arg == "cpu":
    config.rounds.update(prompts=128, batch_size=128, steps_per_round=8)
    config.data.batch_size = 16
    config.evaluate.rows = 256
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """Every objective at four strengths of the reference: a frontier each."""
  for name in OBJECTIVES:
    for beta in (0.1, 0.3, 1.0, 3.0):
      yield {"loss": dict(name=name, beta=beta)}
