r"""LarPO's hard negatives: what the rejected response was written to, and how warm the sampler is.

    python -m larpo_jax.sweep --config experiments/larpo/hard_negatives.py:cpu \
      --workdir runs/hard_negatives --seeds 5

LarPO (https://arxiv.org/abs/2502.03699), Fig. 4a, GSM8K accuracy after 0, 1, 2 and 3 rounds of DPO
on a right answer against (read off the figure; one seed)

    a response to an unrelated prompt      .743 .736 .753 .743
    a response to another problem          .743 .766 .774 .757
    a wrong response, temperature 1        .743 .775 .785 .791
    a wrong response, temperature 0.7      .743 .782 .829 .836

Here the right answer is the best of the samples and the world's solution, and the rejected response
is drawn among what earns less as an answer to this problem. "Unrelated" are the policy's answers to
problems of two steps where the task has three: what this world has of another form, and nearer to
the task than the paper's chat prompts are to GSM8K.

Measured at `:cpu`, five seeds, 19 minutes on two idle CPU cores, 16 of them for what pages share:
reward of samples 0.40 at the start; 0.63 unrelated, 0.59 of another problem, 0.73 and 0.75 for own
worse samples at temperature 1 and 0.7. Supported at this scale: own samples are harder and better
than the others. Undecided: the order within each kind. docs/results.md has the table.
"""

from experiments import common
from experiments.larpo import objectives


def get_config(arg=""):
  """The page; `:cpu` as in objectives.py, `:smoke` for seconds."""
  config = objectives.get_config(arg)
  config.loss = dict(name="pairwise.dpo", beta=0.1)
  config.rounds.gold = True
  config.rounds.negatives = "sampled"
  config.rounds.lists = dict(name="lists.best_random")
  config.rounds.temperature = 1.0
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """Fig. 4a's four tiers, the easiest negatives first."""
  yield {"rounds.negatives": "unrelated"}
  yield {"rounds.negatives": "other_prompt"}
  yield {"rounds.negatives": "sampled", "rounds.temperature": 1.0}
  yield {"rounds.negatives": "sampled", "rounds.temperature": 0.7}
