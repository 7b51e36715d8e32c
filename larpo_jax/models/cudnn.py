"""Attention of one block by cuDNN, which never stores the scores, and its backward pass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def _operands(q, k, v, mask) -> tuple[list[jax.Array], tuple[int, int]]:
  """What cuDNN takes: even lengths, and the mask as a bias; and the lengths there were."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  t, s = q.shape[1], k.shape[1]
  mask = jnp.broadcast_to(mask[:, None], (len(mask), 1, t, s))
  if t % 2 or s % 2:
    q = jnp.pad(q, ((0, 0), (0, t % 2), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, s % 2), (0, 0), (0, 0))) for x in (k, v))
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, t % 2), (0, s % 2)))
  unused = jnp.zeros(0, q.dtype)
  bias = cudnn.combine_bias_and_mask(None, mask, q.dtype)
  return [q, k, v, bias, *[unused] * 6], (t, s)


def _static(scale: float) -> tuple[Any, ...]:
  """Scale, seed, dropout, (bias, its gradient), mask type, layout, window."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  layout = cudnn.AttentionLayout.BTNH.value
  return scale, 42, 0.0, (True, True), cudnn.MaskType.NO_MASK, layout, None


def forward(q, k, v, mask, *, scale: float):
  """As `matmuls.forward`."""
  # jax.nn.dot_product_attention is this call, but it rounds the log-sum-exp to half precision,
  # which puts an error of several percent on the weights of the merge.
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  operands, (t, _) = _operands(q, k, v, mask)
  static = (*_static(scale), cudnn.check_cudnn_version(), True)
  out, lse = cudnn._dot_product_attention(*operands, *static)
  return out[:, :t], jnp.transpose(lse, (0, 2, 1))[:, :t]


def backward(q, k, v, mask, out, lse, g, *, scale: float):
  """As `matmuls.backward`."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  operands, (t, s) = _operands(q, k, v, mask)
  if t % 2:
    out, g = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (out, g))
    lse = jnp.pad(lse, ((0, 0), (0, 1), (0, 0)))
  saved = (*operands, jnp.transpose(lse, (0, 2, 1)), out)
  static = (*_static(scale), True, False)
  dq, dk, dv = cudnn._dot_product_attention_bwd_rule(*static, saved, g)[:3]  # type: ignore[call-arg]
  return dq[:, :t], dk[:, :s], dv[:, :s]
