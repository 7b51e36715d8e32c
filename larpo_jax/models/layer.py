"""What one layer is: its weights, what its tokens see, and its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from larpo_jax.models import attention, rope
from larpo_jax.models.config import Config

Weights = Mapping[str, jax.Array]
# The matrices of a layer, and how many leading axes each contracts over.
INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}


@struct.dataclass
class Keys:
  """What tokens leave behind for those that continue them."""

  key: jax.Array  # compute dtype [L, B, J, T, G, d], rotated
  value: jax.Array  # compute dtype [L, B, J, T, G, d]
  position: jax.Array  # int32 [B, J, T]
  valid: jax.Array  # bool [B, J, T]


Prefix = Keys


@struct.dataclass
class Past:
  """A decoding buffer of S tokens, of which the first `index` are written."""

  key: jax.Array  # compute dtype [L, B, J, S, G, d]
  value: jax.Array  # compute dtype [L, B, J, S, G, d]
  position: jax.Array  # int32 [B, J, S]
  valid: jax.Array  # bool [B, J, S]
  index: jax.Array  # int32 []


class Weight(NamedTuple):
  """The shape of a weight, the logical name of each axis, and its initial distribution."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  std: float | None = None  # None: a constant
  constant: float = 0.0


def layer_weights(config: Config) -> dict[str, Weight]:
  """The weights of one layer, without the leading layers axis."""
  d, m, k = config.hidden_size, config.intermediate_size, config.head_dim
  h, g = config.num_heads, config.num_kv_heads
  std = config.initializer_range
  out = std / math.sqrt(2 * config.num_layers)  # two blocks a layer add to the residual stream
  one = 0.0 if config.gemma else 1.0
  weights = {
    "input_norm": Weight((d,), ("embed",), constant=one),
    "q": Weight((d, h, k), ("embed", "heads", "head_dim"), std),
    "k": Weight((d, g, k), ("embed", "kv_heads", "head_dim"), std),
    "v": Weight((d, g, k), ("embed", "kv_heads", "head_dim"), std),
    "o": Weight((h, k, d), ("heads", "head_dim", "embed"), out),
    "mlp_norm": Weight((d,), ("embed",), constant=one),
    "gate": Weight((d, m), ("embed", "mlp"), std),
    "up": Weight((d, m), ("embed", "mlp"), std),
    "down": Weight((m, d), ("mlp", "embed"), out),
  }
  if config.qkv_bias:
    weights["q_bias"] = Weight((h, k), ("heads", "head_dim"))
    weights["k_bias"] = Weight((g, k), ("kv_heads", "head_dim"))
    weights["v_bias"] = Weight((g, k), ("kv_heads", "head_dim"))
  if config.output_bias:
    weights["o_bias"] = Weight((d,), ("embed",))
  if config.mlp_bias:
    weights["gate_bias"] = weights["up_bias"] = Weight((m,), ("mlp",))
    weights["down_bias"] = Weight((d,), ("embed",))
  if config.qk_norm:
    weights["q_norm"] = weights["k_norm"] = Weight((k,), ("head_dim",), constant=one)
  if config.gemma:
    weights["post_attention_norm"] = Weight((d,), ("embed",), constant=one)
    weights["post_mlp_norm"] = Weight((d,), ("embed",), constant=one)
  if config.lora is not None:
    for name in config.lora.targets:
      weights |= _adapters(name, weights[name], config.lora.rank)
  return weights


def _adapters(name: str, weight: Weight, rank: int) -> dict[str, Weight]:
  """A from the inputs to the rank, with PEFT's initial deviation, and B, 0, to the outputs."""
  inputs = INPUTS[name]
  std = (3 * math.prod(weight.shape[:inputs])) ** -0.5
  down = Weight((*weight.shape[:inputs], rank), (*weight.axes[:inputs], "lora"), std)
  up = Weight((rank, *weight.shape[inputs:]), ("lora", *weight.axes[inputs:]))
  return {f"{name}_lora_a": down, f"{name}_lora_b": up}


class Inputs(NamedTuple):
  """What differs between layers; scanned over a leading layers axis."""

  weights: Weights
  window: jax.Array  # int32 []
  rope: jax.Array  # int32 []: which of the model's ropes
  layer: jax.Array  # int32 []
  prefix: tuple[jax.Array, jax.Array] | None  # key, value [B, J', P, G, d]


class Scope(NamedTuple):
  """What is the same in every layer: rotations, and who sees whom but for the windows."""

  rotations: tuple[jax.Array, jax.Array]  # cosine, sine [ropes, B, J, T, 1, d / 2]
  own: jax.Array  # bool [B, J, T, S]
  own_distance: jax.Array | None  # int32 [B, J, T, S]; None without windows
  prefix: jax.Array | None  # bool [B, J', 1, P]
  prefix_distance: jax.Array | None  # int32 [B, J', J / J' * T, P]
  slot: jax.Array | None  # int32 []: where the past is written


