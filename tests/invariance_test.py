"""No kernel's loss or gradient depends on how it is computed: the invariance matrix."""

import functools

import draws
from invariance import MESHES, WAYS, Decoder, Kernels, Steps, Way, errors, lists, near
import jax
import jax.numpy as jnp
import kernels
import numpy as np
import optax
import pytest
import toy

from larpo_jax import checkpoints, loop, objective, preemption, sharding, train_step, writers
from larpo_jax.losses import batchwise, listwise, pairwise, tokenwise, unpaired

BAR = 1e-5
SEED = (
  1  # not a new one in every run: the worst of a thousand roundings can be 7e-6 (margins.chi_po)
)
# Each number of parts and each mesh, alone and together; the product of all is slow.
SOME = {(2, "1x1x1"), (4, "1x1x1"), (4, "8x1x1"), (2, "2x2x2"), (1, "1x4x2")}
GRID = [(parts, mesh) for mesh in MESHES for parts in (1, 2, 4)]
CARRIES = [batchwise.bco_pair_shift, batchwise.beta_dpo, unpaired.bco, tokenwise.sampo]


@pytest.fixture(scope="module")
def every():
  return Kernels()


@pytest.fixture(scope="module")
def decoder(every):
  """All kernels on a real model, and what they give as it is computed plainly."""
  model = Decoder(SEED, every)
  return model, model.run(Way())


@pytest.fixture(scope="module")
def steps(every):
  """All kernels in the step, and what they give by plain differentiation."""
  toy_steps = Steps(SEED, every)
  return toy_steps, toy_steps.wanted()


def same(found, wanted):
  """Every kernel's loss and gradient within the bar, and the statistics that it carries."""
  assert set(found) == set(wanted) == set(kernels.SUBJECTS)
  apart = {name: errors(found[name], wanted[name]) for name in wanted}
  assert not {name: pair for name, pair in apart.items() if not max(pair) <= BAR}
  for name, (_, gradient, statistics) in wanted.items():
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient)), name
    toy.close(found[name][2], statistics, BAR)


@pytest.mark.parametrize("way", WAYS)
def test_how_a_decoder_is_computed_changes_no_kernel(decoder, way):
  model, wanted = decoder
  same(model.run(WAYS[way]), wanted)


@pytest.mark.parametrize(
  ("parts", "mesh"),
  [pytest.param(*x, marks=[] if x in SOME else pytest.mark.slow) for x in GRID],
)
def test_parts_and_meshes_change_no_kernel(steps, parts, mesh):
  toy_steps, wanted = steps
  same(toy_steps.run(parts, MESHES[mesh]), wanted)


def test_a_cached_reference_in_parts_on_two_devices_changes_no_kernel(steps):
  toy_steps, wanted = steps
  same(toy_steps.run(2, MESHES["2x1x1"], cached=True), wanted)


# What looks at the whole batch.

WEIGHED = [name for name in kernels.SUBJECTS if kernels.attribute(name, "couples_prompts", False)]
# These count prompts: sorts, and a draw.
WEIGHED = [name for name in WEIGHED if not name.startswith(("batchwise.aot", "batchwise.beta_dpo"))]


@pytest.mark.parametrize("name", WEIGHED)
def test_a_weight_of_two_is_the_prompt_twice(name, seed):
  policy, reference, batch = draws.lists(seed)
  times = np.random.default_rng(seed).integers(0, 3, 8)
  twice = np.repeat(np.arange(8), times)

  @jax.jit
  def slope(given):
    policy, reference, batch = given

    def mean(token):
      moved = policy.replace(token=token)
      value, (_, new) = objective.mean(kernels.kernel(name), moved, reference, batch)
      return value, new

    return jax.value_and_grad(mean, has_aux=True)(policy.token)

  once = batch.replace(weight=times.astype(np.float32))
  (value, new), gradient = slope((policy, reference, once))
  several = jax.tree.map(lambda x: x[twice], (policy, reference, batch))
  (wanted, wanted_new), each = slope(several)
  summed = np.zeros_like(gradient)
  np.add.at(summed, twice, each)
  toy.close((value, gradient, new), (wanted, summed, wanted_new))


