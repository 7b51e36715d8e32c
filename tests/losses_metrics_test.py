"""The metrics of kernels, longhand, and what holds of every loss over ranked lists."""

import functools
import itertools
import math

from draws import lists
import jax
import jax.numpy as jnp
from longhand import mean, prompts
import numpy as np
import pytest

from larpo_jax.losses import listwise, pairwise, pointwise
from larpo_jax.types import LogProbs

LISTWISE = [listwise.contrastive, listwise.lambdarank, listwise.listmle]
BETA = 0.1


def metrics(row):
  """The metrics of a kernel with a reward; what TRL has, as TRL has it."""
  g = {id(y): BETA * y.rho for y in row.responses}
  over = lambda f, who: mean(f(y) for y in who)  # noqa: E731
  reward = lambda y: g[id(y)]  # noqa: E731
  return {
    "rewards/chosen": over(reward, row.best),
    "rewards/rejected": over(reward, row.worst),
    "rewards/margins": over(reward, row.best) - over(reward, row.worst),
    "rewards/accuracies": mean(float(reward(w) > reward(l)) for w, l in row.ends),
    "rank/accuracy": mean((np.sign(reward(i) - reward(j)) + 1) / 2 for i, j in row.pairs),
    "rank/ordered": float(bool(row.pairs)),
    "displacement/chosen": over(lambda y: y.rho, row.best),
    "kl": over(lambda y: y.rho, row.responses),
    "logps/chosen": over(lambda y: y.p, row.best),
    "logps/rejected": over(lambda y: y.p, row.worst),
    "logps/chosen_per_token": over(lambda y: y.a, row.best),
    "length/chosen": over(lambda y: y.n, row.best),
    "length/rejected": over(lambda y: y.n, row.worst),
  }


@pytest.mark.parametrize("kernel", [pairwise.dpo, listwise.listmle])
def test_metrics_are_their_formulas(kernel, seed):
  run = jax.jit(functools.partial(kernel, beta=BETA))
  for i in range(10):
    arguments = lists(seed + i, spread=3.0)
    _, found = run(*arguments)
    expected = [metrics(row) if row.responses else None for row in prompts(*arguments)]
    assert {*expected[0], "entropy"} == {*found}
    for key in expected[0]:
      want = [row[key] if row else 0.0 for row in expected]
      np.testing.assert_allclose(found[key], want, 1e-5, 1e-5, err_msg=key)


def test_level_rewards_are_half_right_and_no_accuracy(seed):
  policy, _, batch = lists(seed)
  _, found = pairwise.dpo(policy, policy, batch)
  assert not np.any(found["rewards/accuracies"]), "as TRL: strictly above counts"
  np.testing.assert_array_equal(found["rank/accuracy"], 0.5 * found["rank/ordered"])


def test_entropy_is_the_mean_over_tokens_that_count(seed):
  policy, reference, batch = lists(seed)
  _, found = listwise.listmle(policy, reference, batch)
  expected = [mean(e[m > 0]) for e, m in zip(policy.entropy, policy.mask, strict=True)]
  np.testing.assert_allclose(found["entropy"], expected, 1e-5)
  assert "entropy" not in listwise.listmle(policy.replace(entropy=None), reference, batch)[1]


def of_scores(score, label):
  """policy, reference and batch of one-token responses with the given log-ratios [B, K]."""
  score, label = np.atleast_2d(np.float32(score)), np.atleast_2d(np.float32(label))
  _, _, batch = lists(0, B=score.shape[0], K=score.shape[1], R=1, ragged=False)
  ones = np.ones((*score.shape, 1), np.float32)
  policy = LogProbs(token=score[..., None] - 2, mask=ones)
  return policy, LogProbs(token=-2 * ones, mask=ones), batch.replace(label=label)


@pytest.mark.parametrize("kernel", LISTWISE)
def test_every_ranking_of_two_is_dpo(kernel, seed):
  rng = np.random.default_rng(seed)
  score, label = 30 * rng.normal(size=(64, 2)), rng.permuted(np.tile([0.0, 1.0], (64, 1)), axis=1)

  policy, reference, batch = of_scores(np.zeros(score.shape), label)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(score, kernel):
    loss = kernel(policy.replace(token=policy.token + score[..., None]), reference, batch)[0]
    return loss.sum(), loss

  (_, found), slope = run(jnp.float32(score), kernel)
  (_, expected), expected_slope = run(jnp.float32(score), pairwise.dpo)
  np.testing.assert_allclose(found, expected, 1e-6, 1e-9)
  np.testing.assert_allclose(slope, expected_slope, 1e-6, 1e-9)


