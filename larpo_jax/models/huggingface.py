"""Hugging Face checkpoints in: config.json and safetensors, never a pickle, never code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import json
import os
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from larpo_jax import sharding
from larpo_jax.models import config as config_lib
from larpo_jax.models import names
from larpo_jax.models.config import Config
from larpo_jax.models.exporting import save
from larpo_jax.models.names import Path, Tensor
from larpo_jax.models.transformer import Transformer

__all__ = ["load", "read_model", "save"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Written by old versions, computed by every new one.
DERIVED = "rotary_emb.inv_freq"


def load(
  directory: str | os.PathLike, **options: Any
) -> tuple[nnx.GraphDef[Transformer], nnx.State, Config]:
  """A causal language model's graph definition, parameters and config; options as `read_model`'s.

  Raises FileNotFoundError or ValueError that names the file, the tensor or the key.
  """
  config = config_lib.read(directory)
  if config.num_labels is not None:
    raise ValueError(f"{directory} is a sequence classifier; load it with models.heads.load")
  weights = read_model(directory, Transformer, config, names.tensors(config), **options)
  return *weights, config


def read_model(
  directory: str | os.PathLike,
  module: Callable[..., nnx.Module],
  config: Config,
  tensors: Mapping[Path, Tensor],
  *,
  dtype: Any = jnp.float32,
  param_dtype: Any = jnp.float32,
  mesh: jax.sharding.Mesh | None = None,
  rules: Mapping[str, str] | None = None,
  **options: Any,
) -> tuple[nnx.GraphDef, nnx.State]:
  """The module of the config, with every parameter read from the checkpoint and checked.

  dtype is what it computes in, param_dtype what its weights are held in, options those of
  Transformer. With a mesh each device reads its own slices, by rules from logical axes to mesh
  axes.
  """
  make = lambda: module(config, rngs=nnx.Rngs(params=0), dtype=dtype, **options)  # noqa: E731
  graphdef, abstract = nnx.split(nnx.eval_shape(make))
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  if mesh is None:
    targets = jax.tree.map(lambda _: here, abstract)
  else:
    targets = sharding.named_shardings(abstract, mesh, rules or {})
  targets = dict(nnx.to_flat_state(targets))
  variables = dict(nnx.to_flat_state(abstract))
  with contextlib.ExitStack() as stack:
    stored = _open(pathlib.Path(directory), stack)
    _check(stored, {path: variable.shape for path, variable in variables.items()}, tensors)
    filled = {
      path: variable.replace(
        _array(stored, tensors[path], variable.shape, param_dtype, targets[path].get_value())
      )
      for path, variable in variables.items()
    }
  return graphdef, nnx.from_flat_state(filled)


def _open(directory: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Any]:
  """Tensor name -> a handle that reads slices of it."""
  stored: dict[str, Any] = {}
  for path in _files(directory):
    try:
      handle = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
    except safetensors.SafetensorError as error:
      raise ValueError(f"{path} is damaged ({error}); download or export it again") from error
    stored |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
  return stored


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  if not directory.is_dir():
    raise FileNotFoundError(f"no directory {directory}; download the checkpoint there first")
  index = directory / "model.safetensors.index.json"
  if index.is_file():
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for shard in shards:
      if not (directory / shard).is_file():
        raise FileNotFoundError(f"{directory} lacks {shard}, which its index names; download it")
    return [directory / shard for shard in shards]
  if (directory / "model.safetensors").is_file():
    return [directory / "model.safetensors"]
  pickles = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES)
  if pickles:
    raise ValueError(
      f"{directory} has its weights in {pickles[0]}, a pickle, which can run code; convert it to "
      "safetensors (save_pretrained in transformers does)"
    )
  raise FileNotFoundError(f"no model.safetensors in {directory}; is the download complete?")


def _check(
  stored: Mapping[str, Any], shapes: Mapping[Path, tuple[int, ...]], tensors: Mapping[Path, Tensor]
) -> None:
  """Raises ValueError for a missing or unexpected tensor and for a wrong shape."""
  wanted = {}
  for path, shape in shapes.items():
    tensor = tensors[path]
    stacked = "{}" in tensor.name
    expected = names.stored_shape(shape[1:] if stacked else shape, tensor)
    for layer in range(shape[0] if stacked else 1):
      wanted[tensor.name.format(layer)] = expected
  missing = sorted(set(wanted) - set(stored))
  extra = sorted(name for name in set(stored) - set(wanted) if not name.endswith(DERIVED))
  if extra == ["lm_head.weight"] and ("embedding",) in tensors:
    embedding = stored[tensors["embedding",].name]
    if np.array_equal(stored["lm_head.weight"][:], embedding[:]):
      extra = []  # the tied matrix, stored twice
  for kind, found in (("lacks", missing), ("has unexpected", extra)):
    if found:
      more = f" and {len(found) - 3} more" if len(found) > 3 else ""
      raise ValueError(
        f"the checkpoint {kind} {', '.join(found[:3])}{more}; its config.json and its weights are "
        "not of the same model"
      )
  for name, expected in wanted.items():
    shape = tuple(stored[name].get_shape())
    if shape != expected:
      raise ValueError(f"{name} has shape {shape}, but config.json implies {expected}")


def _array(
  stored: Mapping[str, Any],
  tensor: Tensor,
  shape: tuple[int, ...],
  dtype: Any,
  target: jax.sharding.Sharding,
) -> jax.Array:
  """The weight as a global array; each device's slice is read where it goes."""

  def read(name: str, shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    return names.from_stored(lambda part: stored[name][part], shape, tensor, index)

  def slices(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None  # of an array with axes
    if "{}" not in tensor.name:
      return np.asarray(read(tensor.name, shape, index), dtype)
    layers = range(*index[0].indices(shape[0]))
    parts = [read(tensor.name.format(layer), shape[1:], index[1:]) for layer in layers]
    return np.stack([np.asarray(part, dtype) for part in parts])

  return jax.make_array_from_callback(shape, target, slices)
