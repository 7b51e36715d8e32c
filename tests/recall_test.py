"""Pass@N, best-of-N and majority: against fractions, against all subsets, against fresh draws."""

from fractions import Fraction
import itertools
import math

import numpy as np
import pytest

from larpo_jax.evaluators import recall


def rewards(generator, *shape, levels=4):
  """Some of them equal."""
  return generator.integers(0, levels, shape) / levels


def test_sizes_go_as_far_as_the_pool():
  assert recall.sizes(1) == [1]
  assert recall.sizes(99) == [1, 2, 5, 10, 20, 50]
  assert recall.sizes(128) == [1, 2, 5, 10, 20, 50, 100]
  assert recall.sizes(10_000)[-2:] == [5000, 10_000]


@pytest.mark.parametrize("n", [1, 7, 100, 10_000])
def test_a_hit_is_what_fractions_say(n, seed):
  generator = np.random.default_rng(seed)
  for k in {1, n, *generator.integers(1, n + 1, 3).tolist()}:
    counts = sorted({0, 1, n - 1, n, max(n - k, 0), *generator.integers(0, n + 1, 4).tolist()})
    counts = [c for c in counts if 0 <= c <= n]
    found = recall.hit(np.array(counts), n, k)
    for c, value in zip(counts, found):
      # Relative, so that a chance of 1e-4 is right in all its digits too.
      wanted = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
      assert value == pytest.approx(float(wanted), rel=1e-10, abs=0), (n, c, k)
    assert np.all(np.diff(found) >= 0)


def test_chances_to_be_the_best_are_a_distribution():
  for n, k in ((1, 1), (5, 2), (100, 100), (10_000, 37)):
    weights = recall.best_weights(n, k)
    assert weights.shape == (n,)
    assert weights.sum() == pytest.approx(1.0, rel=1e-10)
    assert np.count_nonzero(weights) <= n - k + 1
  for k in (0, 6):
    with pytest.raises(ValueError, match=f"best of {k} cannot be taken from a pool of 5"):
      recall.best_weights(5, k)


def test_it_is_the_mean_over_all_subsets_of_the_pool(seed):
  """Ties by lot: the mean gold of all that share the best score of a subset."""
  generator = np.random.default_rng(seed)
  n = 7
  score, gold = rewards(generator, 2, n), generator.random((2, n))
  correct = rewards(generator, 2, n, levels=2) > 0
  texts = [list("abbacdb"), list("aaaaaaa")]
  for k in range(1, n + 1):
    subsets = [list(each) for each in itertools.combinations(range(n), k)]
    best = [
      np.mean([gold[b][s][score[b][s] == score[b][s].max()].mean() for s in subsets])
      for b in range(2)
    ]
    np.testing.assert_allclose(recall.best_of(score, gold, k), best)
    hits = [np.mean([correct[b][s].any() for s in subsets]) for b in range(2)]
    np.testing.assert_allclose(recall.pass_at(correct, k), hits)
    kept = [np.mean([len({row[i] for i in s}) / k for s in subsets]) for row in texts]
    np.testing.assert_allclose(recall.unique(texts, k), kept)
    tied = [np.mean([np.ptp(row[s]) == 0 for s in subsets]) for row in score]
    np.testing.assert_allclose(recall.all_tied(score, k), tied, atol=1e-12)


def vote(answers, right):
  """The chance that a vote of these answers is right."""
  counts = {name: answers.count(name) for name in answers if name is not None}
  first = [name for name, count in counts.items() if count == max(counts.values())]
  return sum(name in right for name in first) / len(first) if first else 0.0


def test_the_estimates_from_pools_are_those_of_fresh_draws(seed):
  """Means over many pools of 12 are what fresh lists of 5 give, within six standard errors."""
  generator = np.random.default_rng(seed)
  names, chances = ["1", "2", "3", None], [0.3, 0.35, 0.15, 0.2]
  value = {"1": 1.0, "2": 0.4, "3": 0.1, None: 0.0}
  noise = lambda *shape: generator.integers(0, 3, shape)  # noqa: E731

  def draw(*shape):
    drawn = generator.choice(4, shape, p=chances)
    answers = [[names[i] for i in row] for row in drawn]
    gold = np.array([[value[name] for name in row] for row in answers])
    return answers, gold, gold == 1, gold + noise(*shape) / 2

  k, pools, fresh = 5, draw(4000, 12), draw(40_000, 5)
  answers, gold, correct, score = pools
  found = {
    "pass": recall.pass_at(correct, k),
    "best": recall.best_of(score, gold, k),
    "majority": recall.majority(answers, correct, k),
    "unique": recall.unique([[str(name) for name in row] for row in answers], k),
    "tied": recall.all_tied(score, k),
  }
  answers, gold, correct, score = fresh
  top = score == score.max(-1, keepdims=True)
  wanted = {
    "pass": correct.any(-1),
    "best": (gold * top).sum(-1) / top.sum(-1),
    "majority": np.array([vote(row, {"1"}) for row in answers]),
    "unique": np.array([len(set(row)) / k for row in answers]),
    "tied": np.ptp(score, axis=-1) == 0,
  }
  for name, value in found.items():
    error = math.hypot(*(np.std(x) / math.sqrt(len(x)) for x in (value, wanted[name])))
    assert abs(np.mean(value) - np.mean(wanted[name])) < 6 * error, name
    # One list of the pool's first five would be noisier.
    assert np.std(value) < np.std(wanted[name]), name


