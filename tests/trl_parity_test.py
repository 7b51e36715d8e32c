"""Against TRL's own code, run in the same test: losses, metrics, gradients, two AdamW steps."""

import warnings

import parity
import pytest
from trl_cases import CASES

pytestmark = pytest.mark.usefixtures("trl_peer")

BAR = 1e-5
LOSSES = {"sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"}
LOSSES |= {"aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"}
# What has to be among the compared metrics, by trainer; likelihoods alone have no reward.
LIKELIHOOD = {"loss", "logps/chosen"}
REWARDED = LIKELIHOOD | {"rewards/chosen", "rewards/rejected"}
PAIRED = REWARDED | {"rewards/margins", "rewards/accuracies"}
LEAST = {
  "DPO": PAIRED | {"logps/rejected", "entropy"},
  "KTO": REWARDED | {"logps/rejected", "entropy"},
  "CPO": PAIRED | {"logps/rejected"},
  "ORPO": PAIRED,
}

each_case = pytest.mark.parametrize("name", CASES)
each_whole_step = pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.whole_step])


def within(found, what):
  worst = max(found, key=found.get)
  assert found[worst] <= BAR, f"{what}: {worst} is {found[worst]:.1e} off, of {found}"


@pytest.fixture(scope="module")
def setting(tmp_path_factory, module_seed):
  return parity.Setting(tmp_path_factory.mktemp("parity"), module_seed)


@pytest.fixture(autouse=True)
def no_warnings():
  """TRL and transformers warn of their own deprecations."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield


def test_every_loss_of_trls_dpo_trainer_is_a_case():
  mixed = [case.settings.get("loss_type", []) for case in CASES.values() if case.trainer == "DPO"]
  assert {name for names in mixed for name in names} == LOSSES


@each_case
def test_loss_gradient_and_metrics_on_logprobs(name, seed):
  case = CASES[name]
  for spread in case.spreads:
    found = parity.on_logprobs(case, seed, spread)
    assert {"gradient", *LIKELIHOOD} <= set(found)
    within(found, f"{name}, spread {spread:g}")


@each_case
def test_two_steps_of_training(name, setting):
  """The start, and after one and two AdamW steps: loss, norm of the gradient and metrics."""
  case = CASES[name]
  expected, found, _ = setting.both(case)
  for number, (wanted, ours) in enumerate(zip(expected, found, strict=True)):
    errors = parity.errors(case, ours, wanted)
    least = LIKELIHOOD if name == "sft" else LEAST[case.trainer] - set(case.differs)
    assert {"grad_norm", *least} <= set(errors)
    within(errors, f"{name}, step {number}")


@each_whole_step
def test_two_steps_of_the_train_step_on_eight_devices(name, setting):
  """The same through make_train_step; the test above differentiates the loss by itself."""
  expected, _, batch = setting.both(CASES[name])
  found = setting.whole_steps(CASES[name], batch)
  for number, (wanted, ours) in enumerate(zip(expected, found, strict=True)):
    within(parity.errors(CASES[name], ours, wanted), f"{name}, step {number}")
