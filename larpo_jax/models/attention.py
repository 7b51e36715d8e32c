"""Attention to a shared prefix and to one's own block, under one softmax.

J responses share J' prefixes, J' in {1, J}: the queries are regrouped to [J', J / J' * T] against
each prefix, so that its keys and values are never copied. The blocks are computed one by one and
merged by their log-sum-exp. No gradient flows through that, so the merged attention has a backward
pass of its own: each block's, given the merged output and log-sum-exp, is that block's part of the
gradient (https://arxiv.org/abs/2307.08691, section 3.1.2). Scores are computed again there.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from larpo_jax.models import cudnn, matmuls

OUTPUT = "attention"  # its name for rematerialisation
HALF_PRECISION = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))


class Block(NamedTuple):
  """Keys, values and who sees them.

  key, value: [B, J', S, G, d]; mask: bool [B, J', T or J / J' * T or 1, S].
  """

  key: jax.Array
  value: jax.Array
  mask: jax.Array


def attend(
  query: jax.Array,
  own: Block,
  prefix: Block | None = None,
  *,
  scale: float,
  softcap: float | None = None,
  implementation: str = "xla",
) -> jax.Array:
  """softmax over the prefix's and the own keys together; [B, J, T, H, d] -> [B, J, T, H, d].

  The softmax is float32 whatever the inputs are. implementation "fused" never stores the scores
  where cuDNN computes them, in half precision on a GPU, and is as "xla" elsewhere; it cannot
  soft-cap scores: raises ValueError.
  """
  fused = implementation == "fused"
  if fused and softcap is not None:
    raise ValueError("attention 'fused' cannot soft-cap scores as this model does; use 'xla'")
  on_gpu = jax.default_backend() == "gpu" and query.dtype in HALF_PRECISION
  blocks = tuple(block for block in (prefix, own) if block is not None)
  tensors = tuple((block.key, block.value) for block in blocks)
  masks = tuple(block.mask for block in blocks)
  return _attend(query, tensors, masks, scale, softcap, fused and on_gpu)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(query, tensors, masks, scale, softcap, fused):
  return _forward(query, tensors, masks, scale, softcap, fused)[0]


def _forward(query, tensors, masks, scale, softcap, fused):
  outputs, lses = [], []
  for (key, value), mask in zip(tensors, masks):
    folded = _fold_query(query, key.shape[1]), _fold(key), _fold(value), _fold(mask)
    compute = cudnn.forward if fused else functools.partial(matmuls.forward, softcap=softcap)
    output, lse = compute(*folded, scale=scale)
    outputs.append(output.reshape(query.shape).astype(jnp.float32))
    lses.append(lse.reshape(query.shape[:-1]))
  lse = functools.reduce(jnp.logaddexp, lses)
  if len(outputs) == 1:
    merged = outputs[0]
  else:
    merged = sum(jnp.exp(part - lse)[..., None] * out for part, out in zip(lses, outputs))
  merged, lse = checkpoint_name(merged.astype(query.dtype), OUTPUT), checkpoint_name(lse, OUTPUT)
  return merged, (query, tensors, masks, merged, lse)


def _backward(scale, softcap, fused, saved, gradient):
  query, tensors, masks, merged, lse = saved
  to_query, to_tensors = [], []
  for (key, value), mask in zip(tensors, masks):
    j = key.shape[1]
    q, g, out, total = (_fold_query(x, j) for x in (query, gradient, merged, lse))
    folded = q, _fold(key), _fold(value), _fold(mask), out, total, g.astype(query.dtype)
    compute = cudnn.backward if fused else functools.partial(matmuls.backward, softcap=softcap)
    dq, dk, dv = compute(*folded, scale=scale)
    to_query.append(dq.reshape(query.shape).astype(jnp.float32))
    to_tensors.append((dk.reshape(key.shape), dv.reshape(value.shape)))
  return sum(to_query).astype(query.dtype), tuple(to_tensors), tuple(None for _ in masks)


_attend.defvjp(_forward, _backward)


def _fold(x: jax.Array) -> jax.Array:
  """[B, J, ...] -> [B J, ...]."""
  return x.reshape(-1, *x.shape[2:])


def _fold_query(x: jax.Array, prefixes: int) -> jax.Array:
  """[B, J, T, H, ...] -> [B J', J / J' * T, H, ...]: the queries of one prefix together."""
  return x.reshape(x.shape[0] * prefixes, -1, *x.shape[3:])
