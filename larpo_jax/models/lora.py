"""Low-rank adapters beside the frozen weights, in the same tree of parameters.

Written here, not taken from qwix: the layers are stacked and scanned, so an adapter is two more
entries of their table of weights, and initialisation, sharding, scan and PEFT names come with it.
https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from larpo_jax.models import exporting, names, transformer
from larpo_jax.models.config import Config, Lora
from larpo_jax.models.layer import INPUTS, layer_weights
from larpo_jax.models.transformer import Transformer, stacked

TARGETS = tuple(INPUTS)


def add(
  params: nnx.State,
  config: Config,
  key: jax.Array,
  *,
  rank: int = 16,
  alpha: float = 32.0,
  targets: Sequence[str] = TARGETS,
  **options: Any,
) -> tuple[nnx.GraphDef[Transformer], nnx.State, Config]:
  """The same model with adapters on targets (q, k, v, o, gate, up, down), at first the identity.

  options are those of Transformer. Raises ValueError for an unknown target or a rank below 1.
  """
  if config.lora is not None:
    raise ValueError("the model has adapters already; merge them with models.lora.merge first")
  unknown = sorted(set(targets) - set(TARGETS))
  if unknown or rank < 1 or not targets:
    raise ValueError(
      f"adapters need a rank of at least 1, not {rank}, and targets of {', '.join(TARGETS)}, "
      f"not {', '.join(unknown) or 'none'}"
    )
  # In the order of the table, so that equal sets of targets give equal configs.
  lora = Lora(rank, float(alpha), tuple(name for name in TARGETS if name in targets))
  config = dataclasses.replace(config, lora=lora)
  graphdef, _ = transformer.abstract(config, **options)
  flat, rngs = dict(nnx.to_flat_state(params)), nnx.Rngs(params=key)
  for name in layer_weights(config):
    if "_lora_" in name:
      flat["layers", name] = stacked(config, name, rngs)
  return graphdef, nnx.from_flat_state(flat), config


def split(params: nnx.State) -> tuple[nnx.State, nnx.State]:
  """(the frozen weights, the adapters): what to hold and what to train."""
  adapters, base = nnx.split_state(params, nnx.LoRAParam, ...)
  return base, adapters


def join(base: nnx.State, adapters: nnx.State) -> nnx.State:
  """The parameters of the whole model again."""
  return nnx.merge_state(base, adapters)


def merge(params: nnx.State, config: Config) -> tuple[nnx.State, Config]:
  """The plain model of the same function: each adapter's product is added to its weight."""
  base, adapters = split(params)
  flat, low = dict(nnx.to_flat_state(base)), dict(nnx.to_flat_state(adapters))
  lora = config.lora or Lora(1, 0.0, ())
  for name in lora.targets:
    a, b = (low["layers", f"{name}_lora_{side}"].get_value() for side in "ab")
    weight = flat["layers", name]
    product = jnp.einsum(
      "lir,lro->lio", a.reshape(a.shape[0], -1, a.shape[-1]), b.reshape(*b.shape[:2], -1)
    )
    scaled = product * (lora.alpha / lora.rank)
    flat["layers", name] = weight.replace(weight.get_value() + scaled.reshape(weight.shape))
  return nnx.from_flat_state(flat), dataclasses.replace(config, lora=None)


def save_peft(
  directory: str | os.PathLike, params: nnx.State, config: Config, *, base_model: str = ""
) -> None:
  """Writes the adapters as PEFT does: adapter_config.json and adapter_model.safetensors, float32.

  base_model is the name or path of the checkpoint that they belong to. Every process must call it;
  the first one writes. Raises ValueError when the model has no adapters.
  """
  if config.lora is None:
    raise ValueError("the model has no adapters to save; add them with models.lora.add")
  stored = {}
  modules = set()
  adapters = dict(nnx.to_flat_state(split(params)[1]))
  for target in config.lora.targets:
    module = names.tensors(config)["layers", target].name.removesuffix(".weight")
    modules.add(module.rpartition(".")[2])
    for side, inputs in (("a", INPUTS[target]), ("b", 1)):
      weight = exporting.gathered(adapters["layers", f"{target}_lora_{side}"].get_value())
      weight = weight.astype(np.float32)
      for layer, part in enumerate(weight):
        name = f"base_model.model.{module.format(layer)}.lora_{side.upper()}.weight"
        stored[name] = names.to_stored(part, names.Tensor(name, inputs))
  if jax.process_index() > 0:
    return  # it took part in the gathering
  path = pathlib.Path(directory)
  path.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(stored, path / "adapter_model.safetensors", {"format": "pt"})
  settings = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_model,
    "r": config.lora.rank,
    "lora_alpha": config.lora.alpha,
    "lora_dropout": 0.0,
    "target_modules": sorted(modules),
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "inference_mode": True,
  }
  (path / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
