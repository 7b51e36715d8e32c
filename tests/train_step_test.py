"""The step computes one loss: the same on any mesh, in any number of parts, however padded."""

import functools
import math
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import toy

from larpo_jax import lookup, sharding, train_step
from larpo_jax.losses import listwise, pairwise, pointwise
from larpo_jax.scorers import tokens

KERNELS = lookup.names("larpo_jax.losses")
# All that a step can be asked for at once: a reference, none, and a sum of both.
LOSS = ((0.7, functools.partial(listwise.listmle, beta=0.3)), (0.3, pointwise.sft))
# One step of plain descent at rate 1 moves the parameters by their gradient.
DESCENT = optax.sgd(1.0)


def mesh_of(data=1, fsdp=1, tensor=1):
  count = data * fsdp * tensor
  return sharding.make_mesh(dict(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[:count])


def host(tree):
  return jax.tree.map(np.asarray, tree)


def close(found, wanted, tolerance=1e-5):
  """Within tolerance of the largest number of each leaf."""
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
  for one, other in pairs:
    one, other = np.asarray(one), np.asarray(other)
    scale = max(1.0, float(np.max(np.abs(other))))
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


# The real model.


def weighted(batch, seed):
  """The batch with a row that does not count, a short list, and rows that weigh differently."""
  rng = np.random.default_rng(seed)
  weight = rng.uniform(0.5, 2.0, batch.weight.shape).astype(np.float32)
  weight[1] = 0.0
  valid = batch.valid.copy()
  valid[2, -1] = False
  mask = batch.response_mask * valid[..., None]
  return batch.replace(weight=weight, valid=valid, response_mask=mask)


def run_step(model, params, reference, batch, *, mesh, accumulation=1):
  """Metrics and parameters after a step of the tiny Transformer, on the host."""
  placed = sharding.named_shardings(params, mesh, toy.RULES)
  params = jax.device_put(params, placed)
  if reference is not None:
    reference = jax.device_put(reference, placed)
  parts = dict(model=model, scorer=tokens.causal, loss=LOSS, optimizer=DESCENT)
  step = train_step.make_train_step(mesh=mesh, accumulation=accumulation, **parts)
  state, metrics = step(train_step.init(params, DESCENT), reference, sharding.put(batch, mesh))
  for leaf, place in zip(jax.tree.leaves(state.params), jax.tree.leaves(placed), strict=True):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
  return host(metrics), host(state.params)


@pytest.fixture(scope="module")
def fixed(module_seed):
  """A step with a live reference on one device; its parameters; its batch with the cached one."""
  model, params, _ = tiny.model(module_seed, "llama2", num_hidden_layers=2)
  _, reference, _ = tiny.model(module_seed + 1, "llama2", num_hidden_layers=2)
  batch = weighted(tiny.batch(module_seed, B=8), module_seed)
  wanted = run_step(model, params, reference, batch, mesh=mesh_of())
  score = train_step.make_score_step(model=model, scorer=tokens.causal, mesh=mesh_of())
  cached = np.asarray(score(reference, batch).token)
  return params, batch.replace(reference=cached), wanted


def padded_right(batch):
  """The same prompts with their padding on the other side."""
  length = batch.prompt_mask.sum(-1)
  roll = np.vectorize(lambda row, by: np.roll(row, by), signature="(p),()->(p)")
  shift = length - batch.prompt_mask.shape[-1]
  return batch.replace(prompt=roll(batch.prompt, shift), prompt_mask=roll(batch.prompt_mask, shift))


def wider(batch):
  """The same batch, padded to longer prompts and responses, with another token for padding."""
  left, right = [(0, 0), (0, 0), (5, 0)], [(0, 0), (0, 0), (0, 4)]
  return batch.replace(
    prompt=np.pad(batch.prompt, left, constant_values=9),
    prompt_mask=np.pad(batch.prompt_mask, left),
    response=np.pad(batch.response, right, constant_values=9),
    response_mask=np.pad(batch.response_mask, right),
    reference=np.pad(batch.reference, right, constant_values=np.nan),
  )


VARIANTS = {  # each changes several things at once: a compilation is what a test here costs
  "eight devices, padded on the right": (padded_right, (8, 1, 1), 1, {}),
  "2x2x2, two parts, rematerialised": (None, (2, 2, 2), 2, {"remat": "full"}),
  "1x4x2, padded wider": (wider, (1, 4, 2), 1, {}),
  "two devices, four parts, unrolled": (None, (2, 1, 1), 4, {"scan": False}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_how_it_is_computed_changes_nothing(fixed, variant):
  params, batch, wanted = fixed
  change, shape, parts, options = VARIANTS[variant]
  model = tiny.model(0, "llama2", num_hidden_layers=2, options=options)[0]
  batch = change(batch) if change else batch
  close(run_step(model, params, None, batch, mesh=mesh_of(*shape), accumulation=parts), wanted)


def test_the_gradient_is_that_of_the_objective(fixed):
  before, batch, (metrics, params) = fixed
  model = tiny.model(0, "llama2", num_hidden_layers=2)[0]
  parts = dict(model=model, scorer=tokens.causal, loss=LOSS)
  value = lambda params: train_step.objective(params, None, batch, **parts)[0]  # noqa: E731
  loss, gradient = jax.jit(jax.value_and_grad(value))(before)
  close((metrics["loss"], params), (loss, jax.tree.map(jnp.subtract, before, gradient)))
  square = sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(host(gradient)))
  np.testing.assert_allclose(metrics["grad_norm"], math.sqrt(square), rtol=1e-5)


def test_the_compiled_step_holds_no_tokens_by_vocabulary():
  vocabulary, chunk = 2048, 8
  batch = tiny.batch(0, B=8, K=2, R=24, V=vocabulary)
  model, params, _ = tiny.model(0, vocab_size=vocabulary, num_hidden_layers=1)
  step = train_step.make_train_step(
    model=model,
    scorer=functools.partial(tokens.causal, chunk=chunk),
    loss=LOSS,
    optimizer=optax.adamw(1e-3),
    mesh=mesh_of(),
    accumulation=2,
  )
  state = train_step.init(params, optax.adamw(1e-3))
  compiled = step.lower(state, params, batch).compile()
  shapes = re.findall(r"\b(?:f|bf|s|u)\d+\[([\d,]+)\]", compiled.as_text())
  largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
  weights = max(leaf.size for leaf in jax.tree.leaves(params))
  positions = batch.response.size // 2  # of a micro-batch
  assert largest <= max(chunk * vocabulary, weights) < positions * vocabulary // 4


def test_half_precision_computes_and_single_precision_keeps(seed):
  model, params, _ = tiny.model(seed, num_hidden_layers=1, options={"dtype": jnp.bfloat16})
  batch, optimizer = tiny.batch(seed), optax.adamw(1e-6)
  step = train_step.make_train_step(
    model=model, scorer=tokens.causal, loss=pointwise.sft, optimizer=optimizer, mesh=mesh_of()
  )
  parts = dict(model=model, scorer=tokens.causal, loss=pointwise.sft)
  before = host(params)
  _, _, gradient = jax.eval_shape(
    lambda params, batch: train_step.value_and_gradient(params, None, batch, **parts), params, batch
  )
  state, metrics = step(train_step.init(params, optimizer), None, batch)
  floats = [leaf for leaf in jax.tree.leaves((gradient, state, metrics)) if leaf.dtype.kind == "f"]
  assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
  # A change of a millionth is far below what bfloat16 could hold of a weight.
  moved = [np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params))]
  assert all(moved)


