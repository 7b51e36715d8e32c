"""What one layer is: its weights and its arithmetic, whatever the tokens are laid out as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from larpo_jax.models import rope
from larpo_jax.models.config import Config

Weights = Mapping[str, jax.Array]
# The matrices of a layer, and how many leading axes each contracts over.
INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}


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


class Mixed(NamedTuple):
  """What attention gives: mixed values, the past with this token, and what later tokens read."""

  value: jax.Array  # [..., H, d]
  past: Any
  keys: Any


# query, key, value [..., heads, d], the past's buffers or None, Inputs -> Mixed.
Mix = Callable[..., Mixed]


def apply(config: Config, mix: Mix, rotations, carry, inputs: Inputs):
  """carry: x [..., D] and the past's buffers or None -> the same, and what the layer leaves behind.

  Tokens meet in `mix` only. rotations: cosine, sine [ropes, ..., 1, d / 2] of their positions.
  """
  x, past = carry
  weights = {name: weight.astype(x.dtype) for name, weight in inputs.weights.items()}
  # Norms are applied in float32, so they keep their own precision.
  weights |= {name: weight for name, weight in inputs.weights.items() if name.endswith("norm")}
  y = rms_norm(x, weights["input_norm"], config)
  mixed = mix(*_heads(config, weights, rotations, y, inputs), past, inputs)
  y = project(config, mixed.value, weights, "o")
  if config.gemma:
    y = rms_norm(y, weights["post_attention_norm"], config)
  x = x + y
  y = rms_norm(x, weights["mlp_norm"], config)
  gate = project(config, y, weights, "gate")
  up = project(config, y, weights, "up")
  y = project(config, activate(gate, config) * up, weights, "down")
  if config.gemma:
    y = rms_norm(y, weights["post_mlp_norm"], config)
  return (x + y, mixed.past), mixed.keys


def _heads(config, weights, rotations, x, inputs):
  """Query, key and value of each token, normed and rotated as the model does."""
  query, key, value = (project(config, x, weights, name) for name in ("q", "k", "v"))
  if config.qk_norm:
    query = rms_norm(query, weights["q_norm"], config)
    key = rms_norm(key, weights["k_norm"], config)
  cosine, sine = (table[inputs.rope] for table in rotations)
  return rope.rotate(query, cosine, sine), rope.rotate(key, cosine, sine), value


def project(config: Config, x: jax.Array, weights: Weights, name: str) -> jax.Array:
  """x times the weight of that name, plus its bias and its adapters where the model has them.

  As one matrix times another, whatever the axes of the weight: the gradient of a product over
  several axes is one of transposed copies.
  """
  leading, inputs = x.shape[: x.ndim - INPUTS[name]], math.prod(x.shape[x.ndim - INPUTS[name] :])
  outputs = weights[name].shape[INPUTS[name] :]
  x = x.reshape(-1, inputs)
  y = x @ weights[name].reshape(inputs, -1)
  if f"{name}_bias" in weights:
    y = y + weights[f"{name}_bias"].reshape(1, -1)
  if config.lora and name in config.lora.targets:
    low = x @ weights[f"{name}_lora_a"].reshape(inputs, -1)
    high = low @ weights[f"{name}_lora_b"].reshape(low.shape[1], -1)
    y = y + high * (config.lora.alpha / config.lora.rank)
  return y.reshape(*leading, *outputs)


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