def test_majority_is_the_mean_over_neighbours(seed):
  generator = np.random.default_rng(seed)
  n = 9
  row = [(None, "1", "2", "3")[i] for i in generator.integers(0, 4, n)]
  right = np.array([[name == "2" for name in row]])
  for k in range(1, n + 1):
    runs = [[row[(start + i) % n] for i in range(k)] for start in range(n)]
    wanted = np.mean([vote(run, {"2"}) for run in runs])
    assert recall.majority([row], right, k)[0] == pytest.approx(wanted)
  assert recall.majority([[None] * 4], np.zeros((1, 4)), 3)[0] == 0
  assert recall.majority([["1"] * 4], np.ones((1, 4)), 3)[0] == 1
  # Of a large pool not every run is counted, and one answer in three still wins by far.
  large = [["1", "1", "2"] * 300]
  correct = np.array([[name == "1" for name in large[0]]])
  assert recall.majority(large, correct, 30)[0] == 1.0


def test_relations_between_the_curves(seed):
  generator = np.random.default_rng(seed)
  B, n = 6, 100
  answers = [[str(i) for i in row] for row in generator.integers(0, 5, (B, n))]
  correct = np.array([[name == "0" for name in row] for row in answers], np.float32)
  gold = np.where(correct > 0, 1.0, rewards(generator, B, n) / 2).astype(np.float32)
  noise, proxy = rewards(generator, B, n), gold + rewards(generator, B, n)
  found = recall.curves(answers, answers, correct=correct, gold=gold, proxy=proxy)
  names = {name.split("@")[0] for name in found}
  assert names == {"pass", "best", "proxy_best", "majority", "unique", "all_tied"}
  assert all(value.shape == (B,) and value.dtype == np.float64 for value in found.values())
  assert all(np.all((value > -1e-9) & (value < 1 + 1e-9)) for value in found.values())
  for name, goes in (("pass", 1), ("best", 1), ("unique", -1), ("all_tied", -1)):
    curve = [found[f"{name}@{k}"] for k in recall.sizes(n) if f"{name}@{k}" in found]
    assert np.all(goes * np.diff(curve, axis=0) > -1e-9), name
  for k in recall.sizes(n):
    # Nothing beats the gold reward as a reranker, and no proxy is worth what it is for itself.
    assert np.all(found[f"proxy_best@{k}"] <= found[f"best@{k}"] + 1e-9)
    np.testing.assert_allclose(recall.best_of(correct, correct, k), found[f"pass@{k}"])
    # A proxy that says nothing leaves what one sample gives, but for its luck with this pool.
    np.testing.assert_allclose(recall.best_of(np.zeros((B, n)), gold, k), gold.mean(-1), rtol=1e-6)
  for name in ("pass", "majority"):
    np.testing.assert_allclose(found[f"{name}@1"], correct.mean(-1), rtol=1e-6)
  np.testing.assert_allclose(found["best@1"], gold.mean(-1), rtol=1e-6)
  # The whole pool: the best there is, and one vote.
  np.testing.assert_allclose(found["best@100"], gold.max(-1), rtol=1e-6)
  votes = [vote(row, {"0"}) for row in answers]
  np.testing.assert_allclose(found["majority@100"], votes)
  # Neither a monotone change of the proxy nor the order of the pool matters to best-of-N.
  order = generator.permutation(n)
  again = recall.best_of(np.exp(proxy)[:, order], gold[:, order], 10)
  np.testing.assert_allclose(again, found["proxy_best@10"])
  assert np.any(np.abs(recall.best_of(noise, gold, 10) - found["best@10"]) > 0.01)
  alone = recall.curves(answers, answers, correct=correct, gold=gold)
  assert not any(name.startswith("proxy") for name in alone)
  assert np.any(alone["all_tied@2"] != found["all_tied@2"]), "by the proxy, where there is one"
