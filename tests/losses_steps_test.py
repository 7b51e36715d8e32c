"""Kernels that carry statistics from step to step, and those that draw: longhand in float64."""

import functools
import itertools
import math

from draws import lists
import jax
import jax.numpy as jnp
from longhand import FORMULAS, mean, prompts
from longhand_batch import pair_rewards, pair_rows, verdict_rewards
from longhand_draws import arguments, compiled, hyper_parameters
import numpy as np
import pytest

from larpo_jax.losses import batchwise, tokenwise

STEPS = 5


def numbers_of(name, seed, i=0):
  numbers, settings = hyper_parameters(name, seed, i)
  assert not settings
  return numbers, {key: float(x) for key, x in numbers.items()}


@pytest.mark.parametrize(
  ("name", "rewards"),
  [("batchwise.bco_pair_shift", pair_rewards), ("unpaired.bco", verdict_rewards)],
)
@pytest.mark.parametrize("spread", [0.1, 3.0, 100.0])
def test_rewards_are_shifted_by_the_mean_of_all_so_far(name, rewards, spread, seed):
  numbers, given = numbers_of(name, seed)
  earlier, statistics = [], None
  for i in range(STEPS):
    policy, reference, batch = arguments(seed, i, spread)
    loss, _, statistics = compiled(name)(policy, reference, batch, numbers, statistics)
    rows = prompts(policy, reference, batch)
    want = FORMULAS[name].losses(rows, earlier=earlier, **given)
    there = batch.weight > 0
    np.testing.assert_allclose(
      loss[there], np.float64(want)[there], 1e-5, 1e-6 * max(spread, 1) * given["beta"] + 1e-6
    )
    earlier += rewards(rows, given["beta"])
    size = np.abs(earlier).mean()
    np.testing.assert_allclose(statistics["mean"], mean(earlier), 1e-5, 1e-6 * size)
    assert statistics["count"] == len(earlier)


def moments(gaps):
  """Mean and unbiased deviation."""
  middle = mean(gaps)
  return middle, math.sqrt(sum((x - middle) ** 2 for x in gaps) / max(len(gaps) - 1, 1))


