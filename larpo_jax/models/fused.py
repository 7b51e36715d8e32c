"""Attention that never stores the scores: one fused call a block, merged by log-sum-exp.

No gradient flows through the log-sum-exp that a fused kernel returns, so the merged attention has
its own backward pass: each block's flash backward, given the merged output and log-sum-exp, is that
block's part of the gradient (https://arxiv.org/abs/2307.08691, section 3.1.2).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from larpo_jax.models.attention import Block

HALF_PRECISION = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


def attend(query: jax.Array, own: Block, prefix: Block | None, *, scale: float) -> jax.Array:
  """As attention.attend: cuDNN for half precision on a GPU, XLA's own kernels elsewhere."""
  on_gpu = jax.default_backend() == "gpu" and query.dtype in HALF_PRECISION
  blocks = tuple(block for block in (prefix, own) if block is not None)
  tensors = tuple((block.key, block.value) for block in blocks)
  masks = tuple(block.mask for block in blocks)
  return _attend(query, tensors, masks, scale, "cudnn" if on_gpu else "xla")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attend(query, tensors, masks, scale, implementation):
  return _forward(query, tensors, masks, scale, implementation)[0]


def _forward(query, tensors, masks, scale, implementation):
  forward = _cudnn_forward if implementation == "cudnn" else _xla_forward
  outputs, lses = [], []
  for (key, value), mask in zip(tensors, masks):
    folded = _fold_query(query, key.shape[1]), _fold(key), _fold(value), _fold_mask(mask)
    output, lse = forward(*folded, scale)
    outputs.append(output.reshape(query.shape).astype(jnp.float32))
    lses.append(lse.reshape(query.shape[:-1]))
  lse = functools.reduce(jnp.logaddexp, lses)
  shares = [jnp.exp(part - lse)[..., None] for part in lses]
  merged = sum(share * output for share, output in zip(shares, outputs)).astype(query.dtype)
  return merged, (query, tensors, masks, merged, lse)


def _backward(scale, implementation, saved, gradient):
  query, tensors, masks, merged, lse = saved
  backward = _cudnn_backward if implementation == "cudnn" else _xla_backward
  to_query, to_tensors = jnp.zeros(query.shape, jnp.float32), []
  for (key, value), mask in zip(tensors, masks):
    j = key.shape[1]
    q, g, out = (_fold_query(x, j) for x in (query, gradient, merged))
    folded_lse = _fold_query(lse[..., None], j)[..., 0]
    folded = q, _fold(key), _fold(value), _fold_mask(mask)
    dq, dk, dv = backward(*folded, out, folded_lse, g.astype(query.dtype), scale)
    to_query += dq.reshape(query.shape).astype(jnp.float32)
    to_tensors.append((dk.reshape(key.shape), dv.reshape(value.shape)))
  return to_query.astype(query.dtype), tuple(to_tensors), tuple(None for _ in masks)


_attend.defvjp(_forward, _backward)


def _fold(x: jax.Array) -> jax.Array:
  """[B, J, ...] -> [B J, ...]."""
  return x.reshape(-1, *x.shape[2:])


def _fold_query(x: jax.Array, prefixes: int) -> jax.Array:
  """[B, J, T, H, d] -> [B J', J / J' * T, H, d]: the queries of one prefix together."""
  return x.reshape(x.shape[0] * prefixes, -1, *x.shape[3:])


def _fold_mask(mask: jax.Array) -> jax.Array:
  """[B, J, T, S] -> [B J, 1, T, S]."""
  return _fold(mask)[:, None]


def _xla_forward(q, k, v, mask, scale):
  # In float32, because the log-sum-exp comes back in the dtype of the inputs.
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask, scale=scale, implementation="xla", return_residual=True
  )


def _xla_backward(q, k, v, mask, out, lse, g, scale):
  n, t, h, _ = q.shape
  groups = k.shape[2]

  def grouped(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).reshape(n, t, groups, h // groups, *x.shape[3:])

  q32, g32, k32, v32 = grouped(q), grouped(g), k.astype(jnp.float32), v.astype(jnp.float32)
  delta = jnp.sum(g32 * grouped(out), axis=-1)  # [n, t, G, H / G]
  per_query = lambda x: jnp.transpose(x, (0, 2, 3, 1))[..., None]  # noqa: E731
  scores = jnp.einsum("ntgrd,nsgd->ngrts", q32, k32) * scale
  p = jnp.where(mask[:, :, None], jnp.exp(scores - per_query(grouped(lse))), 0.0)
  dv = jnp.einsum("ngrts,ntgrd->nsgd", p, g32)
  ds = p * (jnp.einsum("ntgrd,nsgd->ngrts", g32, v32) - per_query(delta)) * scale
  dq = jnp.einsum("ngrts,nsgd->ntgrd", ds, k32).reshape(q.shape)
  dk = jnp.einsum("ngrts,ntgrd->nsgd", ds, q32)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype)


def _cudnn_operands(q, k, v, mask) -> tuple[list[jax.Array], tuple[int, int]]:
  """What cuDNN takes: even lengths, and the mask as a bias; and the lengths there were."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  t, s = q.shape[1], k.shape[1]
  mask = jnp.broadcast_to(mask, (mask.shape[0], 1, t, s))
  if t % 2 or s % 2:
    q = jnp.pad(q, ((0, 0), (0, t % 2), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, s % 2), (0, 0), (0, 0))) for x in (k, v))
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, t % 2), (0, s % 2)))
  unused = jnp.zeros(0, q.dtype)
  bias = cudnn.combine_bias_and_mask(None, mask, q.dtype)
  return [q, k, v, bias, *[unused] * 6], (t, s)


def _cudnn_static(scale: float) -> tuple[Any, ...]:
  """Scale, seed, dropout, (bias, its gradient), mask type, layout, window."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  layout = cudnn.AttentionLayout.BTNH.value
  return scale, 42, 0.0, (True, True), cudnn.MaskType.NO_MASK, layout, None


def _cudnn_forward(q, k, v, mask, scale):
  # jax.nn.dot_product_attention is this call, but it rounds the log-sum-exp to half precision,
  # which puts an error of several percent on the weights of the merge.
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  operands, (t, _) = _cudnn_operands(q, k, v, mask)
  static = (*_cudnn_static(scale), cudnn.check_cudnn_version(), True)
  out, lse = cudnn._dot_product_attention(*operands, *static)
  return out[:, :t], jnp.transpose(lse, (0, 2, 1))[:, :t]


def _cudnn_backward(q, k, v, mask, out, lse, g, scale):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  operands, (t, s) = _cudnn_operands(q, k, v, mask)
  if t % 2:
    out, g = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (out, g))
    lse = jnp.pad(lse, ((0, 0), (0, 1), (0, 0)))
  saved = (*operands, jnp.transpose(lse, (0, 2, 1)), out)
  static = (*_cudnn_static(scale), True, False)
  dq, dk, dv = cudnn._dot_product_attention_bwd_rule(*static, saved, g)[:3]
  return dq[:, :t], dk[:, :s], dv[:, :s]
