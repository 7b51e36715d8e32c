"""One step of a real decoder is the same on any mesh, in any number of parts, however padded."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import toy
from toy import DESCENT, close, host, mesh_of, weighted

from larpo_jax import sharding, train_step
from larpo_jax.losses import listwise, pointwise
from larpo_jax.scorers import tokens

# All that a step can be asked for at once: a reference, none, and a sum of both.
LOSS = ((0.7, functools.partial(listwise.listmle, beta=0.3)), (0.3, pointwise.sft))


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
  _, _, gradient, _ = jax.eval_shape(
    lambda params, batch: train_step.value_and_gradient(params, None, batch, **parts), params, batch
  )
  state, metrics = step(train_step.init(params, optimizer), None, batch)
  floats = [leaf for leaf in jax.tree.leaves((gradient, state, metrics)) if leaf.dtype.kind == "f"]
  assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
  # A change of a millionth is far below what bfloat16 could hold of a weight.
  moved = [np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params))]
  assert all(moved)