@pytest.mark.parametrize("spread", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("i", range(6))
def test_beta_dpo_is_its_formula_given_what_it_keeps(i, spread, seed):
  name = "batchwise.beta_dpo"
  numbers, settings = hyper_parameters(name, seed, i)
  given = {key: float(x) for key, x in numbers.items()} | settings
  for key in ("beta", "alpha", "smallest"):  # so that no loss underflows: those above 0 are kept
    numbers[key] = np.float32(given[key] / (3 * max(spread, 1)))
    given[key] = float(numbers[key])
  m, statistics, centre, spread_of = given["momentum"], None, 0.0, 0.0
  for step in range(1, STEPS + 1):
    policy, reference, batch = arguments(seed, 10 * i + step, spread)
    run = compiled(name, tuple(settings.items()))
    loss, _, statistics = run(policy, reference, batch, numbers, statistics)
    rows = prompts(policy, reference, batch)
    gaps = [mean(w.rho - l.rho for w, l in row.ends) for row in pair_rows(rows)]
    middle, deviation = moments(gaps)
    old = 0.0 if step == 1 and settings["init"] == "first" else m
    centre, spread_of = old * centre + (1 - old) * middle, old * spread_of + (1 - old) * deviation
    np.testing.assert_allclose(statistics["mean"], centre, 1e-5, 1e-5 * spread)
    np.testing.assert_allclose(statistics["std"], spread_of, 1e-5, 1e-5 * spread)
    assert statistics["step"] == step
    kept = [bool(x > 0) for x in loss]
    assert not any(is_kept and not row.ends for is_kept, row in zip(kept, rows))
    want = len(gaps) * (1 - given["drop"])
    assert sum(kept) in {max(1, math.floor(want + x)) for x in (-1e-5, 1e-5)}
    seen = 1 - m**step if settings["init"] == "corrected" else 1.0
    want = FORMULAS[name].losses(rows, kept=kept, centre=centre / seen, **given)
    np.testing.assert_allclose(loss, want, 1e-4, 1e-5)


def test_beta_dpo_keeps_by_a_gaussian_of_the_gap(seed):
  """One pair of eight is kept in each of many steps: how often, against its weight."""
  n, (policy, reference, batch) = 20_000, lists(seed, K=2, ragged=False, tied=False)
  rows = prompts(policy, reference, batch)
  gaps = [mean(w.rho - l.rho for w, l in row.ends) for row in rows]
  centre, deviation = moments(gaps)

  @jax.jit
  @jax.vmap
  def run(step):
    statistics = {"step": step, "mean": jnp.float32(centre), "std": jnp.float32(deviation)}
    return batchwise.beta_dpo(policy, reference, batch, statistics, drop=0.85)[0] > 0

  kept = run(jnp.arange(1000, 1000 + n))  # so late that the start at 0 is forgotten
  np.testing.assert_array_equal(kept.sum(1), 1)
  chance = np.exp(-((np.array(gaps) - centre) ** 2) / (2 * deviation**2))
  chance /= chance.sum()
  found = np.asarray(kept).mean(0)
  np.testing.assert_array_less(np.abs(found - chance), 5 * np.sqrt(chance * (1 - chance) / n))


def subsets(n, m):
  return list(itertools.combinations(range(n), m))


def sampo_of_two(row, beta):
  """{which tokens of the longer response are kept: the loss}."""
  m = min(y.n for y in row.responses)
  longer = max(row.responses, key=lambda y: y.n)

  def loss(which):
    kept = lambda y: which if y is longer else range(m)  # noqa: E731
    return FORMULAS["tokenwise.sampo"].losses([row], beta=beta, kept=kept)[0]

  return {which: loss(which) for which in subsets(longer.n, m)}


@pytest.mark.parametrize("spread", [0.1, 3.0, 100.0])
def test_sampo_is_its_formula_on_one_of_the_subsets(spread, seed):
  statistics = None
  for i in range(25):
    policy, reference, batch = lists(seed + i, K=2, tied=False, spread=spread)
    numbers, given = numbers_of("tokenwise.sampo", seed, i)
    found = compiled("tokenwise.sampo")(policy, reference, batch, numbers, statistics)
    loss, statistics = found[0], found[2]
    assert statistics["step"] == i + 1
    for b, row in enumerate(prompts(policy, reference, batch)):
      want = sampo_of_two(row, given["beta"]).values() if row.ends else [0.0]
      off = min(abs(float(loss[b]) - x) - 1e-5 * abs(x) for x in want)
      assert off < 1e-6 * max(spread, 1), (i, b)


def test_sampo_draws_every_subset_alike(seed):
  n, (policy, reference, batch) = 6000, lists(seed, K=2, R=4, tied=False, ragged=False)
  length = np.array([[2, 4]] * 4 + [[3, 1]] * 4)
  mask = (np.arange(4) < length[..., None]).astype(np.float32)
  policy, reference = policy.replace(mask=mask), reference.replace(mask=mask)
  run = functools.partial(tokenwise.sampo, policy, reference, batch, beta=0.5)
  loss = np.asarray(jax.jit(jax.vmap(lambda step: run({"step": step})[0]))(jnp.arange(n)))
  for b, row in enumerate(prompts(policy, reference, batch)):
    want = np.array(list(sampo_of_two(row, 0.5).values()))
    which = np.abs(loss[:, b, None] - want).argmin(1)
    np.testing.assert_allclose(loss[:, b], want[which], 1e-5, 1e-6)
    count = np.bincount(which, minlength=len(want))
    error = math.sqrt(n / len(want))
    assert np.abs(count - n / len(want)).max() < 5 * error, (b, count)
    assert abs(loss[:, b].mean() - want.mean()) < 5 * want.std() / math.sqrt(n) + 1e-6
    assert len(want) < 2 or np.any(which[1:] != which[:-1]), "anew each step"
  assert np.abs(np.corrcoef(loss[:, :2].T)[0, 1]) < 0.1, "prompts draw apart"


def test_sampo_of_a_longer_list_draws_from_all(seed):
  policy, reference, batch = lists(seed, K=4, tied=False, ragged=False)
  length = np.random.default_rng(seed).integers(2, 6, (8, 4))
  mask = (np.arange(5) < length[..., None]).astype(np.float32)
  policy, reference = policy.replace(mask=mask), reference.replace(mask=mask)
  loss = tokenwise.sampo(policy, reference, batch, beta=0.5)[0]
  for b, row in enumerate(prompts(policy, reference, batch)):
    m = min(y.n for y in row.responses)
    (w, l), found = row.ends[0], []
    for which in itertools.product(subsets(w.n, m), subsets(l.n, m)):
      kept = lambda y, which=which, w=w: which[0 if y is w else 1]  # noqa: E731
      found += FORMULAS["tokenwise.sampo"].losses([row], beta=0.5, kept=kept)
    assert np.abs(np.array(found) - float(loss[b])).min() < 1e-5


@pytest.mark.parametrize("dropped", ["widest", "narrowest"])
@pytest.mark.parametrize(
  ("init", "unit", "scope"), [("zero", "nats", "batch"), ("first", "rewards", "pair")]
)
def test_gaps_of_one_end_can_be_dropped_by_beta_dpo(init, unit, scope, dropped, seed):
  beta, alpha, drop, m, smallest = 0.3, 0.5, 0.4, 0.8, 0.01
  how = dict(beta=beta, alpha=alpha, drop=drop, momentum=m, smallest=smallest)
  how |= dict(init=init, dropped=dropped, scope=scope, unit=unit)
  statistics, centre = None, 0.0
  for step in range(3):
    policy, reference, batch = lists(seed + step, K=2, ragged=False, tied=False)
    rows = prompts(policy, reference, batch)
    gaps = [mean(w.rho - l.rho for w, l in row.ends) for row in rows]
    run = jax.jit(functools.partial(batchwise.beta_dpo, **how))
    loss, _, statistics = run(policy, reference, batch, statistics)
    rate = 1.0 if step == 0 and init == "first" else 1 - m
    centre += rate * (mean(gaps) - centre)
    order = sorted(gaps, reverse=dropped == "narrowest")
    kept = order[: max(1, math.floor(len(gaps) * (1 - drop)))]
    scale = len(gaps) / len(kept)
    for gap, found in zip(gaps, loss, strict=True):
      said = gap if scope == "pair" else mean(kept)
      used = beta * (1 + alpha * (said - centre) * (beta if unit == "rewards" else 1.0))
      want = scale * math.log1p(math.exp(-max(used, smallest) * gap)) if gap in kept else 0.0
      assert float(found) == pytest.approx(want, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["init", "dropped", "scope", "unit"])
def test_an_unknown_variant_of_beta_dpo_is_refused(name, seed):
  with pytest.raises(ValueError, match=f"{name} is 'no', and has to be one of"):
    batchwise.beta_dpo(*lists(seed, K=2), None, **{name: "no"})
