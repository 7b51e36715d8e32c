"""What TRL calls a loss, and the spec node that is the same loss here: one line of a table each."""

import dataclasses
import math
from typing import Any

PER_TOKEN = {"logps/chosen": "logps/chosen_per_token"}  # TRL's name: ours, where TRL's is a mean


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """One loss under both names.

  spreads are sizes of random log-probs: such that the rounding of their sums, of up to a hundred
  nats, is no matter; small where a formula is an exponential of one, whose relative error is the
  sum's absolute one. ragged rows have responses of several lengths; TRL's
  CPO and ORPO take likelihoods as one mean over the tokens of a batch (ORPO's over the prompt's
  tokens too, but for the first), and agree with a mean over prompts where lengths do, so their rows
  have one length, and ORPO's prompts one token. differs names metrics of TRL that are defined
  otherwise here.
  """

  settings: dict[str, Any]  # of TRL's config
  spec: Any  # one of our nodes, or several with weights
  trainer: str = "DPO"
  spreads: tuple[float, ...] = (0.3, 3.0, 10.0)
  ragged: bool = True
  prompt: int = 6  # most tokens of a prompt
  names: dict[str, str] = dataclasses.field(default_factory=dict)  # TRL's metric: ours
  differs: tuple[str, ...] = ()
  rate: float = 1e-3  # the learning rate
  whole_step: bool = False  # also through make_train_step

  @property
  def beta(self) -> float:
    return self.settings.get("beta", 0.1)


def node(name, **arguments):
  return {"name": name, **arguments}


def dpo(beta=0.1):
  return node("pairwise.dpo", beta=beta)


def pair(loss_type, spec, **settings):
  return {"loss_type": [loss_type], **settings}, spec


