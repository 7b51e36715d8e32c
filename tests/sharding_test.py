"""Where arrays live: the mesh, the rules, and states that stay where they were put."""

import logging

from flax import nnx
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest
import tiny
import toy
from toy import RULES

from larpo_jax import sharding, train_step
from larpo_jax.losses import pairwise


def specs(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True): leaf.spec for path, leaf in leaves}


def one(shape, axes, mesh, rules=RULES):
  leaf = nnx.Param(jax.ShapeDtypeStruct(shape, np.float32), logical_axes=axes)
  return sharding.named_shardings(leaf, mesh, rules).get_value().spec


@pytest.mark.parametrize(
  ("asked", "sizes"),
  [
    (dict(data=-1), (8, 1, 1)),
    (dict(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
    (dict(data=1, fsdp=4, tensor=2), (1, 4, 2)),
    (dict(data=8, fsdp=-1), (8, 1, 1)),
  ],
)
def test_a_mesh_takes_all_devices(asked, sizes):
  mesh = sharding.make_mesh(asked)
  assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), sizes))
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
  ("asked", "named"),
  [
    (dict(data=3), r"data=3, fsdp=1, tensor=1 does not fit 8 device"),
    (dict(data=3, fsdp=-1), "must multiply to 8"),
    (dict(data=-1, fsdp=-1), "one of them may be -1"),
    (dict(data=0, fsdp=-1), "must multiply to 8"),
    (dict(data=16, fsdp=-1), "must multiply to 8"),
    (dict(data=8, model=1), "no mesh axis model; the axes are data, fsdp, tensor"),
  ],
)
def test_a_mesh_that_does_not_fit_says_what_would(asked, named):
  with pytest.raises(ValueError, match=named):
    sharding.make_mesh(asked)


def test_rules_map_axes_that_divide_and_leave_the_rest():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  assert one((4, 6, 8), ("layers", "embed", "mlp"), mesh) == PartitionSpec(None, "fsdp", "tensor")
  assert one((4, 7, 8), ("layers", "embed", "mlp"), mesh) == PartitionSpec(None, None, "tensor")
  assert one((6,), ("embed",), mesh, {}) == PartitionSpec(None)
  alone = sharding.make_mesh(dict(data=-1))  # an axis of one device is no split
  assert one((6, 8), ("embed", "mlp"), alone) == PartitionSpec(None, None)
  # A factor of Adafactor carries the axes of the parameter that it is a part of.
  assert one((4, 8), ("layers", "embed", "mlp"), mesh) == PartitionSpec()
  plain = sharding.named_shardings({"step": np.int32(0)}, mesh, RULES)
  assert plain["step"].spec == PartitionSpec()


def test_rules_that_cannot_be_are_named():
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  with pytest.raises(ValueError, match=r"'embed', 'mlp'.* go to the mesh axis 'tensor'"):
    one((4, 4), ("embed", "mlp"), mesh, {"embed": "tensor", "mlp": "tensor"})
  with pytest.raises(ValueError, match="no mesh axis model; the axes are data"):
    one((4, 4), ("embed", "mlp"), mesh, {"embed": "model"})


def test_every_matrix_of_a_decoder_and_its_moments_are_split():
  mesh = sharding.make_mesh(dict(data=1, fsdp=4, tensor=2))
  _, params, _ = tiny.model(0, "llama2", num_hidden_layers=2, vocab_size=96)
  state = jax.eval_shape(lambda p: train_step.init(p, optax.adamw(1e-3)), params)
  placed = sharding.named_shardings(state, mesh, RULES)
  found, moments = specs(placed.params), specs(placed.opt_state[0].mu)
  assert found == moments
  for name, spec in found.items():
    assert "fsdp" in spec, name
    assert "norm" in name or "tensor" in spec, name
  assert placed.opt_state[0].count.spec == placed.step.spec == PartitionSpec()


def test_put_splits_prompts_and_changes_nothing(seed):
  batch = tiny.batch(seed, B=8)
  for shape, parts in [((8, 1, 1), 8), ((2, 2, 2), 4), ((1, 4, 2), 4), ((1, 1, 8), 1)]:
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape)))
    there = sharding.put(batch, mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, there), batch)
    for leaf in jax.tree.leaves(there):
      assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {8 // parts}


def test_a_batch_that_does_not_divide_names_the_number():
  mesh = sharding.make_mesh(dict(data=4, fsdp=2))
  with pytest.raises(ValueError, match=r"12 prompts does not divide over 8 devices"):
    sharding.put(tiny.batch(0, B=12), mesh)


@pytest.mark.parametrize("fresh", [True, False], ids=["on one device", "on the mesh"])
def test_a_state_stays_where_it_was_put_and_compiles_once(seed, caplog, fresh):
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  table = jax.random.normal(jax.random.key(seed), (toy.VOCABULARY + 1, toy.VOCABULARY + 1))
  params = nnx.State({"table": nnx.Param(table, logical_axes=("vocab", "embed"))})
  optimizer, batch = optax.adamw(1e-2), sharding.put(tiny.batch(seed, B=8), mesh)
  state = train_step.init(params, optimizer)
  if not fresh:
    state = jax.device_put(state, sharding.named_shardings(state, mesh, RULES))
  before = jax.tree.map(lambda x: x.sharding, state)
  step = train_step.make_train_step(
    model=None, scorer=toy.bigrams, loss=pairwise.dpo, optimizer=optimizer, mesh=mesh
  )
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    for _ in range(3):
      state, metrics = step(state, params, batch)
  compiled = [m for m in caplog.messages if m.startswith("Compiling jit(step)")]
  assert len(compiled) == 1, caplog.messages
  whole = NamedSharding(mesh, PartitionSpec())
  wanted = jax.tree.map(lambda _: whole, state) if fresh else before
  for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
  assert all(value.sharding.is_fully_replicated for value in metrics.values())
  if not fresh:
    (value,) = jax.tree.leaves(state.params)
    assert value.addressable_shards[0].data.size * 4 == value.size
