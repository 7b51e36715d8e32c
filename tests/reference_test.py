"""The reference cache: as if computed now, computed once, and no damaged or stale entry is used."""

import shutil

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import tiny

from larpo_jax import sharding
from larpo_jax.data import reference
from larpo_jax.scorers import tokens
from larpo_jax.types import LogProbs

PLACES = np.arange(1, 100, dtype=np.float64)


class Scorer:
  """Log-probs that are a function of the ids and nothing else, and a count of what was asked."""

  def __init__(self):
    self.calls = 0

  def __call__(self, batch):
    self.calls += 1
    prompt = (batch.prompt * batch.prompt_mask).sum(-1, dtype=np.float64)[..., None]
    before = np.cumsum(batch.response * PLACES[: batch.response.shape[-1]], -1)
    token = -np.abs(np.sin(prompt + before)) * batch.response_mask
    return LogProbs(token=token.astype(np.float32), mask=batch.response_mask)


def batches(seed, count=3, **options):
  """Batches of 4 prompts; the last is short of one, and a list is short of a response."""
  out = [tiny.batch(seed + i, **options) for i in range(count)]
  for batch in out:
    batch.response_mask[:, 0, 0] = 1  # no list is empty
  out[-1].weight[-1], out[-1].row[-1], out[-1].valid[0, -1] = 0, -1, False
  return out


def opened(directory, weights="a" * 32, precision="float32"):
  return reference.Cache(directory, weights, precision)


def filled(directory, some, scorer=None):
  cache = opened(directory)
  reference.fill(some, scorer or Scorer(), cache)
  return cache


def assert_right(cache, some):
  """What the cache attaches is what the scorer says, and 0 on padding."""
  attach = reference.attach(cache)
  for batch in some:
    there = batch.valid[..., None] & (batch.weight > 0)[:, None, None]
    np.testing.assert_array_equal(attach(batch).reference, Scorer()(batch).token * there)


def reshaped(some, seed):
  """The same rows in another order, in batches of another size, padded to another width."""
  joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *some)
  order = np.random.default_rng(seed).permutation(len(joined.weight))[:10]
  mixed = jax.tree.map(lambda x: x[order], joined)
  wider = mixed.replace(
    prompt=np.pad(mixed.prompt, ((0, 0), (0, 0), (2, 1))),
    prompt_mask=np.pad(mixed.prompt_mask, ((0, 0), (0, 0), (2, 1))),
    response=np.pad(mixed.response, ((0, 0), (0, 0), (0, 3)), constant_values=9),
    response_mask=np.pad(mixed.response_mask, ((0, 0), (0, 0), (0, 3))),
  )
  return [jax.tree.map(lambda x, i=i: x[i : i + 5], wider) for i in (0, 5)]


@pytest.mark.parametrize("devices", [1, 8])
def test_cached_is_on_the_fly(seed, tmp_path, devices):
  model, params, _ = tiny.model(seed, "mistral", num_hidden_layers=1)
  some = batches(seed, B=8)
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:devices]).reshape(-1, 1, 1),
    sharding.AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  split = NamedSharding(mesh, PartitionSpec("data"))
  jitted = jax.jit(lambda params, batch: tokens.causal(model, params, batch))

  def score(batch):
    with jax.set_mesh(mesh):
      return jitted(params, jax.device_put(batch, split))

  cache = opened(tmp_path, reference.weights_digest(params))
  assert reference.fill(some, score, cache) > 0
  attach = reference.attach(opened(tmp_path, reference.weights_digest(params)))
  with jax.default_device(jax.devices()[0]):
    live = jax.jit(lambda params, batch: tokens.causal(model, params, batch))
    for batch in some:
      there = batch.valid[..., None] & (batch.weight > 0)[:, None, None]
      wanted = np.asarray(live(params, batch).token) * there
      np.testing.assert_allclose(attach(batch).reference, wanted, rtol=1e-6, atol=1e-6)
      assert np.abs(wanted).max() > 1


def test_second_run_computes_nothing(seed, tmp_path):
  some, scorer = batches(seed), Scorer()
  filled(tmp_path, some, scorer)
  assert scorer.calls == 3
  for again in (some, some[::-1], some[1:], reshaped(some, seed)):
    cache = filled(tmp_path, again, scorer)
    assert_right(cache, again)
  assert scorer.calls == 3
  assert len(list(tmp_path.rglob("*.ref"))) == 1


def test_only_what_is_missing_is_computed(seed, tmp_path):
  some, scorer = batches(seed, count=4), Scorer()
  halves = [jax.tree.map(lambda x: x[2:], batch) for batch in some]
  filled(tmp_path, halves)
  cache = filled(tmp_path, some, scorer)
  assert scorer.calls == 2  # eight rows of four batches, four at a time
  assert_right(cache, some)
  other = jax.tree.map(np.copy, some[0])
  other.response[1, 0, 0] += 1
  other.response_mask[1, :, 0] = 1
  assert reference.fill([other, other], scorer, cache) == 3  # the list that has the response
  assert scorer.calls == 3
  assert_right(cache, [other])


