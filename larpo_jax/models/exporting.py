"""Hugging Face checkpoints out: what transformers' from_pretrained reads, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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


def save(directory: str | os.PathLike, params: nnx.State, config: Config, **options: Any) -> None:
  """Writes a causal language model: weights, config.json, generation_config.json, tokenizer.

  options are those of `write`. Every process must call it; the first one writes.
  """
  if config.lora is not None:
    raise ValueError("the model has adapters; merge them with models.lora.merge before saving it")
  settings = settings_of(config, f"{CLASSES[config.model_type]}ForCausalLM")
  write(directory, params, names.tensors(config), settings, **options)


def settings_of(config: Config, architecture: str) -> dict[str, Any]:
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
  return settings


def write(
  directory: str | os.PathLike,
  params: nnx.State,
  tensors: Mapping[Path, Tensor],
  settings: Mapping[str, Any],
  *,
  tokenizer: Any = None,
  dtype: Any = jnp.float32,
  shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes any module's parameters under the names in tensors, and what stands beside them.

  dtype is what the weights are stored in. More than shard_bytes of them are split into several
  files with an index. All files appear at the end together, config.json last.
  """
  target = pathlib.Path(directory)
  if jax.process_index() > 0:
    for _ in _stored(params, tensors, np.dtype(dtype)):
      pass  # takes part in the gathering
    return
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
    staging = pathlib.Path(name)
    _write_weights(staging, params, tensors, np.dtype(dtype), shard_bytes)
    if tokenizer is not None:
      tokenizer.save_pretrained(str(staging))
    ids = {key: settings.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids = {key: value for key, value in ids.items() if value is not None}
    _write_json(staging / "generation_config.json", {"_from_model_config": True, **ids})
    _write_json(staging / "config.json", {**settings, "dtype": jnp.dtype(dtype).name})
    _publish(staging, target)


def _publish(staging: pathlib.Path, target: pathlib.Path) -> None:
  """Moves the files, the weights of an earlier export out of the way and config.json last."""
  target.mkdir(exist_ok=True)
  mode = (staging / "config.json").stat().st_mode  # safetensors makes its files for one user only
  for old in [*target.glob("model*.safetensors"), *target.glob("model*.index.json")]:
    old.unlink()
  for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
    path.chmod(mode)
    shutil.move(path, target / path.name)


def _write_weights(
  directory: pathlib.Path,
  params: nnx.State,
  tensors: Mapping[Path, Tensor],
  dtype: np.dtype,
  shard_bytes: int,
) -> None:
  files: list[pathlib.Path] = []
  contents: list[list[str]] = []
  total = 0
  for shard in _shards(_stored(params, tensors, dtype), shard_bytes):
    files.append(directory / f"shard-{len(files)}")
    contents.append(list(shard))
    total += sum(array.nbytes for array in shard.values())
    safetensors.numpy.save_file(shard, files[-1], metadata={"format": "pt"})
  if len(files) == 1:
    files[0].rename(directory / "model.safetensors")
  if len(files) < 2:
    return
  names_of = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
  for file, name in zip(files, names_of):
    file.rename(directory / name)
  weight_map = {name: file for file, held in zip(names_of, contents) for name in held}
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  _write_json(directory / "model.safetensors.index.json", index)


def _shards(
  stored: Iterable[tuple[str, np.ndarray]], limit: int
) -> Iterator[dict[str, np.ndarray]]:
  """Groups of at most limit bytes, a larger tensor alone."""
  shard: dict[str, np.ndarray] = {}
  size = 0
  for name, array in stored:
    if shard and size + array.nbytes > limit:
      yield shard
      shard, size = {}, 0
    shard[name] = array
    size += array.nbytes
  yield shard


def gathered(value: jax.Array) -> np.ndarray:
  """The whole of a weight, on every process."""
  if not value.is_fully_addressable:
    value = multihost_utils.process_allgather(value, tiled=True)
  return np.asarray(value)


def _stored(
  params: nnx.State, tensors: Mapping[Path, Tensor], dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
  """Each tensor of the checkpoint; one stacked weight is on the host at a time."""
  for path, variable in nnx.to_flat_state(params):
    tensor, weight = tensors[path], gathered(variable.get_value()).astype(dtype)
    if "{}" not in tensor.name:
      yield tensor.name, names.to_stored(weight, tensor)
      continue
    for layer, part in enumerate(weight):
      yield tensor.name.format(layer), names.to_stored(part, tensor)


def _write_json(path: pathlib.Path, content: Any) -> None:
  path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
