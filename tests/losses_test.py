"""Properties of every kernel in larpo_jax.losses: a new one is covered the day it is written."""

import functools
import inspect
import itertools
import pathlib

from draws import better_and_worse, lists, reordered, wider
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import kernels
from kernels import KERNELS, SUBJECTS
import numpy as np
import pytest

from larpo_jax import lookup, masked, objective

FIELDS = ("token", "entropy", "kl", "collision")
CITED = {"pairwise.cdpo", "wrappers.smoothed"}  # their source is a note, not a paper

COUPLED = {name: kernels.attribute(name, "couples_prompts", False) for name in SUBJECTS}
every_kernel = pytest.mark.parametrize("name", SUBJECTS)


def outputs(name, policy, reference, batch):
  """loss [B], metrics {name: [B]} and d(weighted sum of the loss) / d(policy log-probs)."""

  def total(token):
    loss, metrics = kernels.evaluate(name, policy.replace(token=token), reference, batch)
    return masked.sum(loss * batch.weight, batch.weight > 0), (loss, metrics)

  gradient, (loss, metrics) = jax.grad(total, has_aux=True)(jnp.asarray(policy.token))
  return loss, metrics, gradient


@functools.cache
def compiled(name):
  return jax.jit(functools.partial(outputs, name))


def close(found, expected, rtol=1e-5, atol=1e-6):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), found, expected)


def all_finite(tree):
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(tree)), tree


