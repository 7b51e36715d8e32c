r"""Negative controls: what pairs teach beside sampling more, right answers, and a moving reference.

    python -m larpo_jax.sweep --config experiments/larpo/controls.py:cpu \
      --workdir runs/controls --seeds 5
    python -m larpo_jax.report runs/controls --metric sampled/gold/reward

The setting is that of objectives.py, with the best against the worst of eight samples. The controls
of every claim on these pages: the same pairs with their labels drawn by lot, so that only training
as such is left; supervised learning on the best of each list for as many steps, so that nothing is
learnt from what is wrong; a reference that stays at the start; and, with nothing trained at all,
the best of N samples of the start by the gold reward, best@N/T=1 in the results "before", whose KL
to the start is at most log N - (N - 1) / N (https://arxiv.org/abs/2401.01879): a reward that
training has to beat at as many nats.

Measured at `:cpu`, five seeds, 9 minutes on one busy CPU core. Reward of samples: 0.40 before; 0.77
by DPO, 0.39 where labels are drawn by lot, 0.79 by right answers alone, 0.77 where the reference
stays; 0.64, 0.91 and 0.99 are the best of 2, 5 and 10 samples of the start. That the order of pairs
is what teaches is supported at this scale, that rejected responses are needed is not supported.
"""

from experiments import common
from experiments.larpo import objectives

DPO = dict(name="pairwise.dpo", beta=0.1)


def get_config(arg=""):
  """The page; `:cpu` as in objectives.py, `:smoke` for seconds."""
  config = objectives.get_config(arg)
  config.loss = dict(DPO)
  config.rounds.update(lists=dict(name="lists.best_worst"), noise=None, reference="round")
  config.evaluate.update(samples=16, temperatures=(1.0,), batch_size=1024)
  return common.smoke(config) if arg == "smoke" else config


def sweep():
  """Pairs, pairs without their order, right answers alone, and a reference that stays."""
  yield {"loss": DPO, "rounds.noise": None, "rounds.reference": "round"}
  by_lot = dict(name="noise.symmetric", rate=0.5)
  yield {"loss": DPO, "rounds.noise": by_lot, "rounds.reference": "round"}
  yield {"loss": dict(name="pointwise.sft"), "rounds.noise": None, "rounds.reference": "round"}
  yield {"loss": DPO, "rounds.noise": None, "rounds.reference": "start"}


def sweep_rate():
  """Whether a learning rate that suits one loss hides another: each objective at three."""
  for name in objectives.OBJECTIVES:
    for rate in (1e-4, 3e-4, 1e-3):
      yield {"loss": dict(name=name, beta=0.1), "optimizer.learning_rate": rate}
