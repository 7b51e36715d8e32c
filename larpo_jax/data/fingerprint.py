"""What weights are known by: a digest of every bit, however they are sharded."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def weights_digest(params: Any, config: Any = None) -> str:
  """Names weights by what they are: the same however they are sharded, 32 hexadecimal digits.

  params is any tree of arrays; config, told apart by its repr, whatever else changes what the model
  says. Each array is reduced to 64 bits where it lies, by an exact sum of mixed words.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  sums = jax.device_get(_fingerprints([leaf for _, leaf in leaves]))
  digest = hashlib.blake2b(repr(config).encode(), digest_size=16)
  for (path, leaf), words in zip(leaves, sums):
    digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
    digest.update(np.asarray(words, "<u4").tobytes())
  return digest.hexdigest()


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> list[jax.Array]:
  return [_fingerprint(leaf) for leaf in leaves]


def _fingerprint(x: jax.Array) -> jax.Array:
  """uint32 [2]: a change of one word always changes it, and the order of words matters."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  width = jnp.uint32 if x.dtype.itemsize >= 4 else jnp.dtype(f"uint{8 * x.dtype.itemsize}")
  words = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  lanes = (_mix(words + _mix(place ^ jnp.uint32(seed))) for seed in (0x9E3779B9, 0x7F4A7C15))
  return jnp.stack([jnp.sum(lane, dtype=jnp.uint32) for lane in lanes])


def _mix(x: jax.Array) -> jax.Array:
  """MurmurHash3's finaliser: a permutation of 32-bit words."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