def rows(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


def test_there_are_kernels():
  families = {name.split(".")[0] for name in KERNELS}
  assert {"listwise", "pairwise", "unpaired", "tokenwise", "reward_models"} <= families
  assert not any("._" in name or name.startswith("_") for name in kernels.NAMES)
  assert len(KERNELS) > 70


@pytest.mark.parametrize("name", kernels.NAMES)
def test_signature_and_what_the_docstring_says(name):
  function = lookup.find(name, kernels.PACKAGE)
  found = kernels.positional(function)
  if name in kernels.WRAPPERS:
    assert found == ["kernel"]
  else:
    carries = hasattr(function, "statistics")
    assert found == ["policy", "reference", "batch", *(["statistics"] if carries else [])]
    with pytest.raises(ValueError, match="betta"):
      lookup.resolve({"name": name, "betta": 1.0}, kernels.PACKAGE)
  defaults = lookup.keywords(function)
  assert inspect.Parameter.empty not in defaults.values(), "a default for each"
  assert objective.section(function, "Formula")
  assert "https://arxiv.org/abs/" in objective.section(function, "Source") or name in CITED
  assert objective.section(function, "Traps")
  said = objective.section(function, "Defaults")
  assert bool(said) == bool(set(defaults) - {"flavor"}), "where defaults come from"


@every_kernel
def test_one_finite_float32_per_prompt(name, seed):
  arguments = lists(seed)
  loss, metrics, gradient = compiled(name)(*arguments)
  assert loss.shape == (8,)
  assert loss.dtype == jnp.float32
  assert metrics
  for key, value in metrics.items():
    assert (value.shape, value.dtype) == ((8,), jnp.float32), key
  all_finite((loss, metrics, gradient))


@every_kernel
def test_jit_changes_nothing(name, seed):
  arguments = lists(seed)
  close(outputs(name, *arguments), compiled(name)(*arguments))


@every_kernel
def test_vmap_is_a_loop(name, seed):
  several = [lists(seed + i) for i in range(3)]
  stacked = jax.tree.map(lambda *x: np.stack(x), *several)
  expected = [compiled(name)(*arguments) for arguments in several]
  found = jax.jit(jax.vmap(functools.partial(outputs, name)))(*stacked)
  close(found, jax.tree.map(lambda *x: np.stack(x), *expected))


@pytest.mark.parametrize("name", [n for n in SUBJECTS if kernels.family(n) != "unpaired"])
def test_downhill_from_the_reference_is_better_up_and_worse_down(name, seed):
  # Two judges may break a tie in different ways.
  _, reference, batch = lists(seed, tied="score" not in kernels.attribute(name, "reads"))
  batch = batch.replace(label=batch.label + 2)  # shares of a whole, for kernels that read them so
  if not kernels.attribute(name, "needs_reference", True):  # from where no response is ahead
    even = -reference.mask / np.maximum(reference.mask.sum(-1, keepdims=True), 1)
    reference = reference.replace(token=even.astype(np.float32))
  _, _, gradient = compiled(name)(reference, reference, batch)
  slope = np.sum(gradient * reference.mask, -1)  # [B, K]
  found = list(better_and_worse(batch))
  if name == "batchwise.beta_dpo":  # some pairs are left out
    found = [(b, *ends) for b, *ends in found if slope[b].any()]
  assert found
  if name == "pairwise.discopop":  # as published: where m turns, the margin's slope is positive
    assert all(slope[b, best].mean() > slope[b, worst].mean() for b, best, worst in found)
    return
  for b, best, worst in found:
    assert slope[b, best].max() <= 1e-7, "a step must not make the best less likely"
    assert slope[b, worst].min() >= -1e-7, "a step must not make the worst more likely"
    assert slope[b, best].mean() < slope[b, worst].mean() - 1e-5, "the margin must grow"


@pytest.mark.parametrize("name", [name for name in KERNELS if kernels.family(name) == "unpaired"])
def test_downhill_from_the_reference_is_desirable_up_and_undesirable_down(name, seed):
  _, reference, batch = lists(seed)
  _, _, gradient = compiled(name)(reference, reference, batch)
  slope = np.sum(gradient * reference.mask, -1)
  if name == "unpaired.dro":  # what counts is being above or below the rest
    mean = np.sum(batch.label * batch.valid, -1) / np.maximum(batch.valid.sum(-1), 1)
    batch = batch.replace(label=np.where(batch.valid, batch.label - mean[:, None], 0.0))
    batch = batch.replace(valid=batch.valid & (batch.valid.sum(-1, keepdims=True) > 1))
  good, bad = (batch.valid & (sign * batch.label > 1e-6) for sign in (1, -1))
  assert good.any()
  assert bad.any()
  assert (slope[good] < -1e-5).all()
  assert (slope[bad] > 1e-5).all()


@every_kernel
def test_masked_tokens_do_not_count(name, seed):
  policy, reference, batch = lists(seed)

  def spoil(x):
    return x.replace(**{f: np.where(x.mask > 0, getattr(x, f), np.nan) for f in FIELDS})

  found = compiled(name)(spoil(policy), spoil(reference), batch)
  close(found, compiled(name)(policy, reference, batch))
  assert not np.any(np.where(policy.mask > 0, 0.0, found[2]))


@every_kernel
def test_padded_responses_do_not_count(name, seed):
  policy, reference, batch = lists(seed)
  holes = ~batch.valid[..., None]
  assert holes.any()
  for garbage in (-7.0, np.nan):

    def spoil(x, garbage=garbage):
      return x.replace(
        token=np.where(holes, garbage, x.token).astype(np.float32),
        mask=np.where(holes, 1.0, x.mask).astype(np.float32),
      )

    other = {
      field: np.where(batch.valid, getattr(batch, field), -garbage).astype(np.float32)
      for field in ("label", "score", "importance")
    }
    found = compiled(name)(spoil(policy), spoil(reference), batch.replace(**other))
    close(found, compiled(name)(policy, reference, batch))
    assert not np.any(np.where(holes, found[2], 0.0))


@every_kernel
def test_rows_of_weight_zero_and_empty_lists_do_not_count(name, seed):
  policy, reference, batch = lists(seed, ragged=False)
  gone = np.arange(8) >= 5
  light = batch.replace(weight=np.where(gone, 0.0, batch.weight).astype(np.float32))
  empty = light.replace(valid=batch.valid & ~gone[:, None])
  loss, metrics, gradient = compiled(name)(policy, reference, empty)
  all_finite((loss, metrics, gradient))
  assert not np.any(loss[gone])
  assert not np.any(gradient[gone])
  if COUPLED[name]:  # then it has to be as if the rows were not there; else any content will do
    expected = outputs(name, *rows((policy, reference, batch), ~gone))
  else:
    expected = rows(compiled(name)(policy, reference, batch), ~gone)
  close(rows((loss, metrics, gradient), ~gone), expected)
  assert not np.any(compiled(name)(policy, reference, light)[2][gone])


@every_kernel
def test_a_list_that_orders_nothing_is_finite(name, seed):
  policy, reference, batch = lists(seed)
  single = batch.replace(valid=batch.valid & (np.arange(4) == 0))
  for unordered in (batch.replace(label=np.ones_like(batch.label)), single):
    loss, metrics, gradient = compiled(name)(policy, reference, unordered)
    all_finite((loss, metrics, gradient))
    if kernels.attribute(name, "compares", True):
      assert not np.any(loss)
      assert not np.any(gradient)


@every_kernel
def test_no_nan_on_the_way(name, seed):
  policy, reference, batch = lists(seed, B=2)
  level = batch.replace(label=np.zeros_like(batch.label))
  with jax.debug_nans(True):  # op by op: nan that a later `where` hides is found too
    outputs(name, policy, reference, level)


@every_kernel
def test_order_of_prompts_does_not_matter(name, seed):
  arguments, order = lists(seed), np.random.default_rng(seed).permutation(8)
  loss, metrics, gradient = compiled(name)(*arguments)
  found = compiled(name)(*rows(arguments, order))
  close(found, (loss[order], rows(metrics, order), gradient[order]))


@every_kernel
def test_order_of_candidates_does_not_matter(name, seed):
  arguments = lists(seed)
  order = np.random.default_rng(seed).permuted(np.tile(np.arange(4), (8, 1)), axis=1)
  loss, metrics, gradient = compiled(name)(*arguments)
  found = compiled(name)(*reordered(arguments, order))
  close(found, (loss, metrics, reordered(gradient, order)))


@every_kernel
def test_width_of_padding_does_not_matter(name, seed):
  arguments = lists(seed)

  loss, metrics, gradient = compiled(name)(*wider(arguments))
  close((loss, metrics, gradient[:, :4, :5]), compiled(name)(*arguments))


@every_kernel
@pytest.mark.parametrize("spread", [1e2, 1e4])
def test_extreme_log_probs_are_finite(name, seed, spread):
  all_finite(compiled(name)(*lists(seed, spread=spread)))
  policy, reference, batch = lists(seed, spread=spread, distance=0.0)
  for sign in (-1, 1):  # every best response certain or impossible, far from a flat reference
    moved = policy.replace(token=(sign * spread * np.sign(batch.label[..., None]) * policy.mask))
    all_finite(compiled(name)(moved, reference, batch))


@every_kernel
def test_prompts_are_independent_unless_it_says_otherwise(name, seed):
  first = np.arange(8)[:, None, None] == 0
  same = []
  # Lists as drawn, and of one response each; several, as the first prompt of one may not count.
  for draw, lone in itertools.product(range(4), (False, True)):
    policy, reference, batch = lists(seed + draw)
    mask = np.where(first & (np.arange(5) > 0), 0.0, policy.mask).astype(np.float32)
    rest = batch.replace(valid=batch.valid & (~lone | (np.arange(4) == 0)))
    before = compiled(name)(policy, reference, rest)
    for value in (30.0, -30.0):
      other = value * (batch.label[..., None] + 0.5)  # not the same for every response
      token = (np.where(first, other, policy.token) * mask).astype(np.float32)
      after = compiled(name)(policy.replace(token=token, mask=mask), reference, rest)
      leaves = zip(*map(jax.tree.leaves, (before, after)), strict=True)
      same += [np.array_equal(x[1:], y[1:]) for x, y in leaves]
  assert all(same) != COUPLED[name], "couples_prompts must say what the kernel does"


@every_kernel
def test_reference_is_read_if_and_only_if_it_is_needed(name, seed):
  policy, reference, batch = lists(seed)
  needs = kernels.attribute(name, "needs_reference", True)
  changed = reference.replace(token=np.full_like(reference.token, 0.0 if needs else np.nan))
  before, after = (compiled(name)(policy, x, batch) for x in (reference, changed))
  if needs:
    assert np.abs(before[0] - after[0]).max() > 1e-4
  else:
    close(after, before)


@every_kernel
def test_metrics_carry_no_gradient(name, seed):
  policy, reference, batch = lists(seed)

  def total(token):
    metrics = kernels.evaluate(name, policy.replace(token=token), reference, batch)[1]
    return sum(jnp.sum(x) for x in metrics.values())

  assert not np.any(jax.jit(jax.grad(total))(policy.token))


@every_kernel
def test_eight_devices_are_one(name, seed):
  if jax.device_count() < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  arguments = lists(seed)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:8])
  sharded = jax.device_put(arguments, NamedSharding(mesh, PartitionSpec("data")))
  close(compiled(name)(*sharded), compiled(name)(*arguments), rtol=1e-6, atol=1e-6)


def test_no_hyper_parameter_has_a_name_that_a_spec_node_uses_itself():
  for name in kernels.NAMES:
    used = {"name", "weight", "kernel"} & set(lookup.keywords(lookup.find(name, kernels.PACKAGE)))
    assert not used, f"{name}: a spec node has its own {used}"


def test_the_readme_lists_every_loss():
  text = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
  assert not [name for name in kernels.NAMES if f"`{name}`" not in text]
