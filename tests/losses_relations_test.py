"""Relations among kernels, and limits: what papers say of one loss in terms of another."""

import functools
import math

from draws import lists
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from larpo_jax.losses import (
  batchwise,
  exploration,
  listwise,
  margins,
  pairwise,
  pointwise,
  reference_free,
  reward_models,
  scored,
  targets,
  tokenwise,
  unpaired,
  wrappers,
)
from larpo_jax.types import LogProbs

DPO = functools.partial(pairwise.dpo, beta=0.1)


def both(kernel, arguments):
  """Loss and gradient."""
  policy, reference, batch = arguments

  def total(token):
    loss = kernel(policy.replace(token=token), reference, batch)[0]
    return loss.sum(), loss

  gradient, loss = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(policy.token))
  return np.asarray(loss), np.asarray(gradient)


def same(one, other, arguments, rtol=1e-5, atol=1e-5):
  for x, y in zip(both(one, arguments), both(other, arguments), strict=True):
    np.testing.assert_allclose(x, y, rtol, atol)


def without_kl(arguments):
  policy, reference, batch = arguments
  return policy.replace(kl=np.zeros_like(policy.kl)), reference, batch


def of(module, **given):
  return functools.partial(module, **given)


IS_DPO = {
  "spin": margins.spin,
  "cdpo, eps 0": of(pairwise.cdpo, label_smoothing=0.0),
  "focalpo, gamma 0": of(margins.focalpo, gamma=0.0),
  "r_dpo, alpha 0": of(margins.r_dpo, alpha=0.0),
  "odpo, alpha 0": of(margins.odpo, alpha=0.0),
  "dpop, penalty 0": of(margins.dpop, penalty=0.0),
  "dpo_shift, shift 1": of(margins.dpo_shift, shift=1.0),
  "ddpo, gamma 1": of(tokenwise.ddpo, gamma=1.0),
  "tdpo2, alpha 0": of(tokenwise.tdpo2, alpha=0.0),
  "selm, alpha 0": of(exploration.selm, alpha=0.0),
  "xpo, alpha 0": of(exploration.xpo, alpha=0.0),
  "madpo, c between 1 and 1": of(scored.madpo, c_max=1.0 + 1e-6, c_min=1.0 - 1e-6),
  "robust, eps 0": wrappers.robust(DPO, epsilon=0.0),
  "ld_dpo, alpha 1": wrappers.ld_dpo(DPO, alpha=1.0),
  "smoothed, eps 0": wrappers.smoothed(DPO, epsilon=0.0),
  "with_sft, sft 0": wrappers.with_sft(DPO, sft=0.0),
  "alpha_divergence towards 1": wrappers.alpha_divergence(DPO, alpha=1.0 - 1e-4),
}


def _unweighted(*arguments):
  loss, found = wrappers.wpo(DPO, largest=0.5)(*arguments)
  return loss / found["wpo/weight"], found


def test_wpo_is_dpo_times_its_weight(seed):
  same(_unweighted, DPO, lists(seed))


@pytest.mark.parametrize("name", IS_DPO)
def test_without_what_is_its_own_it_is_dpo(name, seed):
  kernel = IS_DPO[name]
  if isinstance(kernel, functools.partial) or kernel is margins.spin:
    kernel = functools.partial(kernel, beta=0.1)
  loose = 1e-3 if "towards" in name else 1e-5  # the limit is left out by 1e-4
  same(kernel, DPO, lists(seed), loose, loose)


def test_tdpo_without_a_divergence_is_dpo(seed):
  arguments = without_kl(lists(seed))
  same(tokenwise.tdpo1, DPO, arguments)
  same(tokenwise.tdpo2, DPO, arguments)
  policy, reference, batch = arguments
  everywhere = batch.replace(span=np.ones_like(batch.span))
  same(tokenwise.rrpo, DPO, (policy, reference, everywhere))