@pytest.mark.parametrize("K", [2, 3, 5, 8])
def test_values_at_the_reference(K, seed):
  arguments = of_scores(np.zeros(K), np.random.default_rng(seed).permutation(K))
  expected = {
    pairwise.dpo: math.log(2),
    listwise.contrastive: math.log(K),
    listwise.lambdarank: math.comb(K, 2) * math.log(2),
    listwise.listmle: math.log(math.factorial(K)),
  }
  for kernel, value in expected.items():
    np.testing.assert_allclose(kernel(*arguments)[0], [value], 1e-6)


def test_listmle_is_the_cumulative_form_of_the_sorted_list(seed):
  rng = np.random.default_rng(seed)
  score, label = 20 * rng.normal(size=(16, 6)), rng.permuted(np.tile(np.arange(6), (16, 1)), axis=1)
  ranked = jnp.float32(BETA * np.take_along_axis(score, np.argsort(-label, axis=1), axis=1))
  tail = jax.lax.cumlogsumexp(ranked, axis=1, reverse=True)
  found = listwise.listmle(*of_scores(score, label), beta=BETA)[0]
  np.testing.assert_allclose(found, jnp.sum(tail - ranked, axis=1), 1e-5, 1e-5)


def test_sums_of_smaller_lists(seed):
  rng = np.random.default_rng(seed)
  score, label = 20 * rng.normal(size=5), rng.permutation(5)
  order = np.argsort(-label)
  loss = lambda kernel, who: kernel(*of_scores(score[who], label[who]))[0]  # noqa: E731
  by_pair = sum(loss(pairwise.dpo, list(p)) for p in itertools.combinations(range(5), 2))
  by_tail = sum(loss(listwise.contrastive, order[i:]) for i in range(4))
  np.testing.assert_allclose(loss(listwise.lambdarank, order), by_pair, 1e-5)
  np.testing.assert_allclose(loss(listwise.listmle, order), by_tail, 1e-5)
  np.testing.assert_allclose(loss(pairwise.dpo, order), loss(pairwise.dpo, order[[0, -1]]), 1e-6)


def test_equal_labels_never_compete(seed):
  rng = np.random.default_rng(seed)
  score = 10 * rng.normal(size=4)
  two_groups = of_scores(score, [1, 1, 0, 0])
  for kernel in (listwise.listmle, listwise.contrastive, listwise.lambdarank, pairwise.dpo):
    parts = [
      kernel(*of_scores(score[[i, *low]], [1] + [0] * len(low)))[0]
      for i in (0, 1)
      for low in ([[2, 3]] if kernel in LISTWISE else [[2], [3]])
    ]
    total = sum(parts) / (1 if kernel in (listwise.listmle, listwise.lambdarank) else len(parts))
    np.testing.assert_allclose(kernel(*two_groups)[0], total, 1e-5, err_msg=kernel.__name__)


@pytest.mark.parametrize("kernel", [pairwise.dpo, *LISTWISE])
def test_small_losses_do_not_cancel(kernel):
  loss, _ = kernel(*of_scores([300.0, 0.0], [1.0, 0.0]))
  np.testing.assert_allclose(loss, [math.exp(-30)], 1e-4)


def test_sft_weighs_every_prompt_the_same(seed):
  policy, reference, batch = lists(seed, K=1)
  there = batch.valid[:, 0]
  expected = [-mean(t[m > 0]) for t, m in zip(policy.token, policy.mask, strict=True)]
  np.testing.assert_allclose(pointwise.sft(policy, reference, batch)[0], expected, 1e-5)
  assert there.any()


@pytest.mark.parametrize(
  "wrong",
  [
    dict(beta=0.0),
    dict(beta=-1),
    dict(beta=math.nan),
    dict(label_smoothing=0.6),
    dict(label_smoothing=-0.1),
  ],
)
def test_a_hyper_parameter_out_of_bounds_is_named(wrong, seed):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    pairwise.cdpo(*lists(seed), **wrong)


def test_beta_may_be_traced(seed):
  arguments, betas = lists(seed), np.float32([0.05, 0.1, 0.5])
  found = jax.vmap(lambda beta: listwise.listmle(*arguments, beta=beta)[0])(betas)
  for beta, loss in zip(betas.tolist(), found, strict=True):
    np.testing.assert_allclose(loss, listwise.listmle(*arguments, beta=beta)[0], 1e-5)
