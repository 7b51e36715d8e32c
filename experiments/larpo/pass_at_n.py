r"""Pass@N before and after alignment: what a policy retrieves, and what reranking makes of it.

    python -m larpo_jax.main --config experiments/larpo/pass_at_n.py:cpu --workdir runs/pass_at_n
    python -m larpo_jax.sweep --config experiments/larpo/pass_at_n.py:cpu \
      --workdir runs/pass_at_n_betas --seeds 5

LarPO (https://arxiv.org/abs/2502.03699, Fig. 2 and appendix E) samples a policy as one queries a
retriever and claims that Recall@N, which is Pass@N, rises with N; that at N = 1 a lower temperature
is better and at N > 10 a higher one, so that the curves cross. Published for Mathstral-7b-it on
GSM8K, read off the figure: T = 0.1 goes from 0.611 at N = 1 to 0.833 at N = 100, T = 1 from 0.512
to 0.991. Table 6: DPO after supervised learning adds to greedy answers (0.768 -> 0.799) more than
to Recall@100 (0.974 -> 0.983).

Measured at `:cpu`, five seeds, 100 prompts, 27 minutes for two betas on one busy CPU core, after
the rounds: T = 0.1 goes from 0.871 at N = 1 to 0.904 at N = 100, T = 1 from 0.751 to 0.994; the
curves cross between N = 2 and 5, as claimed. Greedy answers went from 0.830 to 0.872, Recall@100
from 0.992 to 0.994. Over four betas (`sweep_frontier`), from other starts, the same. Supported at
this scale; docs/results.md has the tables and the picture.

"before" is after the supervised stage, "after" is after the rounds; results/ has the numbers,
pass@N/T=0.7 and so on, curves/pass_at_n.png the picture.
"""

from experiments import common


def get_config(arg=""):
  """The page; `:cpu` for two cores, `:smoke` for seconds."""
  config = common.arithmetic()
  # No hasty demonstrations: what is likeliest is then mostly right, as in the paper's models.
  config.world.update(slip=0.3, hasty=0.0)
  # Few examples, many passes: the model generalises to most problems, not to all.
  config.supervised.update(examples=1500, steps=1000)

  config.loss = dict(name="pairwise.dpo", beta=0.1)
  config.rounds = dict(count=3, prompts=256, candidates=8, temperature=1.0, max_tokens=40)
  config.rounds.update(batch_size=128, memory="none", steps_per_round=16)
  config.data.batch_size = 32
  config.optimizer.learning_rate = 1.5e-4
  config.evaluate = dict(every=0, rows=500, samples=128, batch_size=1024)
  config.evaluate.temperatures = (0.1, 0.2, 0.5, 0.7, 1.0)
  if arg == "cpu":
    config.evaluate.update(rows=100, samples=100, temperatures=(0.1, 0.5, 0.7, 1.0))
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """DPO at two strengths of the reference."""
  return common.at_betas([{"loss": dict(name="pairwise.dpo")}], betas=(0.1, 0.3))


def sweep_objectives():
  """Every objective of LarPO at the same two; takes four times as long."""
  arms = ("pairwise.dpo", "listwise.contrastive", "listwise.lambdarank", "listwise.listmle")
  return common.at_betas([{"loss": dict(name=name)} for name in arms], betas=(0.1, 0.3))


def sweep_frontier():
  """DPO at four strengths of the reference."""
  return common.at_betas([{"loss": dict(name="pairwise.dpo")}])
