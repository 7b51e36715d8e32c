"""Attention of one block as batched matrix products, and its backward pass.

Every product has the scores as they lie: only arrays as wide as a head are transposed. What XLA
makes of an einsum that contracts over queries is a transposed copy of all scores, several times
slower on a CPU than the product itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row with no key at all averages instead of giving nan


def forward(q, k, v, mask, *, scale: float, softcap: float | None = None):
  """softmax(q k scale) v, [N, T, H, d], and the log-sum-exp of the scores, float32 [N, T, H].

  q: [N, T, H, d]; k, v: [N, S, G, d]; mask: bool [N, T or 1, S]. softcap: scores become
  softcap * tanh(scores / softcap).
  """
  groups = k.shape[2]
  scores = _scores(_grouped(q, groups), k, mask, scale, softcap)
  largest = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - largest)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  output = _product("ngrs,ngsd->ngrd", weights.astype(v.dtype), jnp.swapaxes(v, 1, 2)) / total
  lse = _ungrouped(largest + jnp.log(total), (*q.shape[:3], 1))[..., 0]
  return _ungrouped(output, q.shape), lse


def backward(q, k, v, mask, out, lse, g, *, scale: float, softcap: float | None = None):
  """The gradients of q, k and v, given the output, the log-sum-exp and the output's gradient.

  out and lse may be those of a softmax over more than this block.
  """
  groups = k.shape[2]
  delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)
  q_rows, g_rows = _grouped(q, groups), _grouped(g, groups)
  lse, delta = _grouped(lse[..., None], groups), _grouped(delta, groups)
  scores = _scores(q_rows, k, mask, scale, softcap)
  p = jnp.exp(scores - lse)
  dp = _product("ngrd,ngds->ngrs", g_rows, jnp.transpose(v, (0, 2, 3, 1)))
  ds = p * (dp - delta) * scale
  if softcap is not None:
    ds = ds * (1.0 - jnp.square(jnp.clip(scores / softcap, -1.0, 1.0)))  # 0 where masked
  p, ds = p.astype(v.dtype), ds.astype(q.dtype)
  dq = _product("ngrs,ngsd->ngrd", ds, jnp.swapaxes(k, 1, 2))
  dk = _product("ngdr,ngrs->ngds", jnp.swapaxes(q_rows, 2, 3), ds)
  dv = _product("ngdr,ngrs->ngds", jnp.swapaxes(g_rows, 2, 3), p)
  back = lambda x, like: jnp.transpose(x, (0, 3, 1, 2)).astype(like.dtype)  # noqa: E731
  return _ungrouped(dq, q.shape), back(dk, k), back(dv, v)


def _scores(rows, k, mask, scale, softcap):
  """float32 [N, G, T H / G, S]."""
  scores = _product("ngrd,ngds->ngrs", rows, jnp.transpose(k, (0, 2, 3, 1))) * scale
  if softcap is not None:
    scores = jnp.tanh(scores / softcap) * softcap
  of_token = mask.reshape(len(mask), 1, mask.shape[1], 1, -1)  # the same for all heads of a token
  tokens = (*scores.shape[:2], mask.shape[1], -1, scores.shape[3])
  masked = jnp.where(of_token, scores.reshape(tokens), MASKED)
  return masked.reshape(scores.shape)


def _grouped(x: jax.Array, groups: int) -> jax.Array:
  """[N, T, H, d] -> [N, G, T H / G, d]: the rows that meet one group of keys."""
  n, t, h, d = x.shape
  return jnp.swapaxes(x.reshape(n, t, groups, h // groups * d), 1, 2).reshape(n, groups, -1, d)


def _ungrouped(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """[N, G, T H / G, d] -> that shape, [N, T, H, d]."""
  n, t, h, d = shape
  groups = x.shape[1]
  return jnp.swapaxes(x.reshape(n, groups, t, h // groups * d), 1, 2).reshape(shape)


def _product(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
