"""A checkpoint is whole or it is not loaded."""

import functools
import os
from pathlib import Path
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from larpo_jax import checkpoints
from larpo_jax.checkpoints import integrity


class Net(nnx.Module):
  def __init__(self, key, dtype=jnp.float32, width=16):
    draw = jax.random.normal(key, (8, width), dtype)
    self.embed = nnx.Param(draw, logical_axes=("vocab", "embed"))
    self.layers = nnx.List([nnx.Param(draw.T * 2), nnx.Param(jnp.arange(3, dtype=jnp.bfloat16))])


def make_state(seed=0, **options):
  params = nnx.split(Net(jax.random.key(seed), **options))[1]
  return {"params": params, "opt": optax.adamw(1e-3).init(params), "step": jnp.int32(7)}


def saved(directory, steps, **options):
  store = checkpoints.Store(directory, **options)
  for step in steps:
    store.save(step, make_state(step), {"next_index": step}, {"stage": "train"})
  store.close()


def restored(directory, like=None, **options):
  store = checkpoints.Store(directory, **options)
  try:
    return store.restore(make_state() if like is None else like)
  finally:
    store.close()


def same_bits(left, right):
  left, right = jax.tree.leaves(left), jax.tree.leaves(right)
  assert len(left) == len(right)
  for one, other in zip(left, right):
    one, other = np.asarray(one), np.asarray(other)
    assert one.dtype == other.dtype
    assert one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  """A store of steps 1, 2, 3 to copy from."""
  directory = tmp_path_factory.mktemp("three") / "store"
  saved(directory, (1, 2, 3))
  return directory


@pytest.fixture
def store3(three, tmp_path):
  return Path(shutil.copytree(three, tmp_path / "store"))


def test_what_is_saved_comes_back(three):
  like = jax.eval_shape(make_state)
  found = restored(three, like)
  assert (found.step, found.data, found.meta["stage"]) == (3, {"next_index": 3}, "train")
  assert found.rejected == ()
  same_bits(found.state, make_state(3))
  assert isinstance(found.state["params"], nnx.State)
  # What the tree knows beside its arrays is that of the run, not of the file.
  assert found.state["params"]["embed"].get_metadata("logical_axes") == ("vocab", "embed")


def test_nothing_saved_is_nothing_restored(tmp_path):
  assert restored(tmp_path / "new" / "store") is None


def test_odd_leaves(tmp_path):
  state = {
    "key": jax.random.key(3),
    "none": None,
    "empty": jnp.zeros((0, 4), jnp.bfloat16),
    "numpy": np.arange(5, dtype=np.int16),
    "flag": jnp.bool_(True),
    "scalar": np.float64(2.5),
  }
  store = checkpoints.Store(tmp_path)
  store.save(0, state)
  found = store.restore(state)
  store.close()
  assert found.data is None
  assert found.step == 0
  assert jax.tree.structure(found.state) == jax.tree.structure(state)
  key = jax.random.key_data(found.state.pop("key"))
  np.testing.assert_array_equal(key, jax.random.key_data(state.pop("key")))
  same_bits(found.state, state)
  with pytest.raises(ValueError, match="count of the state is a int"):
    checkpoints.Store(tmp_path).save(1, {"count": 3})


def test_saves_are_not_disturbed_by_donation(tmp_path):
  grow = jax.jit(lambda x: x + 1, donate_argnums=0)
  store = checkpoints.Store(tmp_path, keep=10)
  state = jnp.zeros((1000, 500))
  for step in range(5):
    store.save(step, state)
    state = grow(state).block_until_ready()
  store.wait()
  for step in reversed(range(5)):
    found = store.restore(state)
    assert found.step == step
    np.testing.assert_array_equal(found.state, step)
    shutil.rmtree(tmp_path / str(step))


def test_keeps_the_newest_and_saves_a_step_once(tmp_path):
  store = checkpoints.Store(tmp_path, keep=2)
  for step in (1, 2, 3):
    assert store.save(step, make_state(step))
  assert not store.save(3, make_state(9))
  assert store.save(2, make_state(4), force=True)
  store.wait()
  assert store.steps() == [2, 3]
  same_bits(store.restore(make_state()).state, make_state(3))
  shutil.rmtree(tmp_path / "3")
  same_bits(store.restore(make_state()).state, make_state(4))
  store.close()
  assert not list(tmp_path.glob("*.deleting"))
  with pytest.raises(ValueError, match="keep=0"):
    checkpoints.Store(tmp_path, keep=0)
  with pytest.raises(ValueError, match="full, quick, off"):
    checkpoints.Store(tmp_path, verify="ful")


# Damage (one file at a time, every file): found, named, passed over, kept aside.


def flips(size, generator):
  return sorted({int(place) for place in generator.integers(0, size * 8, 15)})


