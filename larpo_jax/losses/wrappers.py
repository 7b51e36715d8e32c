"""Functions that make a kernel from a kernel: noise, weights, lengths, divergences, likelihood.

In a config the kernel is a spec of its own: dict(name="wrappers.robust", epsilon=0.1,
kernel=dict(name="pairwise.ipo", beta=0.5)). Metrics stay those of the kernel, on plain log-probs.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _scores
from larpo_jax.types import Batch, Kernel, LogProbs, Metrics

LARGEST = 80.0  # exponents are cut there, as in TRL: exp(80) is still a float32


def robust(kernel: Kernel, *, epsilon: float = 0.1) -> Kernel:
  """Robust to labels that are flipped with a known chance: an unbiased estimate of the clean loss.

  Formula: ((1 - eps) kernel(w, l) - eps kernel(l, w)) / (1 - 2 eps)
  Source: rDPO, https://arxiv.org/abs/2403.00409, Eq. 12, for any kernel of pairs; around
  `pairwise.dpo` it is TRL's "robust".
  Defaults: eps = epsilon 0.1 is TRL's recipe.
  Traps: unbounded below: with the logistic loss it is DPO less eps z / (1 - 2 eps), so margins
  diverge once single pairs are memorised. The loss can be negative. Lists are reversed.
  """
  _scores.require("epsilon", epsilon, lambda e: 0.0 <= e < 0.5, "from 0 to below 0.5")

  def wrapped(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
    kept, flipped, metrics = _both_orders(kernel, policy, reference, batch)
    return ((1 - epsilon) * kept - epsilon * flipped) / (1 - 2 * epsilon), metrics

  return _like(kernel, wrapped)


def smoothed(kernel: Kernel, *, epsilon: float = 0.1) -> Kernel:
  """Conservative about labels that may be wrong: the other order is believed a little, too.

  Formula: (1 - eps) kernel(w, l) + eps kernel(l, w)
  Source: cDPO, https://ericmitchell.ai/cdpo.pdf, for any kernel of pairs; around `pairwise.dpo` it
  is TRL's "sigmoid" with label_smoothing, `pairwise.cdpo`.
  Defaults: eps = epsilon 0.1 is TRL's recipe.
  Traps: the other sign than `robust`, which undoes what this one fears: margins stop at the
  log-odds of the labels. Lists are reversed.
  """
  _scores.require("epsilon", epsilon, lambda e: 0.0 <= e <= 0.5, "from 0 to 0.5")

  def wrapped(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
    kept, flipped, metrics = _both_orders(kernel, policy, reference, batch)
    return (1 - epsilon) * kept + epsilon * flipped, metrics

  return _like(kernel, wrapped)


def distributionally_robust(kernel: Kernel, *, temperature: float = 1.0) -> Kernel:
  """Prompts of the batch with a large loss, which may be mislabelled, count less.

  Formula: -b log mean over the batch of exp(-kernel / b), b = temperature
  Source: Dr.DPO, https://arxiv.org/abs/2407.07880, Eq. 12, for any kernel that compares; around
  `pairwise.dpo` it is `batchwise.dr_dpo`.
  Defaults: b (mode_weight) 1 is the authors'.
  Traps: every prompt of the batch reports the same loss, 0 where all labels are equal. The batch
  size matters.
  """
  bounds = "above 0 and finite"
  _scores.require("temperature", temperature, lambda b: 0.0 < b < math.inf, bounds)

  def wrapped(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
    loss, metrics = kernel(policy, reference, batch)
    return _scores.soft_least(loss, _scores.ordered(batch), batch, temperature), metrics

  return _like(kernel, wrapped, couples_prompts=True)


def wpo(kernel: Kernel, *, largest: float = 1.0) -> Kernel:
  """WPO: pairs count as much as the policy would write them itself.

  Formula: sg[min(largest, w_best w_worst)] kernel, w = exp(mean over tokens of log p(token) -
  log sum over the vocabulary of p^2)
  Source: WPO, https://arxiv.org/abs/2406.11827, Eq. 2, and the authors' run_wpo.py.
  Defaults: largest 1 is the authors'; TRL's use_weighting has no bound, largest=inf.
  Traps: weights are not normalised, so they lower the step size. Where several share the best or
  the worst label, their geometric mean.
  """

  def wrapped(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
    if policy.collision is None:
      raise ValueError("wpo reads policy.collision: score the policy with collision=True")
    aligned = jnp.where(policy.mask > 0, policy.token - policy.collision, 0.0)
    log_weight = jnp.sum(aligned, axis=-1) / jnp.maximum(policy.length, 1.0)
    log_weight = jnp.where(batch.valid, log_weight, 0.0)
    ends = (_scores.best(batch), _scores.worst(batch))
    total = sum(masked.mean(log_weight, who, -1) for who in ends)
    bound = jnp.minimum(jnp.log(largest), LARGEST)
    weight = jax.lax.stop_gradient(jnp.exp(jnp.minimum(total, bound)))
    loss, metrics = kernel(policy, reference, batch)
    return weight * loss, metrics | {"wpo/weight": weight}

  return _like(kernel, wrapped, needs=(*getattr(kernel, "needs", ()), "collision"))


def ld_dpo(kernel: Kernel, *, alpha: float = 0.5) -> Kernel:
  """LD-DPO: what a response says beyond the length of the shortest of its list counts less.

  Formula: kernel with log p = sum of the first m tokens + alpha sum of the others, m the least
  length; so for the reference too
  Source: LD-DPO, https://arxiv.org/abs/2409.06411, Eq. 8; TRL's ld_alpha.
  Defaults: alpha 0.5 is TRL's recipe.
  Traps: LLaMA-Factory applies it to the policy only. Means over tokens still divide by all of them.
  """

  def wrapped(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
    length = jnp.where(batch.valid, policy.length, jnp.inf)
    place = jnp.cumsum(jnp.where(policy.mask > 0, 1.0, 0.0), axis=-1)  # from 1 on
    tail = place > jnp.min(length, axis=-1)[:, None, None]
    scale = jnp.where(tail, alpha, 1.0)
    # Not the mask: what counts 0 would be missing from the length.
    cut = lambda x: dataclasses.replace(x, token=x.token * scale)  # noqa: E731
    return kernel(cut(policy), cut(reference), batch)

  return _like(kernel, wrapped)


def forward_kl(kernel: Kernel) -> Kernel:
  """f-DPO with the forward KL divergence: rewards 1 - p_ref / p.

  Formula: kernel with log p - log p_ref = rho replaced by 1 - exp(-rho)
  Source: f-DPO, https://arxiv.org/abs/2309.16240, Table 1; TRL's "forward_kl".
  Traps: exponents are cut at 80, where the gradient ends. Logged rewards are those of rho.
  """
  return _transformed(kernel, lambda rho: -jnp.expm1(jnp.minimum(-rho, LARGEST)))


def js_divergence(kernel: Kernel) -> Kernel:
  """f-DPO with the Jensen-Shannon divergence.

  Formula: kernel with log p - log p_ref = rho replaced by log 2 + ls(rho)
  Source: f-DPO, https://arxiv.org/abs/2309.16240, Table 1; TRL's "js_divergence".
  Traps: bounded above by log 2: likely responses gain nothing more. Logged rewards are of rho.
  """
  return _transformed(kernel, lambda rho: math.log(2.0) + jax.nn.log_sigmoid(rho))


def alpha_divergence(kernel: Kernel, *, alpha: float = 0.5) -> Kernel:
  """f-DPO with an alpha divergence: alpha towards 1 is the reverse KL, 0 is the forward KL.

  Formula: kernel with log p - log p_ref = rho replaced by (exp((alpha - 1) rho) - 1) / (alpha - 1)
  Source: f-DPO, https://arxiv.org/abs/2309.16240, Table 1; TRL's "alpha_divergence".
  Defaults: alpha 0.5 is TRL's.
  Traps: alpha is TRL's; the paper's tables may count it the other way round (1 - alpha). Exponents
  are cut at 80, as in TRL. Logged rewards are those of rho.
  """
  _scores.require("alpha", alpha, lambda a: a != 1.0, "other than 1: that is no wrapper at all")
  power = alpha - 1.0
  return _transformed(kernel, lambda rho: jnp.expm1(jnp.minimum(power * rho, LARGEST)) / power)


def with_sft(kernel: Kernel, *, sft: float = 1.0) -> Kernel:
  """The kernel and the likelihood of the best response: keeps it from becoming less likely.

  Formula: kernel - sft log p(best) / n(best)
  Source: iterative RPO, https://arxiv.org/abs/2404.19733, Eq. 1; TRL's rpo_alpha, now loss_type
  ["sigmoid", "sft"].
  Defaults: sft 1 is the paper's.
  Traps: the mean over tokens is that of each response; TRL takes one mean over the batch's tokens.
  A list whose labels are all equal has no best response here.
  """

  def wrapped(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
    loss, metrics = kernel(policy, reference, batch)
    nll = -masked.mean(policy.mean, _scores.best(batch), -1)
    return loss + sft * jnp.where(_scores.ordered(batch), nll, 0.0), metrics

  return _like(kernel, wrapped)


def _both_orders(
  kernel: Kernel, policy: LogProbs, reference: LogProbs, batch: Batch
) -> tuple[jax.Array, jax.Array, Metrics]:
  """The loss of each list, that of the list turned round, and the metrics of the first."""
  kept, metrics = kernel(policy, reference, batch)
  flipped, _ = kernel(policy, reference, dataclasses.replace(batch, label=-batch.label))
  return kept, flipped, metrics


def _transformed(kernel: Kernel, score: Callable[[jax.Array], jax.Array]) -> Kernel:
  """The kernel on score(log p - log p_ref), its metrics on the plain log-ratio."""

  def wrapped(policy: LogProbs, reference: LogProbs, batch: Batch) -> tuple[jax.Array, Metrics]:
    _, metrics = kernel(policy, reference, batch)
    value = score(_scores.log_ratio(policy, reference, batch))  # [B, K]
    there = (policy.mask > 0) & batch.valid[..., None]
    # One value for a response, on its first token: the sum is the value to the last bit.
    mask = jnp.where(there, 1.0, 0.0)
    first = there & (jnp.cumsum(mask, axis=-1) == 1)
    token = jnp.where(first, value[..., None], 0.0)
    flat = dataclasses.replace(policy, token=token, mask=mask)
    loss, _ = kernel(flat, dataclasses.replace(flat, token=jnp.zeros_like(token)), batch)
    return loss, metrics

  return _like(kernel, wrapped)


def _like(kernel: Kernel, wrapped: Any, **attributes: Any) -> Kernel:
  """What is wrapped, with the name and the attributes of the kernel, and others."""
  if getattr(kernel, "statistics", None):
    name = getattr(kernel, "__name__", kernel)
    raise ValueError(f"{name} carries statistics from step to step, and can not be wrapped")
  functools.update_wrapper(wrapped, kernel)
  for name, value in attributes.items():
    setattr(wrapped, name, value)
  return wrapped
