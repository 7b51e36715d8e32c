r"""SELM and XPO: a bonus for what the reference does not say, where the best answer is a rare one.

    python -m larpo_jax.sweep --config experiments/selm/exploration.py:cpu \
      --workdir runs/selm --seeds 5
    python -m larpo_jax.report runs/selm --metric sampled/gold/accuracy

SELM (https://arxiv.org/abs/2405.19332): AlpacaEval 2, length-controlled, of Zephyr-7B after three
iterations 24.25, iterative DPO 22.19; of Llama-3-8B-Instruct 34.67 and 33.17. After the first two
iterations neither is ahead by more than half a point.

Here the start gives the best of 512 answers a probability of about 0.001 (`:cpu` 0.01), and common
ones that earn less nearly all the rest (larpo_jax/worlds/bandit.py). Each round ranks the greedy
answer, which is what SELM explores, and seven samples. The presets are `SELM_ZEPHYR`, `SELM_LLAMA`
and `XPO`. At the published alphas the bonus is 0.2% and 0.02% of DPO's gradient at the start of a
round, so no difference is to be expected; a hundred times as much shows whether the bonus does
anything. It has no lower bound: at 1 the policy leaves the language within five rounds. The
controls: the other sign, which says whether any term of that size would do, and DPO on warmer
samples, the simplest way to explore.

In metrics.jsonl, stage "rounds": candidates/seen is how many responses have been sampled,
candidates/found the share of prompts whose best answer was among them, candidates/modes that of all
modes, candidates/regret what the samples have lost. The results have sampled/gold/accuracy, the
share of test prompts whose best answer is sampled, and gold/accuracy of greedy answers.

Measured at `:cpu`, five seeds, 17 minutes on one busy CPU core. Share of samples that are the best
answer: 0.01 before; DPO 0.10, SELM 0.06 as published and 0.02 at 0.1, the other sign 0.09, XPO
0.13, DPO on samples at temperature 1.5 and 2 0.39 and 0.45. Not supported at this scale: no bonus
is above DPO. docs/results.md has the table.
"""

from experiments import common

DPO = {"loss": {"name": "pairwise.dpo", "beta": 0.01}}
SELM_ZEPHYR = {"loss": {"name": "exploration.selm", "beta": 0.01, "alpha": 0.001}}
SELM_LLAMA = {"loss": {"name": "exploration.selm", "beta": 0.01, "alpha": 0.0001}}
# The pair is of the policy and of the reference, which are one as a round starts: all are samples.
XPO = {"loss": {"name": "exploration.xpo", "beta": 0.1, "alpha": 1e-5}, "rounds.greedy": False}


def get_config(arg=""):
  """The page, for an accelerator; `:cpu` for two cores, `:smoke` for seconds."""
  config = common.arithmetic()
  config.world = dict(name="bandit", rare=1e-3)
  config.reward = dict(name="worlds.bandit")
  config.model.shape.update(hidden_size=64, intermediate_size=192)
  config.data.max_prompt = config.data.max_response = 8
  config.supervised.update(examples=25_600, steps=400, batch_size=64)

  config.loss = dict(name="pairwise.dpo", beta=0.01)
  config.rounds = dict(count=5, prompts=8192, candidates=8, temperature=1.0, max_tokens=4)
  config.rounds.update(batch_size=1024, greedy=True, dedupe=True, steps_per_round=64)
  config.rounds.novelty = dict(name="novelty.first")
  config.data.batch_size = 256
  config.optimizer.learning_rate = 3e-4
  config.evaluate.rows = 1024
  config.export = False
  if arg == "cpu":
    config.world.rare = 1e-2
    config.rounds.update(prompts=1024, batch_size=256)
    config.data.batch_size = 32
    config.evaluate.rows = 256
  return common.smoke(config) if arg == "smoke" else config


def selm(alpha):
  """A point at SELM's beta; a negative alpha is the other sign."""
  return {"loss": {"name": "exploration.selm", "beta": 0.01, "alpha": alpha}}


def sweep():
  """The presets, a bonus a hundred times as large, the other sign, and the controls."""
  yield DPO
  yield SELM_ZEPHYR
  yield selm(0.1)
  yield selm(-0.1)
  yield XPO
  for temperature in (1.5, 2.0):
    yield {**DPO, "rounds.temperature": temperature}


def sweep_alpha():
  """SELM's alpha over decades, the other sign of two of them, and no bonus."""
  yield DPO
  yield SELM_LLAMA
  for alpha in (0.001, 0.01, 0.1, 1.0, 10.0, -0.1, -1.0):
    yield selm(alpha)


def sweep_xpo():
  """XPO's alpha over decades, beside DPO on the same samples."""
  yield {"loss": {"name": "pairwise.dpo", "beta": 0.1}, "rounds.greedy": False}
  for alpha in (1e-5, 1e-3, 1e-1):
    yield {**XPO, "loss": {"name": "exploration.xpo", "beta": 0.1, "alpha": alpha}}


def sweep_frontier():
  """DPO, a bonus that is felt, and warmer samples, at two strengths of the reference."""
  arms = (DPO, selm(0.1), {**DPO, "rounds.temperature": 1.5})
  return common.at_betas(arms, betas=(0.01, 0.1))