def test_ids_weights_precision_and_what_counts_tell_entries_apart(seed, tmp_path):
  some = batches(seed, count=1)
  cache = filled(tmp_path, some)
  keys = reference.digests(some[0])
  assert all(value is not None for value in cache.get(keys[keys != b""]))
  for weights, precision in (
    ("b" * 32, "float32"),
    ("a" * 31 + "b", "float32"),
    ("a" * 32, "bf16"),
  ):
    assert not any(v is not None for v in opened(tmp_path, weights, precision).get(keys.ravel()))
  batch = some[0]
  batch.response_mask[:] = 1
  full = reference.digests(batch)
  changes = dict(prompt=batch.prompt + 1, response=batch.response + 1)
  changes["response_mask"] = batch.response_mask * (np.arange(6) != 2)
  changes["cond"] = np.arange(4.0)
  for name, value in changes.items():
    other = reference.digests(batch.replace(**{name: np.asarray(value, value.dtype)}))
    shown = full != b""
    assert not np.any((other == full) & shown), name
  assert len(set(full[full != b""])) == np.sum(full != b"")


def test_entries_of_other_weights_are_not_believed(seed, tmp_path):
  some = batches(seed, count=1)
  filled(tmp_path, some)
  (file,) = tmp_path.rglob("*.ref")
  other = opened(tmp_path, "c" * 32)
  (place,) = (p for p in tmp_path.iterdir() if p.name.startswith("c"))
  shutil.copy(file, place)
  other.refresh()
  keys = reference.digests(some[0])
  assert not any(value is not None for value in other.get(keys[keys != b""]))


@pytest.mark.filterwarnings("ignore:.*computed again")
def test_damage_is_found_and_computed_again(seed, tmp_path):
  some = batches(seed)
  filled(tmp_path, some)
  (file,) = tmp_path.rglob("*.ref")
  sound, rng = file.read_bytes(), np.random.default_rng(seed)

  def damaged():
    for size in (0, 5, 16, 40, len(sound) // 2, len(sound) - 1):
      yield sound[:size]
    for place in (*range(16), *rng.integers(16, len(sound), 40)):
      flipped = bytearray(sound)
      flipped[place] ^= 1 << rng.integers(8)
      yield bytes(flipped)

  for content in damaged():
    for written in tmp_path.rglob("*.ref"):
      written.unlink()
    file.write_bytes(content)
    scorer = Scorer()
    assert_right(filled(tmp_path, some, scorer), some)
    assert 1 <= scorer.calls <= 3
    filled(tmp_path, some, scorer)
    assert_right(opened(tmp_path), some)
    assert scorer.calls <= 3  # the sound entry is found beside the damaged one


def test_two_writers_share(seed, tmp_path):
  some, scorer = batches(seed), Scorer()
  one, two = opened(tmp_path), opened(tmp_path)
  for cache, batch in zip((one, two, one), some):
    reference.fill([batch], scorer, cache)
  (place,) = tmp_path.iterdir()
  (place / "0.ref.123.tmp").write_bytes(b"a writer was killed here")
  for cache in (one, two, opened(tmp_path)):
    assert reference.fill(some, scorer, cache) == 0
    assert_right(cache, some)
  assert scorer.calls == 3


def test_killed_half_way_keeps_what_was_scored(seed, tmp_path):
  some, scorer = batches(seed), Scorer()

  def dying(batch):
    if scorer.calls == 2:
      raise KeyboardInterrupt
    return scorer(batch)

  with pytest.raises(KeyboardInterrupt):
    filled(tmp_path, some, dying)
  assert_right(filled(tmp_path, some, scorer), some)
  assert scorer.calls == 3


def test_what_is_missing_or_not_finite_says_so(seed, tmp_path):
  (batch,) = batches(seed, count=1, R=4)
  batch.row[:], batch.response_mask[:] = [70, 71, 72, 73], 1
  cache = opened(tmp_path)
  with pytest.raises(ValueError, match="lacks response 0 of row 70"):
    reference.attach(cache)(batch)

  def broken(batch):
    scored = Scorer()(batch)
    scored.token[2, 1, 0] = np.nan
    return scored

  with pytest.raises(ValueError, match="row 72 are not finite"):
    reference.fill([batch], broken, cache)


def test_weights_digest_is_of_every_bit_and_no_sharding(seed):
  rng = np.random.default_rng(seed)
  params = {
    "a": rng.normal(size=(8, 6)).astype(np.float32),
    "b": {"c": jnp.asarray(rng.normal(size=(16,)), jnp.bfloat16), "d": np.arange(8, dtype=np.int8)},
    "e": np.float32(rng.normal()),
  }
  digest = reference.weights_digest(params)
  assert len(digest) == 32
  mesh = jax.make_mesh((8,), ("x",))
  split = NamedSharding(mesh, PartitionSpec("x"))
  place = lambda x: jax.device_put(x, split) if np.ndim(x) else x  # noqa: E731
  assert reference.weights_digest(jax.tree.map(place, params)) == digest
  assert reference.weights_digest(params, config="other") != digest
  seen = {digest}
  for leaf in range(4):
    leaves, tree = jax.tree.flatten(params)
    raw = bytearray(np.asarray(leaves[leaf]).tobytes())
    raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    changed = np.frombuffer(bytes(raw), leaves[leaf].dtype).reshape(np.shape(leaves[leaf]))
    leaves[leaf] = changed
    seen.add(reference.weights_digest(jax.tree.unflatten(tree, leaves)))
  seen.add(reference.weights_digest({**params, "a": params["a"][::-1]}))
  seen.add(reference.weights_digest({**params, "a": params["a"].reshape(6, 8)}))
  seen.add(
    reference.weights_digest({**{k: v for k, v in params.items() if k != "e"}, "f": params["e"]})
  )
  assert len(seen) == 8