def flip(file, bit):
  content = bytearray(file.read_bytes())
  content[bit // 8] ^= 1 << (bit % 8)
  file.write_bytes(bytes(content))


def test_every_damage_to_every_file_is_found(store3, seed):
  generator = np.random.default_rng(seed)
  step = store3 / "3"
  files = [file for file in step.rglob("*") if file.is_file()]
  assert len(files) > 10
  assert integrity.problem(step, "full") is None
  tried = 0
  for file in files:
    whole = file.read_bytes()
    name = str(file.relative_to(step))
    damages = [file.unlink]
    for share in (0, 0.5, 0.99):
      cut = whole[: int(share * len(whole))]
      damages.append(functools.partial(file.write_bytes, cut))
    damages += [functools.partial(flip, file, bit) for bit in flips(len(whole), generator)]
    for damage in damages:
      damage()
      problem = integrity.problem(step, "full")
      assert problem is not None
      assert name in problem
      file.write_bytes(whole)
      tried += 1
  assert integrity.problem(step, "full") is None
  assert tried > 150


@pytest.mark.parametrize("kind", ["array data", "commit", "manifest", "item", "empty", "swapped"])
def test_damage_falls_back_to_the_step_before(store3, kind, caplog):
  step = store3 / "3"
  if kind == "array data":
    name = str(
      max((step / "state" / "ocdbt.process_0" / "d").iterdir(), key=lambda f: f.stat().st_size)
    )
    flip(Path(name), 8 * 100 + 3)
    name = Path(name).name
  elif kind == "commit":
    name = "commit_success.txt"
    (step / name).unlink()
  elif kind == "manifest":
    name = "integrity.json"
    (step / name).unlink()
  elif kind == "item":
    name = "state/"
    shutil.rmtree(step / "state")
  elif kind == "empty":
    name = "integrity.json"
  else:
    name = "holds step 2"
    shutil.rmtree(step)
    shutil.copytree(store3 / "2", step)
  store = checkpoints.Store(store3)
  if kind == "empty":
    (store3 / "9").mkdir()
    step = store3 / "9"
  found = store.restore(make_state())
  assert found.step == (3 if kind == "empty" else 2)
  same_bits(found.state, make_state(found.step))
  assert len(found.rejected) == 1
  assert name in found.rejected[0]
  assert not step.exists()
  assert Path(f"{step}.corrupt").is_dir()
  # The run goes on over the damaged step, and what it saves there is good.
  store.save(int(step.name), make_state(8))
  same_bits(store.restore(make_state()).state, make_state(8))
  store.close()


def test_two_damaged_then_all_damaged(store3):
  for step in ("3", "2"):
    (store3 / step / "state" / "manifest.ocdbt").unlink()
  found = restored(store3)
  assert found.step == 1
  assert len(found.rejected) == 2
  (store3 / "1" / "state" / "manifest.ocdbt").unlink()
  for _ in range(2):  # also the second time, when the names say it
    with pytest.raises(ValueError, match="no good checkpoint is left in"):
      restored(store3)


def test_quick_reads_sizes_and_small_files_only(store3):
  big = store3 / "3" / "state" / "big"
  big.write_bytes(os.urandom(200_000))
  (store3 / "3" / integrity.NAME).unlink()
  integrity.write(store3 / "3", {"step": 3, "arrays": {}})
  flip(big, 5)
  assert integrity.problem(store3 / "3", "quick") is None
  assert "big" in integrity.problem(store3 / "3", "full")
  flip(store3 / "3" / "_CHECKPOINT_METADATA", 5)
  assert "METADATA" in integrity.problem(store3 / "3", "quick")
  assert integrity.problem(store3 / "3", "off") is None


# Other models, other meshes, other dtypes.


@pytest.mark.parametrize(
  ("options", "said"),
  [
    (dict(width=32), r"params/embed/value = float32\[8,16\] there, float32\[8,32\] here"),
    (dict(dtype=jnp.bfloat16), r"float32\[8,16\] there, bfloat16\[8,16\] here"),
  ],
)
def test_another_shape_or_dtype_is_refused_with_the_difference(three, options, said):
  with pytest.raises(ValueError, match=said):
    restored(three, make_state(**options))
  assert restored(three).step == 3, "a user's mistake is no damage"


def test_another_structure_or_run_is_refused_with_the_difference(three):
  like = make_state()
  with pytest.raises(ValueError, match=r"1 only there: step = int32\[\]; 1 only here: steps"):
    restored(three, {"steps": like["step"], **{k: like[k] for k in ("params", "opt")}})
  store = checkpoints.Store(three)
  with pytest.raises(ValueError, match="stage = train there, supervised here"):
    store.restore(like, expect={"stage": "supervised"})
  assert store.restore(like, expect={"stage": "train"}).step == 3
  store.close()


def on_mesh(shape, spec):
  devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
  mesh = Mesh(devices, ("data", "fsdp"))
  return lambda leaf: NamedSharding(
    mesh, PartitionSpec(*spec) if leaf.ndim == 2 else PartitionSpec()
  )


def placed(leaf, place):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (fake) devices")
def test_restores_on_another_mesh_bit_for_bit(tmp_path):
  state = make_state(5)
  place = on_mesh((2, 4), ("data", "fsdp"))
  saved_state = jax.tree.map(lambda leaf: jax.device_put(leaf, place(leaf)), state)
  store = checkpoints.Store(tmp_path)
  store.save(1, saved_state)
  for shape, spec in [
    ((8, 1), ("data",)),
    ((1, 8), ("fsdp",)),
    ((4, 1), ("data",)),
    ((2, 1), (None, "data")),
    ((1, 1), ()),
  ]:
    other = on_mesh(shape, spec)
    like = jax.tree.map(functools.partial(placed, place=other), state)
    found = store.restore(like)
    same_bits(found.state, state)
    for leaf in jax.tree.leaves(found.state):
      assert leaf.sharding.is_equivalent_to(other(leaf), leaf.ndim)
  # Without a sharding it is one device, not what the saving run had.
  found = store.restore(jax.eval_shape(lambda: state))
  assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found.state)} == {1}
  store.close()
