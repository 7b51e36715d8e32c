"""Losses of pairs that look at single tokens: spans, divergences at every token, subsets, steps.

In the formulas rho = log p - log p_ref, sums over tokens, w is the chosen and l the rejected
response, n counts tokens, KL_y is the sum over the tokens of y of KL(reference || policy) over the
whole vocabulary, sg stops the gradient, ls is the logarithm of the logistic function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax.losses import _pairs, _scores
from larpo_jax.losses._scores import marked
from larpo_jax.types import Array, Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]


@marked(needs=("kl",), reads=("span",), requires={"data.spans": "the edited spans of responses"})
def rrpo(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, alpha: float = 0.01
) -> Result:
  """Refined regularised preference optimisation: only edited spans are compared, the rest is held.

  Formula: -ls(beta (rho_w - rho_l) over tokens in spans) + alpha KL_w over all tokens
  Source: RRPO, https://arxiv.org/abs/2504.12083, Eq. 5 and 6, and the authors' losses.py.
  Defaults: beta 0.1, alpha 0.01 are those of the authors' script for LLaVA-Video (LongVU: 0.5 and
  0.05); the signature's alpha of 0.5 was not run.
  Traps: needs data.spans=True. Which span a token is in does not matter, as spans are summed before
  the logarithm. The reference runs at every step: KL over the vocabulary is not cached.
  """
  if batch.span is None:
    raise ValueError("rrpo compares edited spans, and the batch has none: set data.spans=True")
  inside = (batch.span > 0).astype(jnp.float32)
  reward = beta * _over(inside, policy, reference, batch)
  held, _ = _pairs.sides(_sequence_kl(policy, batch))
  terms = -jax.nn.log_sigmoid(_scores.margins(reward)) + alpha * held
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(needs=("kl",))
def tdpo1(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1) -> Result:
  """Token-level DPO, first form: the margin less the difference of sequence divergences.

  Formula: -ls(beta (rho_w - rho_l) - beta (KL_l - KL_w))
  Source: TDPO, https://arxiv.org/abs/2404.11999, Eq. 17, and the authors' trainers.py.
  Defaults: beta 0.1 is the authors'.
  Traps: the gradient also goes through KL_w, which it pulls up; `tdpo2` stops that.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  moved = _scores.margins(_sequence_kl(policy, batch))
  terms = -jax.nn.log_sigmoid(_scores.margins(reward) + beta * moved)
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(needs=("kl",))
def tdpo2(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, alpha: float = 0.5
) -> Result:
  """Token-level DPO, second form: the divergence of the rejected response is held down.

  Formula: -ls(beta (rho_w - rho_l) - beta alpha (KL_l - sg[KL_w]))
  Source: TDPO, https://arxiv.org/abs/2404.11999, Eq. 20, and the authors' trainers.py.
  Defaults: beta 0.1, alpha 0.5 are the authors'.
  Traps: KL is that of the reference to the policy, not the other way round. The reference runs at
  every step.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  divergence = _sequence_kl(policy, batch)
  chosen, _ = _pairs.sides(jax.lax.stop_gradient(divergence))
  _, rejected = _pairs.sides(divergence)
  terms = -jax.nn.log_sigmoid(_scores.margins(reward) - beta * alpha * (rejected - chosen))
  return _pairs.result(terms, reward, policy, reference, batch)


def _first_step() -> dict[str, jax.Array]:
  """Before the first step: how many there were."""
  return {"step": jnp.zeros((), jnp.int32)}


@marked(statistics=_first_step)
def sampo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  statistics: dict[str, jax.Array] | None = None,
  *,
  beta: float = 0.1,
) -> tuple[jax.Array, Metrics, dict[str, jax.Array]]:
  """SamPO: DPO on equally many tokens of both; the longer response is sampled down, anew each step.

  Formula: -ls(beta (rho_w - rho_l)), each over min(n_w, n_l) of its tokens, drawn evenly
  Source: SamPO, https://arxiv.org/abs/2406.10957, Eq. 9. Policy and reference are summed over the
  same tokens, as the equation says; the authors' trainer draws for each of them apart.
  Defaults: beta 0.1 is the authors'.
  Traps: in a list of more than two every response is sampled down to the shortest. Tokens are drawn
  by step and row.
  """
  before = _first_step() if statistics is None else statistics
  there = (policy.mask > 0) & batch.valid[..., None]  # [B, K, R]
  length = _scores.length(policy, batch)
  least = jnp.min(jnp.where(batch.valid, length, jnp.inf), axis=-1)[:, None, None]
  key = jax.random.fold_in(jax.random.key(0), before["step"])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(batch.row).astype(jnp.uint32))
  # One draw for a row's positions: of each response that is an even draw of its tokens.
  chance = jax.vmap(lambda key: jax.random.uniform(key, (policy.mask.shape[-1],)))(keys)
  chance = jnp.where(there, chance[:, None, :], jnp.inf)
  place = jnp.argsort(jnp.argsort(chance, axis=-1), axis=-1)
  kept = jnp.where(there & (place < least), 1.0, 0.0)
  reward = beta * _over(kept, policy, reference, batch)
  terms = -jax.nn.log_sigmoid(_scores.margins(reward))
  loss, metrics = _pairs.result(terms, reward, policy, reference, batch)
  return loss, metrics, {"step": before["step"] + 1}


def step_dpo(policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.4) -> Result:
  """Step-DPO: the first step that two solutions do not share, compared after their common prefix.

  Formula: -ls(beta (rho_w - rho_l)) over the tokens from the first that differs
  Source: Step-DPO, https://arxiv.org/abs/2406.18629, Eq. 2, and the authors' trainer.
  Defaults: beta 0.4 is the paper's (its scripts have 0.5 for 7B and 0.4 for 72B, swapped).
  Traps: a step is not the end of an answer: data.eos=False, or the policy learns to stop there.
  The prefix may stand in the prompt, as in the authors' data, or be shared by the responses.
  """
  reward = beta * _over(_after_shared(batch), policy, reference, batch)
  terms = -jax.nn.log_sigmoid(_scores.margins(reward))
  return _pairs.result(terms, reward, policy, reference, batch)


@marked(reads=("span",))
def ddpo(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, gamma: float = 5.0
) -> Result:
  """Dense DPO: edited tokens weigh more than shared ones, and the weights are normalised.

  Formula: -ls(beta (rho_w - rho_l)), rho = (n / N) sum of weight_t (log p_t - log p_ref_t),
  weight gamma in spans and 1 elsewhere, N the sum of the weights
  Source: RLHF-V, https://arxiv.org/abs/2312.00849, Eq. 3, from memory; times n, so that gamma = 1
  is DPO and beta keeps its meaning.
  Defaults: beta 0.1; gamma 5 is the paper's, from memory.
  Traps: needs data.spans=True; without spans all weights are 1 and this is DPO.
  """
  inside = jnp.zeros(policy.mask.shape, bool) if batch.span is None else batch.span > 0
  weight = jnp.where(inside, gamma, 1.0)
  there = jnp.where(batch.valid[..., None], policy.mask, 0.0)
  total = jnp.sum(weight * there, axis=-1, keepdims=True)
  count = jnp.sum(there, axis=-1, keepdims=True)
  scaled = weight * count / jnp.maximum(total, 1e-6)
  reward = beta * _over(scaled, policy, reference, batch)
  terms = -jax.nn.log_sigmoid(_scores.margins(reward))
  return _pairs.result(terms, reward, policy, reference, batch)


def _over(weight: Array, policy: LogProbs, reference: LogProbs, batch: Batch) -> jax.Array:
  """sum of weight (log p - log p_ref) over tokens, [B, K]; 0 where there is no response."""
  there = (policy.mask > 0) & batch.valid[..., None]
  ratio = jnp.where(there, (policy.token - reference.token) * policy.mask, 0.0)
  return jnp.sum(weight * ratio, axis=-1)


def _sequence_kl(policy: LogProbs, batch: Batch) -> jax.Array:
  """The sum over tokens of KL(reference || policy), [B, K]; 0 where there is no response."""
  if policy.kl is None:
    raise ValueError("this kernel reads policy.kl: score the policy with reference=its parameters")
  there = (policy.mask > 0) & batch.valid[..., None]
  return jnp.sum(jnp.where(there, policy.kl, 0.0), axis=-1)


def _after_shared(batch: Batch) -> jax.Array:
  """1 from the first token on that a prompt's responses do not share, float32 [B, 1, R]."""
  here = (batch.response_mask > 0) & batch.valid[..., None]  # [B, K, R]
  lowest = jnp.min(jnp.where(here, batch.response, jnp.iinfo(jnp.int32).max), axis=1)
  highest = jnp.max(jnp.where(here, batch.response, -1), axis=1)
  someone_ended = jnp.any(~here & batch.valid[..., None], axis=1)
  differ = (lowest != highest) | someone_ended  # [B, R]
  return jnp.cumsum(differ, axis=-1).clip(0, 1).astype(jnp.float32)[:, None, :]
