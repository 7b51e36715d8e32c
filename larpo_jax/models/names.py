"""Where each weight stands in a Hugging Face checkpoint, and in which shape."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from larpo_jax.models.config import Config
from larpo_jax.models.layer import INPUTS, layer_weights

Path = tuple[Any, ...]


class Tensor(NamedTuple):
  """A tensor of a checkpoint; a name with {} stands for one tensor a layer.

  The first `inputs` axes of the weight are what it contracts over: the checkpoint holds
  [outputs, inputs], each flattened, or the weight as it is where `inputs` is None.
  """

  name: str
  inputs: int | None = None


def tensors(config: Config) -> dict[Path, Tensor]:
  """Path in the Transformer's parameters -> tensor of a causal language model's checkpoint."""
  found: dict[Path, Tensor] = {
    ("embedding",): Tensor("model.embed_tokens.weight"),
    ("norm",): Tensor("model.norm.weight"),
  }
  if not config.tie_embeddings:
    found["head",] = Tensor("lm_head.weight", inputs=1)
  for name in layer_weights(dataclasses.replace(config, lora=None)):
    found["layers", name] = _layer(name, config.gemma)
  return found


def _layer(name: str, gemma: bool) -> Tensor:
  matrix, _, kind = name.partition("_")
  after = "post_feedforward_layernorm" if gemma else ""
  before = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
  norms = {
    "input_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": before,
    "post_mlp_norm": after,
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
  }
  if name in norms:
    return Tensor(f"model.layers.{{}}.{norms[name]}.weight")
  module = f"self_attn.{matrix}_proj" if matrix in "qkvo" else f"mlp.{matrix}_proj"
  if kind == "bias":
    return Tensor(f"model.layers.{{}}.{module}.bias", inputs=0)
  return Tensor(f"model.layers.{{}}.{module}.weight", inputs=INPUTS[matrix])


def stored_shape(shape: tuple[int, ...], tensor: Tensor) -> tuple[int, ...]:
  """The shape in the checkpoint of a weight of that shape (without a layers axis)."""
  if tensor.inputs is None:
    return shape
  inputs, outputs = math.prod(shape[: tensor.inputs]), math.prod(shape[tensor.inputs :])
  return (outputs, inputs) if tensor.inputs else (outputs,)


def to_stored(weight: np.ndarray, tensor: Tensor) -> np.ndarray:
  """The weight (without a layers axis) as the checkpoint holds it."""
  shape = stored_shape(weight.shape, tensor)
  if tensor.inputs:
    return np.ascontiguousarray(weight.reshape(shape[::-1]).T)
  return np.ascontiguousarray(weight.reshape(shape))


def from_stored(
  read: Callable[[tuple[slice, ...]], np.ndarray],
  shape: tuple[int, ...],
  tensor: Tensor,
  index: tuple[slice, ...],
) -> np.ndarray:
  """The slice `index` of a weight of that shape, reading little more than that slice.

  read takes slices of the checkpoint's tensor. Where several axes are flattened into one, the part
  of the first is read, which is how heads are sharded.
  """
  if tensor.inputs is None:
    return read(index)
  split = tensor.inputs
  groups = [(shape[:split], index[:split]), (shape[split:], index[split:])]
  spans, sizes, rest = [], [], []
  for dims, slices in groups:
    if not dims:
      continue
    start, stop, _ = slices[0].indices(dims[0])
    inner = math.prod(dims[1:])
    spans.append(slice(start * inner, stop * inner))
    sizes += [stop - start, *dims[1:]]
    rest += [slice(None), *slices[1:]]
  part = read(tuple(reversed(spans)))
  return part.T.reshape(sizes)[tuple(rest)]
