"""Rotary position embeddings, the two halves of a head rotated against each other."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax.models.config import Config, Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> np.ndarray:
  """Radians per position, float32 [head_dim / 2].

  "linear" divides all of them by the factor, "llama3" the slow ones with a ramp between
  (https://arxiv.org/abs/2407.21783, as in transformers' `_compute_llama3_parameters`).
  """
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  frequency = 1.0 / (np.float32(rope.theta) ** exponent)
  if rope.kind == "linear":
    return frequency / np.float32(rope.factor)
  if rope.kind != "llama3":
    return frequency
  turns = rope.original_positions * frequency / (2 * math.pi)
  smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
  smooth = np.clip(smooth, 0.0, 1.0)
  return np.asarray((1 - smooth) * frequency / rope.factor + smooth * frequency, np.float32)


def rotations(config: Config, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine of every rope of the model, float32 [ropes, B, J, T, 1, head_dim / 2]."""
  table = jnp.asarray(np.stack([inverse_frequencies(r, config.head_dim) for r in config.ropes]))
  table = table.reshape(len(config.ropes), *(1,) * (positions.ndim + 1), -1)
  angle = positions.astype(jnp.float32)[None, ..., None, None] * table
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
  """Rotates x [B, J, T, heads, head_dim] by [B, J, T, 1, head_dim / 2], in float32."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = (first * cosine - second * sine, second * cosine + first * sine)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
