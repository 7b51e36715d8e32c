"""One decoder for the Llama, Mistral, Qwen and Gemma families, its layers stacked and scanned."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, overload

from flax import nnx
import jax
import jax.numpy as jnp

from larpo_jax.models import attention, blocks, layer, rope, rows
from larpo_jax.models.blocks import Keys, Past, Prefix
from larpo_jax.models.config import Config
from larpo_jax.models.layer import INPUTS, Weight, layer_weights
from larpo_jax.types import Array

ATTENTION = ("xla", "fused")
REMAT = ("none", "dots", "full")
# What matrices are multiplied to, and what attention gives, which has no gradient without it.
SAVED = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  jax.checkpoint_policies.save_only_these_names(attention.OUTPUT),
)


class Layers(nnx.Module):
  """The weights of all layers, each with a leading layers axis."""

  def __init__(self, config: Config, rngs: nnx.Rngs):
    for name in layer_weights(config):
      setattr(self, name, stacked(config, name, rngs))


class Transformer(nnx.Module):
  """Tokens to hidden states; its weights are float32, whatever it computes in."""

  def __init__(
    self,
    config: Config,
    *,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    attention: Literal["xla", "fused"] = "xla",
    remat: Literal["none", "dots", "full"] = "dots",
    scan: bool = True,
  ):
    if attention not in ATTENTION or remat not in REMAT:
      raise ValueError(
        f"attention={attention!r} must be one of {ATTENTION}, remat={remat!r} of {REMAT}"
      )
    if attention == "fused" and config.attention_softcap:
      raise ValueError(
        f"attention='fused' cannot soft-cap scores as {config.model_type} does; use attention='xla'"
      )
    self.config, self.dtype, self.attention = config, jnp.dtype(dtype), attention
    self.remat, self.scan = remat, scan
    d, v, std = config.hidden_size, config.vocab_size, config.initializer_range
    self.embedding = parameter(rngs, Weight((v, d), ("vocab", "embed"), std))
    self.layers = Layers(config, rngs)
    self.norm = parameter(rngs, Weight((d,), ("embed",), constant=0.0 if config.gemma else 1.0))
    if not config.tie_embeddings:
      self.head = parameter(rngs, Weight((d, v), ("embed", "vocab"), std))

  @overload
  def __call__(
    self, tokens: Array, positions: Array, valid: Array, *, prefix: Prefix | None = None
  ) -> tuple[jax.Array, Keys]: ...

  @overload
  def __call__(
    self, tokens: Array, positions: Array, valid: Array, *, prefix: Prefix | None = None, past: Past
  ) -> tuple[jax.Array, Past]: ...

  def __call__(
    self,
    tokens: Array,
    positions: Array,
    valid: Array,
    *,
    prefix: Prefix | None = None,
    past: Past | None = None,
  ) -> tuple[jax.Array, Keys | Past]:
    """Hidden states after the final norm, [B, J, T, D] in the compute dtype, and the keys.

    tokens, positions: int32 [B, J, T]; valid: bool [B, J, T], False on padding at either end. A
    token sees the prefix, the past, and the valid tokens up to itself; positions only rotate and
    bound windows, so they count on from the prefix. Without a past the keys of this call come back,
    with one (T = 1) the past with this token written at its index.
    """
    tokens, positions, valid = jnp.asarray(tokens), jnp.asarray(positions), jnp.asarray(valid)
    if past is not None:
      past = blocks.advance(past, positions, valid)
    before = None if prefix is None else (prefix.position, prefix.valid)
    scope = blocks.scope(self.config, positions, valid, before, past)
    mix = functools.partial(blocks.mix, self.config, self.attention, scope)
    hidden, buffers, keys = self._run(mix, tokens, positions, prefix, past)
    if past is not None:
      key, value = buffers
      return hidden, dataclasses.replace(past, key=key, value=value, index=past.index + 1)
    key, value = keys
    return hidden, Keys(key=key, value=value, position=positions, valid=valid)

  def read(self, layout: rows.Rows) -> jax.Array:
    """Hidden states after the final norm of prompts and of the responses that continue them.

    As `__call__` on the prompts, then on the responses with the prompts as their prefix, but only
    the tokens that are real are computed: [S, N, D], as `layout.tokens`.
    """
    mix = functools.partial(
      rows.mix, self.config, self.attention, layout, layout.scopes(self.config)
    )
    return self._run(mix, layout.tokens, layout.position)[0]

  def unembed(self) -> jax.Array:
    """The matrix from hidden states to logits, float32 [D, V]."""
    return self.embedding[...].T if self.config.tie_embeddings else self.head[...]

  def logits(self, hidden: jax.Array) -> jax.Array:
    """float32 [..., V] of hidden states [..., D], soft-capped where the model does."""
    matrix = self.unembed().astype(self.dtype)
    logits = jnp.einsum("...d,dv->...v", hidden, matrix, preferred_element_type=jnp.float32)
    cap = self.config.final_softcap
    return logits if cap is None else jnp.tanh(logits / cap) * cap

  def _run(self, mix, tokens, positions, prefix=None, past=None):
    """Hidden states, the past's buffers, and what each layer leaves behind."""
    config = self.config
    x = jnp.take(self.embedding[...], tokens, axis=0).astype(self.dtype)
    if config.gemma:  # the factor is rounded to the compute dtype, as in transformers
      x = x * jnp.asarray(math.sqrt(config.hidden_size), self.dtype)
    rotations = rope.rotations(config.ropes, config.head_dim, positions)
    step = functools.partial(layer.apply, config, mix, rotations)
    if self.remat != "none":
      step = jax.checkpoint(step, policy=SAVED if self.remat == "dots" else None)
    inputs = layer.Inputs(
      {
        name: value[...]
        for name, value in vars(self.layers).items()
        if isinstance(value, nnx.Param)
      },
      jnp.asarray(config.windows, jnp.int32),
      jnp.asarray(config.rope_of_layer, jnp.int32),
      jnp.arange(config.num_layers),
      None if prefix is None else (prefix.key, prefix.value),
    )
    carry = (x, None if past is None else (past.key, past.value))
    if self.scan:
      (x, buffers), keys = jax.lax.scan(step, carry, inputs)
    else:
      outputs = []
      for index in range(config.num_layers):
        carry, own = step(carry, jax.tree.map(lambda leaf, i=index: leaf[i], inputs))
        outputs.append(own)
      (x, buffers), keys = carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
    return layer.rms_norm(x, self.norm[...], config), buffers, keys