def scope(
  config: Config,
  positions: jax.Array,
  valid: jax.Array,
  prefix: Keys | None,
  past: Past | None,
) -> Scope:
  """Masks from validity, order and positions; a past has been advanced to this token."""
  tokens = positions.shape[-1]
  if past is None:
    causal = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
    own, keys = causal & valid[:, :, None, :], positions
  else:
    own, keys = past.valid[:, :, None, :], past.position
  prefix_mask = own_distance = prefix_distance = None
  if prefix is not None:
    prefix_mask = prefix.valid[:, :, None, :]
    lists, groups = positions.shape[1], prefix.position.shape[1]
    if lists % groups:
      raise ValueError(f"{lists} lists of tokens cannot share {groups} prefixes evenly")
  if config.sliding:
    own_distance = positions[..., :, None] - keys[..., None, :]
    if prefix is not None:
      queries = positions.reshape(*prefix.position.shape[:2], -1)
      prefix_distance = queries[..., :, None] - prefix.position[..., None, :]
  return Scope(
    rope.rotations(config.ropes, config.head_dim, positions),
    own,
    own_distance,
    prefix_mask,
    prefix_distance,
    None if past is None else past.index,
  )


def advance(past: Past, positions: jax.Array, valid: jax.Array) -> Past:
  """Notes the token about to be decoded; raises ValueError when there is more than one."""
  if positions.shape[-1] != 1:
    raise ValueError(f"decoding with a past takes one token at a time, not {positions.shape[-1]}")
  start = (0, 0, past.index)
  return dataclasses.replace(
    past,
    position=jax.lax.dynamic_update_slice(past.position, positions, start),
    valid=jax.lax.dynamic_update_slice(past.valid, valid, start),
  )


def apply(config: Config, implementation: str, scope: Scope, carry, inputs: Inputs):
  """carry: x [B, J, T, D] and the past's buffers or None -> the same, and this layer's keys."""
  x, past = carry
  weights = {name: weight.astype(x.dtype) for name, weight in inputs.weights.items()}
  # Norms are applied in float32, so they keep their own precision.
  weights |= {name: weight for name, weight in inputs.weights.items() if name.endswith("norm")}
  attended, past, keys = _attention(config, implementation, scope, weights, x, past, inputs)
  x = x + attended
  y = rms_norm(x, weights["mlp_norm"], config)
  gate = project(config, y, weights, "gate", "...d,dm->...m")
  up = project(config, y, weights, "up", "...d,dm->...m")
  y = project(config, activate(gate, config) * up, weights, "down", "...m,md->...d")
  if config.gemma:
    y = rms_norm(y, weights["post_mlp_norm"], config)
  return (x + y, past), keys


def _attention(config, implementation, scope, weights, x, past, inputs):
  y = rms_norm(x, weights["input_norm"], config)
  query, key, value = (
    project(config, y, weights, name, "...d,dhk->...hk") for name in ("q", "k", "v")
  )
  if config.qk_norm:
    query = rms_norm(query, weights["q_norm"], config)
    key = rms_norm(key, weights["k_norm"], config)
  cosine, sine = (table[inputs.rope] for table in scope.rotations)
  query, key = rope.rotate(query, cosine, sine), rope.rotate(key, cosine, sine)
  keys = None
  if past is None:
    keys = key, value
  else:  # the buffers of all layers are carried, so that the compiler updates them in place
    start = (inputs.layer, 0, 0, scope.slot, 0, 0)
    past = tuple(
      jax.lax.dynamic_update_slice(buffer, new[None].astype(buffer.dtype), start)
      for buffer, new in zip(past, (key, value))
    )
    key, value = (buffer[inputs.layer].astype(x.dtype) for buffer in past)
  own = attention.Block(key, value, _window(scope.own, scope.own_distance, inputs.window))
  prefix = None
  if inputs.prefix is not None:
    mask = _window(scope.prefix, scope.prefix_distance, inputs.window)
    prefix = attention.Block(*(part.astype(x.dtype) for part in inputs.prefix), mask)
  y = attention.attend(
    query,
    own,
    prefix,
    scale=config.query_scale,
    softcap=config.attention_softcap,
    implementation=implementation,
  )
  y = project(config, y, weights, "o", "...hk,hkd->...d")
  if config.gemma:
    y = rms_norm(y, weights["post_attention_norm"], config)
  return y, past, keys


def _window(mask: jax.Array, distance: jax.Array | None, window: jax.Array) -> jax.Array:
  return mask if distance is None else mask & (distance < window)


def project(config: Config, x: jax.Array, weights: Weights, name: str, equation: str) -> jax.Array:
  """x times the weight of that name, plus its bias and its adapters where the model has them."""
  y = jnp.einsum(equation, x, weights[name])
  if f"{name}_bias" in weights:
    bias = weights[f"{name}_bias"]
    y = y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
  if config.lora and name in config.lora.targets:
    inputs, outputs = equation.split(",")[0], equation.split("->")[1]
    low = jnp.einsum(f"{inputs},{inputs[3:]}r->...r", x, weights[f"{name}_lora_a"])
    high = jnp.einsum(f"...r,r{outputs[3:]}->{outputs}", low, weights[f"{name}_lora_b"])
    y = y + high * (config.lora.alpha / config.lora.rank)
  return y


def activate(x: jax.Array, config: Config) -> jax.Array:
  """The MLP's gate."""
  if config.activation == "silu":
    return jax.nn.silu(x)
  return jax.nn.gelu(x, approximate=config.activation == "gelu_pytorch_tanh")


def rms_norm(x: jax.Array, weight: jax.Array, config: Config) -> jax.Array:
  """x / rms(x) times the weight, or times 1 + weight for Gemma, in float32."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + config.norm_eps)
  weight = (1.0 + weight if config.gemma else weight).reshape((1,) * (x.ndim - 1) + (-1,))
  return (y * weight).astype(x.dtype)