@pytest.mark.parametrize(
  "kernel",
  [
    listwise.contrastive,
    listwise.lambdarank,
    listwise.listmle,
    of(listwise.code_contrastive, positives=1, negatives=1),
    of(listwise.code_matched_pairs, pairs=1),
    targets.multi_positive,
    of(targets.swepo, alpha=0.0),
    of(targets.infonca, temperature=1e-3),
  ],
)
def test_of_two_responses_every_ranking_is_dpo(kernel, seed):
  arguments = lists(seed, K=2, tied=False)
  same(functools.partial(kernel, beta=0.1), DPO, arguments)


def test_nca_of_two_is_the_pair_form(seed):
  arguments = lists(seed, K=2, tied=False)
  same(of(targets.nca, beta=0.1, temperature=1e-3), of(pairwise.nca, beta=0.1), arguments)


def test_listnet_and_pairwise_preference_on_one_hot_labels(seed):
  policy, reference, batch = lists(seed)
  batch = batch.replace(label=np.float32(np.arange(4) == 1) * np.ones((8, 1), np.float32))
  arguments = (policy, reference, batch)
  same(of(targets.listnet, beta=0.1), of(listwise.contrastive, beta=0.1), arguments)
  flat = (policy, reference.replace(token=np.zeros_like(reference.token)), batch)
  same(reward_models.pairwise_preference, of(listwise.contrastive, beta=1.0), flat)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
def test_robust_and_conservative_are_linear_in_the_margin(eps, seed):
  arguments = lists(seed, ragged=False, tied=False, spread=5.0)
  plain, found = DPO(*arguments)
  z = found["rewards/margins"]
  robust, _ = wrappers.robust(DPO, epsilon=eps)(*arguments)
  np.testing.assert_allclose(robust, plain - eps * z / (1 - 2 * eps), 1e-4, 1e-5)
  smoothed, _ = pairwise.cdpo(*arguments, beta=0.1, label_smoothing=eps)
  np.testing.assert_allclose(smoothed, plain + eps * z, 1e-5, 1e-5)


def test_wrappers_around_dpo_are_the_kernels_of_their_papers(seed):
  for K in (2, 4):
    arguments = lists(seed, K=K)
    cdpo = of(pairwise.cdpo, beta=0.1, label_smoothing=0.3)
    same(wrappers.smoothed(DPO, epsilon=0.3), cdpo, arguments)
    dr_dpo = of(batchwise.dr_dpo, beta=0.1, temperature=0.7)
    same(wrappers.distributionally_robust(DPO, temperature=0.7), dr_dpo, arguments)


def test_robust_is_unbiased_under_flips(seed):
  policy, reference, batch = lists(seed)
  kernel, eps = wrappers.robust(of(pairwise.ipo, beta=0.5), epsilon=0.2), 0.2
  there, _ = kernel(policy, reference, batch)
  back, _ = kernel(policy, reference, batch.replace(label=-batch.label))
  clean, _ = pairwise.ipo(policy, reference, batch, beta=0.5)
  np.testing.assert_allclose((1 - eps) * there + eps * back, clean, 1e-5, 1e-5)


def test_alphapo_towards_0_is_simpo(seed):
  arguments = lists(seed)
  same(
    of(reference_free.alphapo, alpha=1e-4), of(pairwise.simpo, beta=2.0, gamma=1.0), arguments, 1e-2
  )
  with pytest.raises(ValueError, match="alpha"):
    reference_free.alphapo(*arguments, alpha=0.0)


def test_soft_label_of_a_sure_judge_is_dpo_and_of_rpo_the_gradient(seed):
  arguments = lists(seed)
  policy, reference, batch = arguments
  sure = policy, reference, batch.replace(score=100 * batch.label)
  same(of(scored.soft_label, beta=0.1), DPO, sure)
  soft = both(of(scored.soft_label, beta=0.1, temperature=0.5), arguments)
  kl = both(of(scored.rpo_backward_kl, beta=0.1, eta=2.0), arguments)
  np.testing.assert_allclose(soft[1], kl[1], 1e-5, 1e-6)
  assert (soft[0] >= kl[0] - 1e-6).all(), "they differ by the entropy of the target"


def test_squares_are_one_loss_at_other_scales(seed):
  arguments = lists(seed)
  distilled = of(scored.reward_distillation, beta=0.2)
  same(of(scored.rpo_squared, beta=0.2, eta=1.0), distilled, arguments)
  rebel = both(of(scored.rebel, eta=5.0), arguments)
  for x, y in zip(rebel, both(distilled, arguments), strict=True):
    np.testing.assert_allclose(x, 25 * y, 1e-4, 1e-4)