def create(
  config: Config, key: jax.Array, **options: Any
) -> tuple[nnx.GraphDef[Transformer], nnx.State]:
  """A freshly initialised decoder: its graph definition and its float32 parameters.

  options are those of Transformer. Matrices are normal(initializer_range), those that write to the
  residual stream divided by sqrt(2 L), so that every matrix has a gradient at the first step.
  """
  return nnx.split(Transformer(config, rngs=nnx.Rngs(params=key), **options))


def abstract(config: Config, **options: Any) -> tuple[nnx.GraphDef[Transformer], nnx.State]:
  """`create` without the numbers: parameters that have shapes only."""
  return nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(params=0), **options)))


def empty_past(config: Config, batch: int, lists: int, size: int, dtype: Any = jnp.float32) -> Past:
  """A decoding buffer of size tokens for each of [batch, lists]."""
  shape = (config.num_layers, batch, lists, size, config.num_kv_heads, config.head_dim)
  return Past(
    key=jnp.zeros(shape, dtype),
    value=jnp.zeros(shape, dtype),
    position=jnp.zeros((batch, lists, size), jnp.int32),
    valid=jnp.zeros((batch, lists, size), bool),
    index=jnp.zeros((), jnp.int32),
  )


def matmul_params(config: Config) -> int:
  """Weights that multiply every token, unembedding included; a forward is twice that in FLOPs.

  Neither the scores of attention nor adapters are counted.
  """
  per_layer = sum(math.prod(w.shape) for name, w in layer_weights(config).items() if name in INPUTS)
  return config.num_layers * per_layer + config.vocab_size * config.hidden_size


def stacked(config: Config, name: str, rngs: nnx.Rngs) -> nnx.Param:
  """That weight of every layer, with a leading layers axis."""
  weight = layer_weights(config)[name]
  weight = weight._replace(shape=(config.num_layers, *weight.shape), axes=("layers", *weight.axes))
  return parameter(rngs, weight, nnx.LoRAParam if "_lora_" in name else nnx.Param)


def parameter(rngs: nnx.Rngs, weight: Weight, kind: type[nnx.Param] = nnx.Param) -> nnx.Param:
  """A float32 parameter that knows the logical name of each of its axes."""
  if weight.std is None:
    value = jnp.full(weight.shape, weight.constant, jnp.float32)
  else:
    value = weight.std * jax.random.normal(rngs.params(), weight.shape, jnp.float32)
  return kind(value, logical_axes=weight.axes)