@pytest.mark.parametrize("name", ["batchwise.beta_dpo", "tokenwise.sampo"])
def test_what_is_drawn_is_the_rows_own(name, seed):
  arguments, rng = draws.lists(seed, B=32), np.random.default_rng(seed)
  loss = jax.jit(lambda *x: kernels.evaluate(name, *x)[0])
  wanted = loss(*arguments)
  for _ in range(10):
    order = rng.permutation(32)
    found = loss(*jax.tree.map(lambda x, order=order: x[order], arguments))
    np.testing.assert_allclose(found, wanted[order], rtol=1e-5, atol=1e-6)


# What is carried from step to step.


class Feed:
  """The loop's iterator of batches: another one for each step."""

  def __init__(self, seed):
    self.seed, self.index = seed, 0

  def __next__(self):
    self.index += 1
    return lists(self.seed + self.index, 8)

  def get_state(self):
    return self.index

  def set_state(self, state):
    self.index = state


def trained(directory, kernel, seed, stops):
  """Metrics and states where the real loop stops, with a new step, store and feed after each."""
  optimizer = optax.adamw(1e-2)
  params, states = toy.params(seed), []
  reference, mesh = near(params, seed, 0.7), toy.mesh_of(2)
  for stop in stops:
    step = train_step.make_train_step(
      model=None, scorer=toy.bigrams, loss=kernel, optimizer=optimizer, mesh=mesh, accumulation=2
    )
    writer, store = writers.Writer(directory), checkpoints.Store(directory / "checkpoints")
    with preemption.Guard() as guard:
      last = loop.fit(
        "train",
        train_step.init(params, optimizer, kernel),
        step=lambda state, batch, step=step: step(state, reference, batch),
        batches=Feed(seed),
        put=functools.partial(sharding.put, mesh=mesh),
        plan=loop.Plan(steps=stop, log_every=1, save_every=2),
        outlet=loop.Outlet(store, writer, guard),
        rate=lambda step: 1e-2,
      )
    store.close()
    writer.close()
    states.append(toy.host(last))
  rows = [
    {k: v for k, v in row.items() if not k.startswith(("throughput", "time"))}
    for row in writers.read(directory)
  ]
  return rows, states


@pytest.mark.parametrize(
  "kernel", [*CARRIES, pairwise.dpo, listwise.listmle], ids=lambda kernel: kernel.__name__
)
def test_stopped_and_resumed_is_as_if_it_never_was(kernel, seed, tmp_path):
  wanted, (whole,) = trained(tmp_path / "whole", kernel, seed, [4])
  found, (half, last) = trained(tmp_path / "parts", kernel, seed, [2, 4])
  assert found == wanted
  assert len(found) == 4
  jax.tree.map(np.testing.assert_array_equal, last, whole)
  for first, then in zip(*(jax.tree.leaves(x.statistics) for x in (half, last)), strict=True):
    assert np.any(first), "something is carried over the stop"
    assert np.any(first != then)
  assert bool(jax.tree.leaves(last.statistics)) == (kernel in CARRIES)


@pytest.mark.parametrize("kernel", CARRIES, ids=lambda kernel: kernel.__name__)
def test_a_skipped_step_leaves_what_is_carried(kernel, seed):
  params, batch = toy.params(seed), lists(seed, 8)
  optimizer = optax.sgd(0.1)
  step = train_step.make_train_step(
    model=None, scorer=toy.bigrams, loss=kernel, optimizer=optimizer, mesh=toy.mesh_of()
  )
  reference = near(params, seed, 0.7)
  state, _ = step(train_step.init(params, optimizer, kernel), reference, batch)
  before = toy.host((state.params, state.statistics))
  spoilt = jax.tree.map(lambda x: x * jnp.nan, reference)
  state, metrics = step(state, spoilt, batch)
  assert int(metrics["skipped"]) == 1
  jax.tree.map(np.testing.assert_array_equal, toy.host((state.params, state.statistics)), before)
  state, _ = step(state, reference, batch)
  assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state.statistics, before[1]))))
