"""A loss as a run sees it: what it is called, what it carries, and what of its spec is refused."""

import re

from draws import lists
import jax
import numpy as np
import optax
import pytest
import toy

from experiments import common
from larpo_jax import config as config_lib
from larpo_jax import lookup, objective, train_step

DPO = dict(name="pairwise.dpo", beta=0.1)
ROBUST = dict(name="wrappers.robust", epsilon=0.2, kernel=dict(name="pairwise.ipo", beta=0.5))


def test_a_description_says_the_formula_and_every_hyper_parameter():
  text, digest = objective.describe((DPO, ROBUST | {"weight": 0.5}))
  assert text.splitlines()[0] == "1 x pairwise.dpo(beta=0.1): -ls(z)"
  assert text.splitlines()[1].startswith("0.5 x wrappers.robust(pairwise.ipo(beta=0.5): (rho_w")
  assert "epsilon=0.2" in text
  assert re.fullmatch("[0-9a-f]{12}", digest)


def test_a_digest_stands_for_what_is_trained_on_and_nothing_else():
  digest = lambda spec: objective.describe(spec)[1]  # noqa: E731
  assert digest(DPO) == digest(dict(name="pairwise.dpo")) == digest((DPO,))
  others = [
    dict(DPO, beta=0.2),
    dict(DPO, weight=2.0),
    dict(name="pairwise.cdpo", beta=0.1),
    dict(name="margins.spin", beta=0.1),
    ROBUST,
    dict(ROBUST, epsilon=0.3),
    dict(ROBUST, kernel=dict(name="pairwise.ipo", beta=0.4)),
    (DPO, ROBUST),
  ]
  assert len({digest(DPO), *map(digest, others)}) == 1 + len(others)


@pytest.mark.parametrize(
  ("spec", "said"),
  [
    (dict(name="wrappers.robust"), "give its spec, kernel="),
    (dict(name="wrappers.robust", kernel="pairwise.dpo"), "give its spec, kernel="),
    (dict(ROBUST, kernel=dict(name="pairwise.dpoo")), "pairwise.dpo"),
    (dict(ROBUST, kernel=dict(name="pairwise.dpo", tau=1.0)), "its arguments: beta"),
    (dict(ROBUST, kernel=dict(name="batchwise.beta_dpo")), "can not be wrapped"),
    (dict(ROBUST, epsilon=0.5), "epsilon is 0.5"),
    (dict(DPO, kernel=DPO), "no 'kernel'"),
  ],
)
def test_a_wrapper_without_its_kernel_or_with_a_wrong_one_is_refused(spec, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    lookup.resolve(spec, objective.PACKAGE)
  config = common.base()
  config.model.path = config.data.train.path = "somewhere"
  del config.loss
  config.loss = spec
  with pytest.raises(ValueError, match=re.escape(said)):
    config_lib.validate(config)


@pytest.mark.parametrize(
  ("loss", "setting"),
  [(dict(name="tokenwise.rrpo"), "spans"), (dict(name="unpaired.kto"), "mismatched")],
)
def test_what_a_kernel_can_not_do_without_is_named(loss, setting):
  config = common.base()
  config.model.path = config.data.train.path = "somewhere"
  del config.loss
  config.loss = loss
  with pytest.raises(ValueError, match=f"set config.data.{setting}=True"):
    config_lib.validate(config)
  config.data[setting] = True
  config_lib.validate(config)


def test_a_wrapped_kernel_keeps_its_attributes_and_adds_its_own():
  wpo = dict(name="wrappers.wpo", kernel=dict(name="pairwise.simpo"))
  loss = objective.resolve(wpo)
  assert not objective.needs_reference(loss)
  assert objective.asks(loss, "collision")
  assert not objective.asks(loss, "kl")
  held = objective.resolve(dict(name="wrappers.with_sft", kernel=dict(name="tokenwise.tdpo2")))
  assert objective.asks(held, "kl")
  aot = objective.resolve(dict(name="wrappers.ld_dpo", kernel=dict(name="batchwise.aot")))
  assert objective.couples_prompts(aot)


def test_statistics_are_carried_kernel_by_kernel(seed):
  policy, reference, batch = lists(seed)
  loss = objective.resolve((DPO, dict(name="batchwise.bco_pair_shift"), dict(name="unpaired.bco")))
  first = objective.initial(loss)
  assert [bool(each) for each in first] == [False, True, True]
  total, _, second = objective.evaluate(loss, policy, reference, batch, first)
  alone = [k(policy, reference, batch) for _, k in loss]
  np.testing.assert_allclose(total, sum(each[0] for each in alone), 1e-6)
  assert jax.tree.structure(first) == jax.tree.structure(second)
  np.testing.assert_allclose(second[1]["mean"], alone[1][2]["mean"])
  assert second[2]["count"] == np.sum(batch.valid & (batch.label != 0))
  again = objective.evaluate(loss, policy, reference, batch, second)[2]
  np.testing.assert_allclose(again[2]["mean"], second[2]["mean"], 1e-5)  # the same rewards again
  assert again[2]["count"] == 2 * second[2]["count"]


def test_a_state_without_the_statistics_of_its_loss_is_refused(seed):
  params, mesh = toy.params(seed), toy.mesh_of()
  loss, optimizer = objective.resolve(dict(name="batchwise.beta_dpo")), optax.sgd(0.1)
  make = lambda: train_step.make_train_step(  # noqa: E731
    model=None, scorer=toy.bigrams, loss=loss, optimizer=optimizer, mesh=mesh
  )
  batch = lists(seed)[2]
  with pytest.raises(ValueError, match="carries statistics"):
    make()(train_step.init(params, optimizer), params, batch)
  state, _ = make()(train_step.init(params, optimizer, loss), params, batch)
  assert state.statistics[0]["step"] == 1


def test_a_kernel_that_asks_for_kl_needs_the_references_weights(seed):
  _, _, batch = lists(seed)
  parts = dict(model=None, scorer=toy.bigrams, loss=objective.resolve(dict(name="tokenwise.tdpo2")))
  cached = batch.replace(reference=np.zeros(batch.response_mask.shape, np.float32))
  with pytest.raises(ValueError, match="needs the reference's weights"):
    train_step.objective(toy.params(seed), None, cached, **parts)
