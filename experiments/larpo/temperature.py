r"""The temperature that candidates are sampled at for training: too low and lists teach nothing.

    python -m larpo_jax.sweep --config experiments/larpo/temperature.py:cpu \
      --workdir runs/temperature --seeds 5
    python -m larpo_jax.report runs/temperature --metric sampled/gold/reward \
      --baseline temperature=1.0

LarPO (https://arxiv.org/abs/2502.03699) claims an inverted U with a peak that depends on the model:
below it responses to a prompt are nearly alike and their pairs uninformative. Published, read off
the figure, for T = 0.8, 0.9, 1.0, 1.1, 1.2 with pairs and three rounds: length-controlled win rate
of Mistral-7b-it 51.4, 52.6, 53.8, 54.3, 52.0 and of Gemma2-2b-it 61.9, 62.5, 61.0, 62.3, 58.1; one
seed, so a difference of a point may be luck.

Measured at `:cpu`, nine temperatures, five seeds, 20 minutes on two busy CPU cores: reward of
samples 0.40 at the start; 0.69 from T = 0.3 to 0.7, 0.68 at 0.8 and 0.9, 0.67 at 1, then 0.65, 0.63
and 0.59 at 1.1, 1.2 and 1.5. Supported at this scale: hotter is worse. Not supported: colder is,
too, though lists of 0.3 are tied four times as often as at 1. `sweep_frontier`, over beta, says the
same. docs/results.md has the pictures.

The stated mechanism is in metrics.jsonl, stage "rounds": candidates/unique is the share of
different responses of a list, candidates/all_tied that of lists with one reward, which are dropped.
"""

from experiments import common


def get_config(arg=""):
  """The page; `:cpu` for two cores, `:smoke` for seconds."""
  config = common.arithmetic()
  config.loss = dict(name="pairwise.dpo", beta=0.1)
  config.rounds = dict(count=3, prompts=512, candidates=4, temperature=1.0, max_tokens=40)
  config.rounds.update(batch_size=128, memory="none", steps_per_round=16)
  config.data.batch_size = 32
  config.optimizer.learning_rate = 1.5e-4
  config.evaluate.rows = 500
  if arg == "cpu":
    config.rounds.update(prompts=256, steps_per_round=8)
    config.evaluate.rows = 256
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """From nearly greedy to hotter than the policy itself."""
  for temperature in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5):
    yield {"rounds.temperature": temperature}


def sweep_frontier():
  """The coldest, the middle and the hottest, at four strengths of the reference."""
  return common.at_betas({"rounds.temperature": temperature} for temperature in (0.3, 1.0, 1.5))