# A toy model: what follows is about the step, and not about what it trains.


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


def test_micro_batches_are_exact_for_every_kernel(drawn):
  params, reference, batch = drawn
  losses = {name: lookup.resolve({"name": name}, "larpo_jax.losses") for name in KERNELS}
  losses |= {"coupled": toy.sorted_pairs, "wrong": said_to_be_apart}
  parts = dict(model=None, scorer=toy.bigrams)

  def whole(params, batch):
    run = lambda loss: jax.value_and_grad(train_step.objective, has_aux=True)(  # noqa: E731
      params, reference, batch, loss=loss, **parts
    )
    return {name: (value, *rest) for name, loss in losses.items() for value, *rest in [run(loss)]}

  def split(params, batch, count):
    run = functools.partial(train_step.value_and_gradient, params, reference, batch, count)
    return {name: run(loss=loss, **parts) for name, loss in losses.items()}

  wanted = {name: (*x[0], x[1]) for name, x in jax.jit(whole)(params, batch).items()}
  for count in (2, 4):
    found = jax.jit(split, static_argnums=2)(params, batch, count)
    for name in (*KERNELS, "coupled"):
      close(found[name], wanted[name])
    with pytest.raises(AssertionError):  # what the second pass is for
      close(found["wrong"], wanted["wrong"], 1e-3)


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

  (value, metrics, gradient), first, other = run(params, batch)
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

  def scorer(model, params, batch):
    seen.append(sorted(params))
    return toy.bigrams(model, params, batch)

  state = train_step.init(params, DESCENT)
  new, _ = toy_step(pairwise.dpo, scorer=scorer)(state, reference, batch, still)
  assert seen == [["bias", "table"]] * len(seen)
  assert len(seen) >= 2
  assert list(new.params) == ["table"]


# Before the first step.


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "pointwise.sft"])
def test_preflight_knows_the_value_of_every_kernel_and_finds_what_is_off(drawn, name):
  params, other, batch = drawn
  loss = lookup.resolve({"name": name}, "larpo_jax.losses")
  policy = toy.bigrams(None, params, batch)
  zeros = policy.replace(token=jnp.zeros_like(policy.token))
  known = np.average(loss(zeros, zeros, batch)[0], weights=batch.weight)
  cached = batch.replace(reference=np.array(policy.token))
  for given in (batch, cached):
    np.testing.assert_allclose(train_step.preflight(policy, given, loss), known, rtol=1e-5)

  wrong = toy.bigrams(None, other, batch).token
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
