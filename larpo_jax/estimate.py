"""Memory and arithmetic of a train step as formulas of the model, the batch and the mesh.

`python -m larpo_jax.plan` prints them for a config; docs/scaling.md explains them; a test holds
them to what XLA says of compiled steps on one to eight devices.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any, NamedTuple

import jax

from larpo_jax.models.config import Config
from larpo_jax.models.layer import INPUTS, layer_weights
from larpo_jax.sharding import BATCH_AXES

FLOAT = 4  # bytes


class Work(NamedTuple):
  """The batch of a step, over all devices."""

  prompts: int  # B
  responses: int  # K
  prompt: int  # P, in tokens
  response: int  # R, in tokens
  room: float  # tokens of a prompt with its responses that are computed
  scored: float  # tokens of its responses whose logits are computed; 0: a model without any
  accumulation: int = 1
  live: bool = False  # whether the reference is computed in the step


class Choices(NamedTuple):
  """How the model computes."""

  bytes: int = FLOAT  # of a number of the compute dtype
  remat: str = "dots"
  chunk: int = 1024  # rows of logits at a time


def state_bytes(tree: Any, shardings: Any) -> int:
  """Bytes of abstract arrays on one device."""
  sizes = jax.tree.map(
    lambda x, where: math.prod(where.shard_shape(x.shape)) * x.dtype.itemsize, tree, shardings
  )
  return sum(jax.tree.leaves(sizes))


def activations(
  config: Config, work: Work, how: Choices, mesh: Mapping[str, int], gradient: float
) -> dict[str, float]:
  """Bytes a device needs beside the state, at their peak, by what they are for.

  mesh: axis -> devices, none of them -1. gradient: the bytes of one on a device. It grows in the
  backward pass of the layers, when the logits are gone.
  """
  tensor = mesh.get("tensor", 1)
  parts = _parts(work, mesh)
  prompts, rows, scored = (
    n / parts for n in (work.prompts, work.prompts * work.room, work.prompts * work.scored)
  )
  D, V = config.hidden_size, config.vocab_size / tensor
  places = prompts * (work.prompt + work.responses * work.response)
  kept = config.num_layers * _kept(config, how, rows, places, tensor)
  if how.remat == "none":
    kept += _copied_weights(config, how, mesh)
  masks = 1.25 * FLOAT * prompts * _pairs(work) * config.num_heads / tensor
  layer = _of_one_layer(config, work, how, prompts, rows, places, tensor)
  layer += _gathered(config, how, mesh)
  # Logits and their slope; the sum of the unembedding's gradient and its part; the matrix, turned.
  chunk = min(how.chunk, max(scored, 1))
  head = chunk * V * (FLOAT + how.bytes) + 2 * D * V * FLOAT + 2 * D * V * how.bytes
  head = head * (scored > 0) + 3 * rows * D * how.bytes
  found = {
    "kept for the backward pass": kept,
    "masks of attention": masks,
    "gradient and one layer at work, or logits": max(gradient + layer, head),
  }
  if work.accumulation > 1:
    found["gradient of micro-batches before"] = gradient
  return found


def sampling(config: Config, work: Work, how: Choices, mesh: Mapping[str, int]) -> dict[str, float]:
  """Bytes a device needs beside weights as they lie, to sample K responses each to its prompts.

  work.prompts are those of the device. Weights that fsdp splits, or that are computed with in
  another dtype, are made whole once, before the first token.
  """
  tensor = mesh.get("tensor", 1)
  tokens = work.prompts * (work.prompt + work.responses * work.response)
  past = 2.0 * tokens * config.num_layers * config.num_kv_heads * config.head_dim * how.bytes
  lists = work.prompts * work.responses
  logits = 3.0 * FLOAT * lists * config.vocab_size / tensor
  scores = 2.0 * FLOAT * work.prompts * config.num_heads * work.prompt**2 / tensor
  each = sum(math.prod(w.shape) for name, w in layer_weights(config).items() if name in INPUTS)
  weights = (config.num_layers * each + config.vocab_size * config.hidden_size) * how.bytes / tensor
  whole = how.bytes != FLOAT or mesh.get("fsdp", 1) > 1
  return {
    **({"weights to compute with": weights} if whole else {}),
    "keys and values": past / tensor,
    "one layer's again and logits, or a prompt's attention": max(
      past / tensor / config.num_layers + logits, scores
    ),
  }


def _parts(work: Work, mesh: Mapping[str, int]) -> int:
  """Into how many parts the prompts are cut: devices times micro-batches."""
  return math.prod(mesh.get(axis, 1) for axis in BATCH_AXES) * work.accumulation


def _kept(config: Config, how: Choices, rows: float, places: float, tensor: int) -> float:
  """Bytes that the forward pass of a layer leaves to the backward pass."""
  D, M = config.hidden_size, config.intermediate_size / tensor
  query, keys = (n * config.head_dim / tensor for n in (config.num_heads, config.num_kv_heads))
  attended = places * (query * how.bytes + config.num_heads / tensor * FLOAT)
  if how.remat == "full":
    return rows * D * how.bytes
  if how.remat == "dots":
    return rows * (2 * D + query + 2 * keys + 2 * M) * how.bytes + attended
  return (
    rows * (11 * D + query + 6 * M) * how.bytes
    + places * (query + 2 * keys) * how.bytes
    + (attended)
  )


def _of_one_layer(
  config: Config, work: Work, how: Choices, prompts: float, rows: float, places: float, tensor: int
) -> float:
  """Bytes of the larger of attention and MLP in the backward pass of one layer."""
  D, M = config.hidden_size, config.intermediate_size / tensor
  heads = config.num_heads / tensor
  width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim / tensor
  scores = prompts * work.responses * heads * work.response * max(work.prompt, work.response)
  attention = 3 * scores * FLOAT + 3 * places * width * how.bytes
  again = _kept(config, how._replace(remat="dots"), rows, places, tensor)
  again *= how.remat == "full"
  return max(attention, rows * 5 * M * how.bytes) + 4 * rows * D * how.bytes + again


def _pairs(work: Work) -> int:
  """Scores of a prompt with its responses, in one head: padded, those that are masked too."""
  return work.prompt**2 + work.responses * work.response * (work.prompt + work.response)


def _copied_weights(config: Config, how: Choices, mesh: Mapping[str, int]) -> float:
  """Bytes of weights that are kept because they are not used as they are stored."""
  changed = how.bytes != FLOAT or mesh.get("fsdp", 1) > 1
  names = INPUTS if changed else ("q", "k", "v", "o")
  each = sum(math.prod(w.shape) for name, w in layer_weights(config).items() if name in names)
  return config.num_layers * each * how.bytes / mesh.get("tensor", 1)


def _gathered(config: Config, how: Choices, mesh: Mapping[str, int]) -> float:
  """Bytes of one layer's weights in the compute dtype, and in their own where fsdp splits them."""
  each = sum(math.prod(w.shape) for name, w in layer_weights(config).items() if name in INPUTS)
  width = FLOAT * (mesh.get("fsdp", 1) > 1) + how.bytes
  return each * width / mesh.get("tensor", 1)


