"""What the step promises whatever it trains: exact parts, a guard, means, errors, the preflight."""

import functools
import re

import compiled
from flax import nnx
import jax
import jax.numpy as jnp
import kernels
import numpy as np
import optax
import pytest
import tiny
import toy
from toy import DESCENT, close, host, mesh_of, weighted

from larpo_jax import objective, train_step
from larpo_jax.estimate import Work
from larpo_jax.losses import pairwise, pointwise, tokenwise

# One of each kind: alone, without a reference, with statistics, with KL, with collision.
KINDS = ["pairwise.dpo", "pointwise.sft", "unpaired.bco", "tokenwise.tdpo2"]
KINDS += ["wrappers.wpo(pairwise.dpo)"]
REFERRED = [name for name in kernels.SUBJECTS if kernels.attribute(name, "needs_reference", True)]
# Their value at the reference depends on how likely the responses are.
LIKELIHOODS = {"exploration.copo", "exploration.xpo", "wrappers.with_sft(pairwise.dpo)"}


@pytest.fixture
def drawn(seed):
  """(parameters, other parameters, batch) of the toy model."""
  return toy.params(seed), toy.params(seed + 1), weighted(tiny.batch(seed, B=8), seed)


def toy_step(loss, optimizer=DESCENT, scorer=toy.bigrams, **options):
  return train_step.make_train_step(
    model=None, scorer=scorer, loss=loss, optimizer=optimizer, mesh=mesh_of(), **options
  )


def said_to_be_apart(policy, reference, batch):
  """A coupled loss that does not say so."""
  return toy.sorted_pairs(policy, reference, batch)


def test_micro_batches_are_exact(drawn):
  """Of every kernel: invariance_test."""
  params, reference, batch = drawn
  losses = {name: kernels.kernel(name) for name in KINDS}
  losses |= {"coupled": toy.sorted_pairs, "wrong": said_to_be_apart}
  losses["sum"] = [(0.3, toy.sorted_pairs), (0.7, tokenwise.tdpo1)]  # slopes in all that has one
  parts = dict(model=None, scorer=toy.bigrams)

  def whole(params, batch):
    run = lambda loss: jax.value_and_grad(train_step.objective, has_aux=True)(  # noqa: E731
      params, reference, batch, loss=loss, **parts
    )
    return {name: (value, *rest) for name, loss in losses.items() for value, *rest in [run(loss)]}

  def split(params, batch, count):
    run = functools.partial(train_step.value_and_gradient, params, reference, batch, count)
    first = {name: objective.initial(loss) for name, loss in losses.items()}
    return {name: run(first[name], loss=loss, **parts) for name, loss in losses.items()}

  wanted = {name: (*x[0], x[1]) for name, x in jax.jit(whole)(params, batch).items()}
  for count in (2, 4):
    found = jax.jit(split, static_argnums=2)(params, batch, count)
    for name in (*KINDS, "coupled", "sum"):
      close(found[name][:3], wanted[name])
    with pytest.raises(AssertionError):  # what the second pass is for
      close(found["wrong"][:3], wanted["wrong"], 1e-3)


@pytest.mark.parametrize("where", ["reference", "loss", "gradient"])
def test_a_step_that_is_not_finite_is_as_if_it_never_was(drawn, where):
  params, reference, batch = drawn
  batch.response_mask[3, 0, 0] = 1  # something has to be poisoned
  good = batch.replace(cond=np.zeros(8, np.float32))
  bad = good.replace(cond=np.eye(8, dtype=np.float32)[3] * (where != "reference"))
  token = np.array(toy.bigrams(None, reference, batch).token)
  if where == "reference":
    poison = np.where(batch.response_mask * (np.arange(8) == 3)[:, None, None] > 0, np.nan, token)
    bad, good = bad.replace(reference=poison), good.replace(reference=token)

  def poisoned(policy, reference, batch):
    loss, metrics = pairwise.dpo(policy, reference, batch)
    if where == "loss":  # the gradient is finite
      loss += jnp.where(batch.cond > 0, jnp.inf, 0.0)
    elif where == "gradient":  # the loss is finite
      nothing = policy.sequence[:, 0] - jax.lax.stop_gradient(policy.sequence[:, 0])
      loss += jnp.sqrt(jnp.where(batch.cond > 0, nothing, 1.0)) - 1.0
    return loss, metrics

  optimizer = optax.adamw(1e-2)
  step = toy_step(poisoned, optimizer)
  state, _ = step(train_step.init(params, optimizer), reference, good)
  before = host((state.params, state.opt_state))
  wanted, _ = step(jax.tree.map(jnp.copy, state), reference, good)
  for count in (1, 2):
    state, metrics = step(state, reference, bad)
    assert not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]))
    assert int(metrics["skipped"]) == int(state.skipped) == count
    jax.tree.map(np.testing.assert_array_equal, host((state.params, state.opt_state)), before)
  state, metrics = step(state, reference, good)
  assert int(metrics["skipped"]) == 0
  assert int(state.step) == 4
  jax.tree.map(np.testing.assert_array_equal, host(state.params), host(wanted.params))


