"""Hugging Face checkpoints out: what transformers' from_pretrained reads, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from flax import nnx
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from larpo_jax.models import names, rope
from larpo_jax.models.config import Config
from larpo_jax.models.names import Path, Tensor

CLASSES = {
  "llama": "Llama",
  "mistral": "Mistral",
  "qwen2": "Qwen2",
  "qwen3": "Qwen3",
  "gemma2": "Gemma2",
  "gemma3_text": "Gemma3",
}


def save(
  directory: str | os.PathLike,
  params: nnx.State,
  config: Config,
  *,
  tokenizer: Any = None,
  dtype: Any = jnp.float32,
  shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes a causal language model: weights, config.json, generation_config.json, tokenizer.

  More than shard_bytes of weights are split into several files with an index. All files appear at
  the end together, config.json last. Every process must call it; the first one writes.
  """
  settings = settings_of(config, f"{CLASSES[config.model_type]}ForCausalLM", dtype)
  write(directory, params, names.tensors(config), settings, tokenizer, dtype, shard_bytes)


def settings_of(config: Config, architecture: str, dtype: Any) -> dict[str, Any]:
  """The config.json it was read from, with what it left to defaults written out."""
  settings = json.loads(config.source) | {
    "architectures": [architecture],
    "model_type": config.model_type,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tie_embeddings,
    "initializer_range": config.initializer_range,
    **rope.write(config.ropes),
  }
  settings.pop("torch_dtype", None)
  return settings | {"dtype": jnp.dtype(dtype).name}


def write(
  directory: str | os.PathLike,
  params: nnx.State,
  tensors: Mapping[Path, Tensor],
  settings: Mapping[str, Any],
  tokenizer: Any,
  dtype: Any,
  shard_bytes: int,
) -> None:
  """Writes any module's parameters under the names in tensors, and what stands beside them."""
  target = pathlib.Path(directory)
  first = jax.process_index() == 0
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
    staging = pathlib.Path(name)
    _write_weights(staging, params, tensors, np.dtype(dtype), shard_bytes, first)
    if not first:
      return
    if tokenizer is not None:
      tokenizer.save_pretrained(str(staging))
    ids = {key: settings.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids = {key: value for key, value in ids.items() if value is not None}
    _write_json(staging / "generation_config.json", {"_from_model_config": True, **ids})
    _write_json(staging / "config.json", settings)
    _publish(staging, target)


def _publish(staging: pathlib.Path, target: pathlib.Path) -> None:
  """Moves the files, the weights of an earlier export out of the way and config.json last."""
  target.mkdir(exist_ok=True)
  for old in [*target.glob("model*.safetensors"), *target.glob("model*.index.json")]:
    old.unlink()
  for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
    shutil.move(path, target / path.name)


def _write_weights(
  directory: pathlib.Path,
  params: nnx.State,
  tensors: Mapping[Path, Tensor],
  dtype: np.dtype,
  shard_bytes: int,
  first: bool,
) -> None:
  shards: list[dict[str, np.ndarray]] = [{}]
  files: list[pathlib.Path] = []
  sizes: dict[str, int] = {}
  where: dict[str, int] = {}

  def flush() -> None:
    files.append(directory / f"shard-{len(files)}")
    safetensors.numpy.save_file(shards[0], files[-1], metadata={"format": "pt"})
    shards[0] = {}

  for name, array in _stored(params, tensors, dtype):
    if not first:
      continue  # it took part in the gathering
    if shards[0] and sum(a.nbytes for a in shards[0].values()) + array.nbytes > shard_bytes:
      flush()
    shards[0][name] = array
    sizes[name], where[name] = array.nbytes, len(files)
  if not first:
    return
  flush()
  if len(files) == 1:
    files[0].rename(directory / "model.safetensors")
    return
  final = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
  for file, name in zip(files, final):
    file.rename(directory / name)
  index = {
    "metadata": {"total_size": sum(sizes.values())},
    "weight_map": {name: final[shard] for name, shard in sorted(where.items())},
  }
  _write_json(directory / "model.safetensors.index.json", index)


def _stored(
  params: nnx.State, tensors: Mapping[Path, Tensor], dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
  """Each tensor of the checkpoint; one stacked weight is on the host at a time."""
  for path, variable in nnx.to_flat_state(params):
    value, tensor = variable.get_value(), tensors[path]
    if not value.is_fully_addressable:
      value = multihost_utils.process_allgather(value, tiled=True)
    weight = np.asarray(value).astype(dtype)
    if "{}" not in tensor.name:
      yield tensor.name, names.to_stored(weight, tensor)
      continue
    for layer, part in enumerate(weight):
      yield tensor.name.format(layer), names.to_stored(part, tensor)


def _write_json(path: pathlib.Path, content: Any) -> None:
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