EXPONENTIAL = {"spreads": (0.1, 1.0)}
REWARDS = tuple(f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies"))

CASES = {
  "sigmoid": Case(*pair("sigmoid", dpo()), whole_step=True),
  "sigmoid, beta 0.5": Case(*pair("sigmoid", dpo(0.5), beta=0.5), spreads=(0.3, 3.0)),
  "hinge": Case(*pair("hinge", node("pairwise.hinge", beta=0.1))),
  "ipo": Case(*pair("ipo", node("pairwise.ipo", beta=0.1))),
  "exo_pair": Case(
    *pair("exo_pair", node("pairwise.exo", beta=0.1, label_smoothing=1e-3), label_smoothing=1e-3)
  ),
  "nca_pair": Case(*pair("nca_pair", node("pairwise.nca", beta=0.1))),
  "robust": Case(
    *pair("robust", node("wrappers.robust", epsilon=0.1, kernel=dpo()), label_smoothing=0.1)
  ),
  "bco_pair": Case(*pair("bco_pair", node("pairwise.bco_pair", beta=0.1))),
  "sppo_hard": Case(*pair("sppo_hard", node("pairwise.sppo_hard", beta=0.1))),
  "sppo_hard, beta 0.001": Case(
    *pair("sppo_hard", node("pairwise.sppo_hard", beta=0.001), beta=0.001)
  ),
  # Of one length, so that margins are near each other and their order in the reference another.
  "aot": Case(*pair("aot", node("batchwise.aot", beta=0.1)), ragged=False, whole_step=True),
  "aot, smoothed": Case(
    *pair("aot", node("batchwise.aot", beta=0.1, label_smoothing=0.2), label_smoothing=0.2),
    ragged=False,
  ),
  "aot_unpaired": Case(*pair("aot_unpaired", node("batchwise.aot_unpaired", beta=0.1))),
  "aot_unpaired, smoothed": Case(
    *pair(
      "aot_unpaired",
      node("batchwise.aot_unpaired", beta=0.1, label_smoothing=0.2),
      label_smoothing=0.2,
    )
  ),
  "apo_zero": Case(*pair("apo_zero", node("pairwise.apo_zero", beta=0.1))),
  "apo_down": Case(*pair("apo_down", node("pairwise.apo_down", beta=0.1))),
  # Its slope turns over within a nat or two (tau), and so amplifies what rounding makes of
  # parameters: at 1e-3 the gradient's norm is up to 3e-5 apart after two steps, the loss 2e-7.
  "discopop": Case(
    *pair("discopop", node("pairwise.discopop", beta=0.05, tau=0.05), beta=0.05, discopop_tau=0.05),
    **EXPONENTIAL,
    rate=1e-4,
  ),
  "sft": Case(*pair("sft", node("pointwise.sft_tokens"))),
  # Our rewards are those that the loss compares, per token; TRL logs those of sums.
  "sigmoid_norm": Case(
    *pair("sigmoid_norm", node("pairwise.sigmoid_norm", beta=5.0), beta=5.0), differs=REWARDS
  ),
  # exp(-rho) and its slope grow with the drift from the reference, and so does their error.
  "forward_kl": Case(
    *pair("sigmoid", node("wrappers.forward_kl", kernel=dpo()), f_divergence_type="forward_kl"),
    **EXPONENTIAL,
    rate=1e-4,
  ),
  "js_divergence": Case(
    *pair(
      "sigmoid", node("wrappers.js_divergence", kernel=dpo()), f_divergence_type="js_divergence"
    ),
    spreads=(0.3, 3.0),
  ),
  "alpha_divergence": Case(
    *pair(
      "sigmoid",
      node("wrappers.alpha_divergence", alpha=0.5, kernel=dpo()),
      f_divergence_type="alpha_divergence",
      f_alpha_divergence_coef=0.5,
    ),
    **EXPONENTIAL,
  ),
  "alpha_divergence 0.8, ipo": Case(
    *pair(
      "ipo",
      node("wrappers.alpha_divergence", alpha=0.8, kernel=node("pairwise.ipo", beta=0.1)),
      f_divergence_type="alpha_divergence",
      f_alpha_divergence_coef=0.8,
    ),
    **EXPONENTIAL,
  ),
  "ld_alpha 0.5": Case(
    *pair("sigmoid", node("wrappers.ld_dpo", alpha=0.5, kernel=dpo()), ld_alpha=0.5)
  ),
  "ld_alpha 0.2, ipo": Case(
    *pair(
      "ipo",
      node("wrappers.ld_dpo", alpha=0.2, kernel=node("pairwise.ipo", beta=0.1)),
      ld_alpha=0.2,
    )
  ),
  "use_weighting": Case(
    *pair("sigmoid", node("wrappers.wpo", largest=math.inf, kernel=dpo()), use_weighting=True),
    **EXPONENTIAL,
    whole_step=True,
  ),
  "sigmoid + 0.7 sft": Case(
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
    (dpo(), node("pointwise.sft_tokens", weight=0.7)),
  ),
  "0.8 sigmoid + 0.2 bco_pair + sft": Case(  # mixed preference optimisation
    {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    (
      node("pairwise.dpo", beta=0.1, weight=0.8),
      node("pairwise.bco_pair", beta=0.1, weight=0.2),
      node("pointwise.sft_tokens"),
    ),
  ),
  # Lengths differ, so TRL's mean over the tokens of a batch, its entropy, is another than ours.
  "KTO": Case(
    {"desirable_weight": 1.5, "undesirable_weight": 0.7},
    node("unpaired.kto", beta=0.1, desirable_weight=1.5, undesirable_weight=0.7),
    trainer="KTO",
    differs=("entropy",),
    whole_step=True,
  ),
  "KTO, apo_zero_unpaired": Case(
    {"loss_type": "apo_zero_unpaired"},
    node("unpaired.apo_zero_unpaired", beta=0.1),
    trainer="KTO",
    ragged=False,
  ),
  "CPO": Case({}, node("reference_free.cpo", beta=0.1, sft=1.0), trainer="CPO", ragged=False),
  "CPO, ragged": Case(
    {"cpo_alpha": 0.5},
    (node("reference_free.cpo", beta=0.1, sft=0.0), node("pointwise.sft_tokens", weight=0.5)),
    trainer="CPO",
  ),
  "SimPO": Case(
    {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
    node("pairwise.simpo", beta=2.0, gamma=1.0),
    trainer="CPO",
    names=PER_TOKEN,
    differs=("logps/rejected",),
  ),
  "CPO-SimPO": Case(
    {"loss_type": "simpo", "cpo_alpha": 0.5, "beta": 2.0, "simpo_gamma": 1.0},
    (node("pairwise.simpo", beta=2.0, gamma=1.0), node("pointwise.sft_tokens", weight=0.5)),
    trainer="CPO",
    names=PER_TOKEN,
    differs=("logps/rejected",),
  ),
  "AlphaPO": Case(
    {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.0, "simpo_gamma": 1.0},
    node("reference_free.alphapo", beta=2.0, gamma=1.0, alpha=0.25),
    trainer="CPO",
    names=PER_TOKEN,
    differs=("logps/rejected",),
    **EXPONENTIAL,
  ),
  "ORPO": Case(
    {},
    node("reference_free.orpo", beta=0.1),
    trainer="ORPO",
    ragged=False,
    prompt=1,
    names=PER_TOKEN,
    differs=("logps/rejected",),
  ),
}
