r"""MADPO: a reward model's margin as the weight of a pair, under labels of Bradley and Terry.

    python -m larpo_jax.sweep --config experiments/madpo/margins.py:cpu --workdir runs/margins \
      --seeds 5
    python -m larpo_jax.report runs/margins

Margin-Adaptive DPO (https://arxiv.org/abs/2510.05342), first version, IMDb, mean gold reward in
[-3, 3] on high, medium and low quality of pairs, from the figures of the authors' repository:

    MADPO, c_max 4, tau 7            2.23 2.23 1.95
      its amplification alone        2.19 2.23 2.00
      its regularisation alone       1.71 1.70 1.51
    MADPO, c_max 2, tau 7            2.08 2.15 1.75
    beta-DPO (their own)             1.67 1.84 1.76
    DPO, beta 0.1                    1.62 1.71 1.48

No baseline's beta is swept there. Here as there: two answers a prompt by the supervised policy, a
label that prefers the better one with the chance of the Bradley-Terry model, offline. The exact
reward times 6, their range, is the logit of that model, so it is the margin g of MADPO's weights,
too; their reward model is trained on the noisy pairs, this one knows. `sweep` has the controls that
know as much: a filter that drops pairs with g < 0, soft labels, DPO on the reward's own labels. The
weight of MADPO is such a filter for the most part. DPO's betas say whether any of them leaves its
curve of reward against KL. Their "low" tier, where the rejected answer is another writer's, is not
here.

Measured at `:cpu`, five seeds, 20 minutes on one busy CPU core. Reward of samples: 0.40 before;
DPO 0.67, 0.70, 0.74 and 0.75 at beta 0.03, 0.1, 0.3 and 1; MADPO 0.68, 0.68; soft labels 0.68; the
filter 0.73. Not supported at this scale: MADPO is not above DPO, and no margin reaches tau = 7.
docs/results.md has the table.
"""

from experiments import common
from experiments.larpo import objectives

NOISY = dict(name="noise.bradley_terry", scale=1.0)
CLEAN = dict(name="noise.bradley_terry", scale=0.0)


def get_config(arg=""):
  """The page; `:cpu` for two cores, `:smoke` for seconds."""
  config = objectives.get_config(arg)
  config.loss = madpo(4.0)
  config.reward = dict(name="worlds.arithmetic", scale=6.0)
  config.rounds.update(count=1, prompts=8192, candidates=2, steps_per_round=192)
  config.rounds.lists = dict(name="lists.best_worst")
  config.rounds.noise = NOISY
  config.rounds.agreed = False
  if arg == "cpu":
    config.rounds.update(prompts=512, steps_per_round=48)
    config.evaluate.every = 20  # reward against KL on the way
  return common.smoke(config) if arg == "smoke" else config


def madpo(c_max, side="full", tau=7.0):
  """MADPO as in the authors' notebooks, where c_min is 1 / c_max."""
  return dict(name="scored.madpo", beta=0.1, c_max=c_max, c_min=1 / c_max, tau=tau, side=side)


def sweep():
  """DPO's frontier; MADPO and its halves; what else can be done with as good a reward."""
  for beta in (0.03, 0.1, 0.3, 1.0):
    yield {"loss": dict(name="pairwise.dpo", beta=beta)}
  yield {"loss": madpo(2.0)}  # the notebook's setting
  yield {"loss": madpo(4.0)}  # the best that is reported
  for side in ("amplify", "regularise"):
    yield {"loss": madpo(4.0, side)}
  yield {"loss": dict(name="scored.soft_label", beta=0.1)}
  dpo = dict(name="pairwise.dpo", beta=0.1)
  yield {"loss": dpo, "rounds.agreed": True}
  yield {"loss": dpo, "rounds.noise": CLEAN}


def sweep_tau():
  """Where the weight is 1: at 2 and c_max 2 the default of the authors' class."""
  for tau in (2.0, 4.0, 7.0, 10.0):
    yield {"loss": madpo(2.0, tau=tau)}


def sweep_noise():
  """Labels of a surer and of two less sure judges, each with the filter that drops the wrong."""
  dpo = dict(name="pairwise.dpo", beta=0.1)
  for scale in (0.5, 2.0, 4.0):
    noise = dict(name="noise.bradley_terry", scale=scale)
    for loss, agreed in ((dpo, False), (dpo, True), (madpo(4.0), False)):
      yield {"rounds.noise": noise, "loss": loss, "rounds.agreed": agreed}


def sweep_tau_in_reach():
  """The published tau in the unit of these margins, and the losses that MADPO is compared with."""
  for side in ("full", "regularise"):
    yield {"loss": madpo(4.0, side, tau=2.0)}
  yield {"loss": dict(name="batchwise.beta_dpo", beta=0.1)}
  for tau in (0.1, 0.5, 2.0):
    yield {"loss": dict(name="pairwise.ipo", beta=tau)}


def sweep_frontier():
  """DPO, MADPO, soft labels and the filter, each at four strengths of its own reference."""
  dpo = dict(name="pairwise.dpo")
  arms = [{"loss": loss} for loss in (dpo, madpo(4.0), dict(name="scored.soft_label"))]
  return common.at_betas([*arms, {"loss": dpo, "rounds.agreed": True}])