def test_sppo_of_a_sure_judge_is_half_the_hard_one(seed):
  """P of the chosen of two is (1/2 + 1) / 2: its own half counts."""
  policy, reference, batch = lists(seed, K=2, tied=False, ragged=False)
  sure = policy, reference, batch.replace(score=100 * batch.label)
  soft = both(of(scored.sppo, beta=0.1), sure)
  hard = both(of(pairwise.sppo_hard, beta=0.2), sure)
  for x, y in zip(soft, hard, strict=True):
    np.testing.assert_allclose(x, 0.5 * y, 1e-4, 1e-4)


def test_cal_dpo_is_dpo_and_hard_sppo(seed):
  arguments = lists(seed)
  dpo = both(of(pairwise.dpo, beta=1.0), arguments)
  squares = both(of(pairwise.sppo_hard, beta=0.1), arguments)
  found = both(of(margins.cal_dpo, beta=0.1, calibration=0.3), arguments)
  for x, y, z in zip(found, dpo, squares, strict=True):
    np.testing.assert_allclose(x, y + 0.3 * z, 1e-4, 1e-4)


def test_chi_po_is_dpo_where_ratios_are_small_and_flat_beyond_its_limit(seed):
  policy, reference, batch = lists(seed, distance=0.3)
  lower = policy.replace(token=np.where(policy.mask > 0, reference.token - 20.0, 0.0))
  lower = lower.replace(token=(lower.token + 0.3 * policy.token * policy.mask).astype(np.float32))
  same(of(margins.chi_po, beta=0.1), DPO, (lower, reference, batch))
  loss, gradient = both(of(margins.chi_po, beta=10.0, limit=1e-3), (policy, reference, batch))
  np.testing.assert_allclose(loss[loss > 0], math.log(2), 2e-3)
  assert np.mean(gradient == 0) > 0.8


