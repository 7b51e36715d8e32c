"""Rotary position embeddings, the two halves of a head rotated against each other."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What each kind reads besides theta.
KINDS: dict[str, tuple[str, ...]] = {
  "default": (),
  "linear": ("factor",),
  "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary frequencies: theta ** (-2 i / head_dim), stretched by `kind`."""

  theta: float
  kind: str = "default"
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 1.0
  original_positions: int = 0


def read(raw: Mapping[str, Any], family: str) -> tuple[Rope, ...]:
  """The ropes of a parsed config.json: one, or that of full and that of sliding attention.

  transformers 5 writes `rope_parameters`, older versions `rope_theta` and `rope_scaling`; where a
  file has both, transformers lets `rope_scaling` win.
  """
  parameters = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
  theta = raw.get("rope_theta") or (1e6 if family == "gemma3_text" else 1e4)
  if family != "gemma3_text":
    return (_read(parameters, theta, raw),)
  nested = raw.get("rope_parameters") or {}
  full = dict(nested.get("full_attention") or {}) | dict(raw.get("rope_scaling") or {})
  sliding = dict(nested.get("sliding_attention") or {})
  local = raw.get("rope_local_base_freq") or 1e4
  return _read(full, theta, raw), _read(sliding, local, raw)


def write(ropes: tuple[Rope, ...]) -> dict[str, Any]:
  """What `read` reads, in the new keys and in the old ones, so that any transformers agrees."""
  new = [_parameters(rope) | {"rope_theta": rope.theta} for rope in ropes]
  scaling = _parameters(ropes[0]) if ropes[0].kind != "default" else None
  old = {"rope_theta": ropes[0].theta, "rope_scaling": scaling}
  if len(ropes) == 1:
    return {"rope_parameters": new[0], **old}
  nested = {"full_attention": new[0], "sliding_attention": new[1]}
  return {"rope_parameters": nested, "rope_local_base_freq": ropes[1].theta, **old}


def _parameters(rope: Rope) -> dict[str, Any]:
  values: dict[str, Any] = {"rope_type": rope.kind}
  values |= {name: getattr(rope, name) for name in KINDS[rope.kind]}
  if rope.kind == "llama3":
    values["original_max_position_embeddings"] = rope.original_positions
  return values


def _read(parameters: Mapping[str, Any], theta: float, raw: Mapping[str, Any]) -> Rope:
  values = {key: value for key, value in parameters.items() if value is not None}
  kind = values.pop("rope_type", values.get("type", "default"))
  values.pop("type", None)
  theta = float(values.pop("rope_theta", theta))
  if kind not in KINDS:
    raise ValueError(
      f"rope_type {kind!r} in config.json is not implemented; known: {', '.join(KINDS)}"
    )
  if values.pop("partial_rotary_factor", 1.0) != 1.0:
    raise ValueError("partial_rotary_factor other than 1 in config.json is not implemented")
  original = values.pop("original_max_position_embeddings", raw.get("max_position_embeddings"))
  wrong = sorted(set(KINDS[kind]) ^ set(values))
  if wrong:
    raise ValueError(
      f"rope_type {kind!r} in config.json reads {', '.join(KINDS[kind]) or 'nothing else'}; "
      f"missing or unread: {', '.join(wrong)}"
    )
  if kind != "llama3":
    original = 0
  elif not original:
    raise ValueError("rope_type 'llama3' in config.json lacks original_max_position_embeddings")
  numbers = {key: float(value) for key, value in values.items()}
  return Rope(theta, kind, original_positions=int(original), **numbers)


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


def rotations(
  ropes: tuple[Rope, ...], head_dim: int, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine for positions [...]: float32 [ropes, ..., 1, head_dim / 2]."""
  table = jnp.asarray(np.stack([inverse_frequencies(rope, head_dim) for rope in ropes]))
  table = table.reshape(len(ropes), *(1,) * (positions.ndim + 1), -1)
  angle = positions.astype(jnp.float32)[None, ..., None, None] * table
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
  """Rotates x [..., heads, head_dim] by [..., 1, head_dim / 2], in float32."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = (first * cosine - second * sine, second * cosine + first * sine)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