def test_metrics_are_means_by_weight_and_tokens_that_count(drawn):
  params, reference, batch = drawn
  _, metrics = toy_step(pairwise.dpo)(train_step.init(params, DESCENT), reference, batch)
  policy, fixed = toy.bigrams(None, params, batch), toy.bigrams(None, reference, batch)
  _, each = pairwise.dpo(policy, fixed, batch)
  for name, value in each.items():
    wanted = np.average(value, weights=batch.weight)
    np.testing.assert_allclose(metrics[name], wanted, rtol=1e-5, atol=1e-5, err_msg=name)
  assert metrics["num_tokens"] == batch.response_mask[batch.weight > 0].sum()
  assert {"loss", "grad_norm", "skipped", "entropy"} <= set(metrics)


def test_a_weighted_sum_of_losses_is_that_of_their_gradients(drawn):
  params, reference, batch = drawn
  parts = dict(model=None, scorer=toy.bigrams)
  losses = [(0.25, pairwise.dpo), (-2.0, toy.sorted_pairs)], pairwise.dpo, toy.sorted_pairs

  @jax.jit
  def run(params, batch):
    step = functools.partial(train_step.value_and_gradient, params, reference, batch, **parts)
    return [step(loss=loss) for loss in losses]

  (value, metrics, gradient, _), first, other = run(params, batch)
  add = lambda x, y: 0.25 * x - 2.0 * y  # noqa: E731
  close((value, gradient), jax.tree.map(add, (first[0], first[2]), (other[0], other[2])))
  assert set(metrics) == set(first[1]) | set(other[1])


@pytest.mark.parametrize("wrong", ["loss", "metric"])
def test_what_is_not_one_number_a_prompt_is_named(drawn, wrong):
  params, reference, batch = drawn

  def careless(policy, reference, batch):
    per_prompt = policy.sequence[:, 0]
    bad = policy.sequence if wrong == "metric" else per_prompt
    return (jnp.mean(per_prompt) if wrong == "loss" else per_prompt), {"rewards/all": bad}

  named = "the loss of careless" if wrong == "loss" else "rewards/all of careless"
  with pytest.raises(ValueError, match=named):
    toy_step(careless)(train_step.init(params, DESCENT), reference, batch)


def test_a_reference_that_is_missing_and_one_that_nobody_reads(drawn):
  params, _, batch = drawn
  with pytest.raises(ValueError, match="needs a reference"):
    toy_step(pairwise.dpo)(train_step.init(params, DESCENT), None, batch)
  _, metrics = toy_step(pointwise.sft)(train_step.init(params, DESCENT), None, batch)
  assert np.isfinite(metrics["loss"])


def test_a_cached_reference_is_zero_where_masked_whatever_the_cache_holds(drawn):
  _, reference, batch = drawn
  wanted = toy.bigrams(None, reference, batch).token
  cached = batch.replace(reference=np.where(batch.response_mask > 0, wanted, np.nan))
  parts = dict(model=None, scorer=toy.bigrams, loss=pairwise.dpo)
  found = train_step.reference_logprobs(None, cached, **parts)
  np.testing.assert_array_equal(found.token, wanted)
  np.testing.assert_array_equal(found.mask, batch.response_mask)


def test_micro_batches_that_do_not_divide_the_batch_are_refused(drawn):
  params, reference, batch = drawn
  with pytest.raises(ValueError, match=r"accumulation=3 .* 8 prompts"):
    toy_step(pairwise.dpo, accumulation=3)(train_step.init(params, DESCENT), reference, batch)


def test_no_gradient_reaches_the_reference(drawn):
  params, reference, batch = drawn
  parts = dict(model=None, scorer=toy.bigrams, loss=pairwise.dpo)
  value = lambda reference: train_step.objective(params, reference, batch, **parts)[0]  # noqa: E731
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(value)(reference)))