@pytest.mark.parametrize("wrapper", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_divergences_are_dpo_near_the_reference(wrapper, seed):
  """s(0) = 0; s'(0) = 1, and 1/2 for Jensen-Shannon's."""
  slope = 0.5 if wrapper == "js_divergence" else 1.0
  policy, reference, batch = lists(seed, distance=1e-4)
  same(
    getattr(wrappers, wrapper)(DPO), of(pairwise.dpo, beta=0.1 * slope), (policy, reference, batch),
    1e-3, 1e-5,
  )  # fmt: skip


@pytest.mark.parametrize("rho", [-300.0, -100.0, -70.0, 5.0, 100.0, 1e4])
def test_exponents_are_cut_at_80(rho):
  policy, reference, batch = of_scores([rho, 0.0], [1.0, 0.0])
  score = 1 - math.exp(min(-rho, 80.0))
  loss, _ = wrappers.forward_kl(DPO)(policy, reference, batch)
  np.testing.assert_allclose(loss, np.logaddexp(0.0, -0.1 * score), 1e-5)
  score = -2 * (math.exp(min(-0.5 * rho, 80.0)) - 1)
  loss, _ = wrappers.alpha_divergence(DPO, alpha=0.5)(policy, reference, batch)
  np.testing.assert_allclose(loss, np.logaddexp(0.0, -0.1 * score), 1e-5)


def of_scores(score, label):
  """policy, reference and batch of one-token responses with the given log-ratios."""
  score, label = np.atleast_2d(np.float32(score)), np.atleast_2d(np.float32(label))
  _, _, batch = lists(0, B=score.shape[0], K=score.shape[1], R=1, ragged=False)
  ones = np.ones((*score.shape, 1), np.float32)
  policy = LogProbs(token=score[..., None] - 2, mask=ones)
  return policy, LogProbs(token=-2 * ones, mask=ones), batch.replace(label=label, score=label)


@pytest.mark.parametrize(("h", "weight"), [(-8.0, 1.0), (-5.0, 0.038), (-2.0, 0.158), (0.0, 1.0)])
def test_madpo_has_the_weights_of_its_table(h, weight):
  policy, reference, batch = of_scores([0.7, -0.4], [1.0, 0.0])
  batch = batch.replace(score=np.float32([[h, 0.0]]))
  found, _ = scored.madpo(
    policy, reference, batch, c_max=2.0, c_min=0.5, tau=math.log(0.999 / 0.001)
  )
  plain, _ = pairwise.dpo(policy, reference, batch)
  np.testing.assert_allclose(found / plain, weight, 0, 6e-4)


def test_madpo_scales_nothing_at_tau(seed):
  policy, reference, batch = lists(seed, K=2, tied=False, ragged=False)
  kernel = of(scored.madpo_margin, c_max=3.0, c_min=0.3, tau=1.5, beta=0.1)
  same(kernel, DPO, (policy, reference, batch.replace(score=1.5 * batch.label)))


def test_exo_is_a_divergence(seed):
  score = 30 * np.random.default_rng(seed).normal(size=(64, 2))
  loss, _ = pairwise.exo(*of_scores(score, np.tile([1.0, 0.0], (64, 1))), label_smoothing=0.1)
  assert (loss >= -1e-6).all()
  best = math.log(0.9 / 0.1) / 0.1
  loss, _ = pairwise.exo(*of_scores([best, 0.0], [1.0, 0.0]), beta=0.1, label_smoothing=0.1)
  np.testing.assert_allclose(loss, 0.0, 0, 1e-6)


def test_hinge_is_flat_past_its_margin(seed):
  _, gradient = both(of(pairwise.hinge, beta=1.0), of_scores([1.5, 0.0], [1.0, 0.0]))
  assert not gradient.any()


def test_dr_dpo_between_the_mean_and_the_least(seed):
  arguments = lists(seed, ragged=False, tied=False)
  plain = np.asarray(DPO(*arguments)[0])
  far, near = (batchwise.dr_dpo(*arguments, beta=0.1, temperature=t)[0] for t in (1e3, 1e-3))
  np.testing.assert_allclose(far, plain.mean(), 1e-3)
  np.testing.assert_allclose(near, plain.min(), 0, 1e-3 * math.log(8) + 1e-5)


def test_aot_of_one_prompt_is_dpo(seed):
  arguments = jax.tree.map(lambda x: x[:1], lists(seed, tied=False))
  same(of(batchwise.aot, beta=0.1), DPO, arguments)
  same(of(batchwise.aot_unpaired, beta=0.1), DPO, arguments)
  same(of(batchwise.dr_dpo, beta=0.1), DPO, arguments)


def test_kto_without_other_prompts_is_apo(seed):
  policy, reference, batch = lists(seed)
  verdicts = batch.replace(label=np.where(batch.label == 0, 1.0, batch.label).astype(np.float32))
  same(unpaired.kto, unpaired.apo_zero_unpaired, (policy, reference, verdicts))


def test_sampo_and_sft_tokens_at_equal_lengths(seed):
  policy, reference, batch = lists(seed, ragged=False)
  loss = tokenwise.sampo(policy, reference, batch, beta=0.1)[0]
  np.testing.assert_allclose(loss, DPO(policy, reference, batch)[0], 1e-5, 1e-6)
  same(pointwise.sft_tokens, pointwise.sft, (policy, reference, batch))
  same(wrappers.ld_dpo(DPO, alpha=0.3), DPO, (policy, reference, batch))


def test_step_dpo_is_dpo_where_shared_tokens_are_as_likely(seed):
  """Which they are in any model: the same prefix, the same token."""
  policy, reference, batch = lists(seed, ragged=False)
  start = np.arange(5) < 2
  token = lambda x: np.where(start, x.token[:, :1], x.token)  # noqa: E731
  batch = batch.replace(response=np.where(start, 7, batch.response + 10 * np.arange(4)[:, None]))
  arguments = policy.replace(token=token(policy)), reference.replace(token=token(reference)), batch
  loss, gradient = both(of(tokenwise.step_dpo, beta=0.1), arguments)
  np.testing.assert_allclose(loss, DPO(*arguments)[0], 1e-4, 1e-5)
  assert not gradient[..., :2].any()
