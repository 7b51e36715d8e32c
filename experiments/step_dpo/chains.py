r"""Step-DPO on chains of arithmetic: single steps against whole answers, whose steps, found where.

    python -m larpo_jax.sweep --config experiments/step_dpo/chains.py:cpu \
      --workdir runs/step_dpo --seeds 5
    python -m larpo_jax.report runs/step_dpo

Step-DPO (https://arxiv.org/abs/2406.18629): the first wrong step of a wrong answer is rejected for
one with which the policy itself goes on to the right end. Published, Qwen2-7B-SFT on MATH with 5K
pairs: 54.8 before, 55.0 by DPO on whole answers, 55.8 by Step-DPO; and 55.1 where another model has
written the chosen steps, which the policy finds less likely: the paper's explanation.

One offline run: two answers a prompt from the start, as in the paper, at most one pair of each
prompt. All arms have the same number of pairs and of optimiser steps, and the whole answers are
those that the single steps are cut from. The world writes its own steps with spaces around the
signs, which the checker ignores and the policy has never seen. The exact checker finds every error;
"misplaced" is the control of an imperfect one, which names a later step in a share of the pairs.

Watch gold/accuracy, gold/steps (the share of right steps before the first wrong one), and of the
round steps/chosen_logp, how likely the reference finds what is chosen. If steps/pairs is below
rounds.steps.pairs, the arms are not of equal size: raise rounds.prompts. Chains of four to six
steps need a supervised stage of their own: that of other pages, of three steps, is not shared. beta
is the paper's 0.4; `sweep_beta` is for the frontier, as a step is shorter than an answer.

Measured at `:cpu`, five seeds, 17 minutes on one busy CPU core. Right samples: 0.66 before; 0.63 by
whole answers, by the policy's steps and by the world's, and where 20 % of the errors are found too
late, 0.62 with 40 %. Not supported at this scale: no arm is told from another, and none gains, at
any beta. docs/results.md has the tables, and what other settings gave.
"""

from experiments import common


def get_config(arg=""):
  """The page, for an accelerator; `:cpu` for two cores, `:smoke` for seconds."""
  config = common.arithmetic()
  # No hasty demonstrations, whose one error is at the first step: nothing to find. No slips, which
  # are chance and no lack of knowledge: the start errs because it has not seen enough.
  config.world = dict(name="arithmetic", steps=(4, 6), slip=0.0)
  config.supervised.update(examples=16_000, steps=500)
  config.data.max_response = 64
  config.loss = dict(name="pairwise.dpo", beta=0.4)
  config.rounds = dict(count=1, prompts=4096, candidates=2, temperature=0.8, max_tokens=64)
  config.rounds.update(batch_size=256, steps_per_round=128)
  config.rounds.steps = dict(
    unit="step", chosen="self", continuations=20, misplaced=0.0, pairs=1024
  )
  config.data.batch_size = 64
  config.optimizer.learning_rate = 5e-5
  config.evaluate.rows = 1024
  config.export = False
  if arg == "cpu":
    config.rounds.update(prompts=1024, batch_size=256, steps_per_round=24)
    config.rounds.steps.update(continuations=8, pairs=256)
    config.data.batch_size = 32
    config.evaluate.rows = 256
    config.evaluate.every = 10  # reward against KL on the way
  if arg == "smoke":
    common.smoke(config)
    config.rounds.candidates = 4
    config.rounds.steps.chosen = "oracle"  # so young a model never goes on right
  return config


def sweep():
  """Whole answers; the policy's own steps; the world's; and errors found in a wrong place."""
  yield {"rounds.steps.unit": "answer"}
  yield {"rounds.steps.chosen": "self"}
  yield {"rounds.steps.chosen": "oracle"}
  for share in (0.2, 0.4):
    yield {"rounds.steps.misplaced": share}


def sweep_rate():
  """Whole answers and single steps at three learning rates."""
  for unit in ("answer", "step"):
    for rate in (2e-5, 1e-4, 3e-4):
      yield {"rounds.steps.unit": unit, "optimizer.learning_rate": rate}


def sweep_beta():
  """Whole answers and single steps at four strengths of the reference: a frontier each."""
  for unit in ("answer", "step"):
    for beta in (0.1, 0.4, 1.6, 6.4):
      yield {"rounds.steps.unit": unit, "loss.beta": beta}