def flops(config: Config, work: Work, *, trained: float = 1.0, remat: str = "dots") -> float:
  """Arithmetic of a step over all devices: 2 for a multiplication and its addition.

  trained is the share of the matrices that has a gradient of its own: 0 under adapters.
  """
  weights = {n: math.prod(w.shape) for n, w in layer_weights(config).items() if n in INPUTS}
  layers = 2.0 * config.num_layers * sum(weights.values()) * work.room
  attention = 4.0 * config.num_layers * config.num_heads * config.head_dim * _pairs(work)
  head = 2.0 * config.hidden_size * config.vocab_size * work.scored
  forward = layers + attention + head
  backward = layers * (1.0 + trained) + 2.5 * attention + head * (2.0 + trained)
  if remat == "full":
    backward += layers + attention
  return work.prompts * (forward * (1.0 + work.live) + backward)


def sent(
  config: Config, work: Work, mesh: Mapping[str, int], weights: float, how: Choices
) -> tuple[float, float]:
  """Bytes that a device sends in a step: over data and fsdp, and over tensor.

  weights are the bytes of all parameters. A sum of n bytes over m devices sends 2 n (m - 1) / m
  from each, a gathering half of that.
  """
  data, fsdp, tensor = (mesh.get(axis, 1) for axis in (*BATCH_AXES, "tensor"))
  share = lambda count: (count - 1) / count  # noqa: E731
  held = weights / tensor
  gathered = held * share(fsdp) * (1 if how.remat == "none" else 2) * (1 + work.live)
  summed = held * share(fsdp) + 2.0 * held / fsdp * share(data)
  rows = work.prompts * work.room / _parts(work, mesh)
  each = 2.0 * share(tensor) * rows * config.hidden_size * how.bytes
  across = each * config.num_layers * (4 + 2 * work.live) * work.accumulation
  return gathered * work.accumulation + summed, across