def test_the_state_is_given_away_and_what_it_was_made_of_is_not(drawn):
  params, _, batch = drawn
  step, kept = toy_step(pairwise.dpo), host(params)
  state = train_step.init(params, DESCENT)
  new, _ = step(state, params, batch)  # the policy's first parameters are its reference
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
  jax.tree.map(np.testing.assert_array_equal, host(params), kept)
  step(new, params, batch)


def test_parameters_that_are_frozen_stay_out_of_the_gradient(drawn):
  params, reference, batch = drawn
  still = nnx.State({"bias": nnx.Param(jnp.ones(()))})
  seen = []

  def scorer(model, params, batch, **asked):
    seen.append(sorted(params))
    seen.extend(sorted(other) for other in asked.values())
    return toy.bigrams(model, params, batch, **asked)

  state = train_step.init(params, DESCENT)
  new, _ = toy_step(tokenwise.tdpo1, scorer=scorer)(state, reference, batch, still)
  assert seen == [["bias", "table"]] * len(seen)
  assert len(seen) >= 3
  assert list(new.params) == ["table"]


# Before the first step.


@pytest.mark.parametrize("name", REFERRED)
def test_preflight_knows_the_value_of_every_kernel_and_finds_what_is_off(drawn, name):
  params, _, batch = drawn
  batch = batch.replace(span=np.ones(batch.response.shape, np.int32))
  loss, policy = kernels.kernel(name), toy.bigrams(None, params, batch)
  nothing = jnp.zeros_like(policy.token)
  same = policy.replace(kl=nothing, collision=nothing)  # WPO: at token 0 all weights are 1
  same = same if name in LIKELIHOODS else same.replace(token=nothing)
  known = np.average(loss(same, same, batch)[0], weights=batch.weight)
  cached = batch.replace(reference=np.array(policy.token))
  for given in (batch, cached):
    np.testing.assert_allclose(train_step.preflight(policy, given, loss), known, rtol=1e-5)

  # Less likely, the better a response is, and all as long: no chance that the differences cancel.
  batch = batch.replace(response_mask=np.ones_like(batch.response_mask))
  policy = toy.bigrams(None, params, batch)
  wrong = policy.token - 2.0 * batch.label[..., None]
  with pytest.raises(ValueError, match="is not what training starts from"):
    train_step.preflight(policy, batch.replace(reference=wrong), loss)
  with pytest.raises(ValueError, match="nan"):
    train_step.preflight(policy, batch.replace(reference=wrong * np.nan), loss)


def test_preflight_names_the_row_and_leaves_out_losses_without_a_reference(drawn):
  params, _, batch = drawn
  batch = batch.replace(
    row=np.arange(8, dtype=np.int32) + 40,
    response_mask=np.ones_like(batch.response_mask),
    valid=np.ones_like(batch.valid),
    label=np.tile(np.float32([2, 1, 0]), (8, 1)),
  )
  policy = toy.bigrams(None, params, batch)
  stale = np.array(policy.token)
  stale[5, 0] -= 5
  batch = batch.replace(reference=stale)
  with pytest.raises(ValueError, match=r"up to 5, most on row 45"):
    train_step.preflight(policy, batch, [(1.0, pairwise.dpo), (1.0, pointwise.sft)])
  train_step.preflight(policy, batch, pointwise.sft)


def test_moments_are_updated_where_they_lie():
  work = Work(prompts=8, responses=2, prompt=16, response=16, room=32, scored=16)
  step, *_ = compiled.of_step(work, {}, num_hidden_layers=2)
  text = step.as_text()
  entry = text[text.index("ENTRY") :]
  copied = re.findall(r"copy\(%?state_opt_state\S*\)", entry)
  assert not [name for name in copied if "count" not in name], copied


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_reference_that_moves_is_mixed_with_the_policy_when_it_is_due(drawn, share):
  params, reference, batch = drawn
  sync = train_step.Sync(every=2, share=share)
  step, fixed = toy_step(pairwise.dpo, sync=sync), toy_step(pairwise.dpo)
  state = train_step.init(params, DESCENT, reference=reference)
  wanted, other = reference, train_step.init(params, DESCENT)
  for done in range(1, 5):
    state, metrics = step(state, None, batch)
    other, expected = fixed(other, wanted, batch)
    if done % 2 == 0:
      mix = lambda old, new: (1 - share) * old + share * new  # noqa: E731
      wanted = jax.tree.map(mix, wanted, host(other.params))
    close(host((state.params, state.reference, metrics)), (other.params, wanted, expected))
