"""What a decoder needs to know, read from `config.json` and from nothing else.

Every key of the file is read here, or is on the list of keys that do not change the maths, or is an
error. The defaults of a missing key are those of the family's class in transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from larpo_jax.models import rope
from larpo_jax.models.config_keys import ACTIVATIONS, FAMILIES, HEADS, REQUIRED, check

NO_WINDOW = 2**30
# The defaults of the families' classes, where config.json leaves them out.
KV_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32, "gemma2": 4, "gemma3_text": 4}
HEAD_DIMS = {"qwen3": 128, "gemma2": 256, "gemma3_text": 256}


@dataclasses.dataclass(frozen=True)
class Lora:
  """Low-rank adapters: W + alpha / rank * A B for each target (https://arxiv.org/abs/2106.09685)."""

  rank: int
  alpha: float
  targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything the decoder computes with; hashable, so that it can be static under jit."""

  model_type: str
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  ropes: tuple[rope.Rope, ...]  # one, or (full attention, sliding attention)
  rope_of_layer: tuple[int, ...]  # [L]: which of the ropes
  windows: tuple[int, ...]  # [L]: how many keys a query sees, itself included; NO_WINDOW for all
  query_scale: float  # scores are multiplied by it
  activation: str = "silu"
  norm_eps: float = 1e-6
  tie_embeddings: bool = False
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  gemma: bool = False  # (1 + w) norms, norms after each block as well, scaled embeddings
  attention_softcap: float | None = None
  final_softcap: float | None = None
  initializer_range: float = 0.02
  num_labels: int | None = None  # of a sequence classification head
  bos_token_id: int | None = None
  eos_token_ids: tuple[int, ...] = ()
  pad_token_id: int | None = None
  lora: Lora | None = None  # never read: models.lora adds it
  source: str = dataclasses.field(default="{}", repr=False)  # the config.json it came from

  @property
  def sliding(self) -> bool:
    """Whether any layer has a window."""
    return any(window < NO_WINDOW for window in self.windows)


def read(source: str | os.PathLike | Mapping[str, Any]) -> Config:
  """Reads a checkpoint directory or a parsed config.json.

  Raises FileNotFoundError without a config.json, ValueError for an unknown architecture, for a
  missing size, for a key that is not known not to change the maths, and for a value that is not
  implemented; each names the key.
  """
  raw = dict(source) if isinstance(source, Mapping) else _load(pathlib.Path(source))
  family = raw.get("model_type")
  if "auto_map" in raw:
    raise ValueError(
      "config.json has auto_map, which runs code from the checkpoint; remove it if the model is "
      f"one of {', '.join(FAMILIES)}"
    )
  if family not in FAMILIES:
    raise ValueError(
      f"unknown architecture {family!r} in config.json; known: {', '.join(FAMILIES)}"
    )
  check(raw, family)
  for name in raw.get("architectures") or ():
    if not name.endswith(HEADS):
      raise ValueError(f"{name} in config.json is not implemented; known: *{', *'.join(HEADS)}")
  for key in REQUIRED:
    if not isinstance(raw.get(key), int) or raw[key] < 1:
      raise ValueError(f"{key} in config.json must be a positive integer, not {raw.get(key)!r}")
  return _build(raw, family)


def _load(directory: pathlib.Path) -> dict[str, Any]:
  path = directory / "config.json"
  if not path.is_file():
    raise FileNotFoundError(
      f"no config.json in {directory}; point to a Hugging Face checkpoint directory"
    )
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{path} is not valid JSON ({error}); download the checkpoint again"
    ) from error


def _heads(raw: Mapping[str, Any], family: str) -> tuple[int, int, int]:
  """Query heads, key/value heads, and the width of each."""
  heads = raw["num_attention_heads"]
  kv_heads = _get(raw, "num_key_value_heads", heads)
  if "num_key_value_heads" not in raw:
    kv_heads = KV_HEADS.get(family, heads)
  if heads % kv_heads:
    raise ValueError(
      f"num_attention_heads={heads} in config.json is not a multiple of "
      f"num_key_value_heads={kv_heads}"
    )
  width = HEAD_DIMS.get(family, raw["hidden_size"] // heads)
  return heads, kv_heads, _get(raw, "head_dim", width)


def _build(raw: Mapping[str, Any], family: str) -> Config:
  gemma = family.startswith("gemma")
  heads, kv_heads, head_dim = _heads(raw, family)
  layer_types = _layer_types(raw, family)
  two_ropes = family == "gemma3_text"
  bias = bool(raw.get("attention_bias"))
  scalar = _get(raw, "query_pre_attn_scalar", 256) if gemma else head_dim
  softcaps = {"attention": 50.0, "final": 30.0} if family == "gemma2" else {}
  return Config(
    model_type=family,
    vocab_size=raw["vocab_size"],
    hidden_size=raw["hidden_size"],
    intermediate_size=raw["intermediate_size"],
    num_layers=raw["num_hidden_layers"],
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    ropes=rope.read(raw, family),
    rope_of_layer=tuple(int(two_ropes and kind == "sliding_attention") for kind in layer_types),
    windows=_windows(raw, layer_types),
    query_scale=scalar**-0.5,
    activation=_activation(raw, gemma),
    norm_eps=_get(raw, "rms_norm_eps", 1e-6),
    tie_embeddings=bool(_get(raw, "tie_word_embeddings", gemma)),
    qkv_bias=bias or family == "qwen2",
    output_bias=bias,
    mlp_bias=bool(raw.get("mlp_bias")),
    qk_norm=family in ("qwen3", "gemma3_text"),
    gemma=gemma,
    attention_softcap=raw.get("attn_logit_softcapping", softcaps.get("attention")),
    final_softcap=raw.get("final_logit_softcapping", softcaps.get("final")),
    initializer_range=_get(raw, "initializer_range", 0.02),
    num_labels=_num_labels(raw),
    bos_token_id=raw.get("bos_token_id"),
    eos_token_ids=_ids(raw.get("eos_token_id")),
    pad_token_id=raw.get("pad_token_id"),
    source=json.dumps(dict(raw), sort_keys=True),
  )


def _get(raw: Mapping[str, Any], key: str, default: Any) -> Any:
  """A null is a missing key."""
  return default if raw.get(key) is None else raw[key]


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
  if value is None:
    return ()
  return (value,) if isinstance(value, int) else tuple(value)


def _activation(raw: Mapping[str, Any], gemma: bool) -> str:
  key, default = ("hidden_activation", "gelu_pytorch_tanh") if gemma else ("hidden_act", "silu")
  name = _get(raw, key, default)
  if name not in ACTIVATIONS or raw.get("hidden_act") not in (None, name):
    raise ValueError(
      f"hidden_act={raw.get('hidden_act')!r}, hidden_activation={raw.get('hidden_activation')!r} "
      f"in config.json is not implemented; known: {', '.join(ACTIVATIONS)}"
    )
  return name


def _num_labels(raw: Mapping[str, Any]) -> int | None:
  """transformers writes a classifier's labels by name; nothing means the default two."""
  if not any(name.endswith("ForSequenceClassification") for name in raw.get("architectures") or ()):
    return None
  return len(raw["id2label"]) if raw.get("id2label") else _get(raw, "num_labels", 2)


def _layer_types(raw: Mapping[str, Any], family: str) -> list[str]:
  layers = raw["num_hidden_layers"]
  full, sliding = "full_attention", "sliding_attention"
  types = raw.get("layer_types")
  if types is not None:
    if len(types) != layers or not set(types) <= {full, sliding}:
      raise ValueError(
        f"layer_types in config.json must name {full} or {sliding} for each of {layers} layers"
      )
    return list(types)
  if family == "mistral":
    return [full if raw.get("sliding_window", 4096) is None else sliding] * layers
  if family.startswith("qwen") and raw.get("use_sliding_window"):
    start = _get(raw, "max_window_layers", 28)
    return [sliding if layer >= start else full for layer in range(layers)]
  if family.startswith("gemma"):
    period = 2 if family == "gemma2" else _get(raw, "sliding_window_pattern", 6)
    return [sliding if (layer + 1) % period else full for layer in range(layers)]
  return [full] * layers


def _windows(raw: Mapping[str, Any], layer_types: list[str]) -> tuple[int, ...]:
  sliding = "sliding_attention" in layer_types
  window = raw.get("sliding_window", 4096)
  if raw["model_type"].startswith("qwen") and not raw.get("use_sliding_window"):
    window = None
  if sliding and (not isinstance(window, int) or window < 1):
    raise ValueError(
      f"layer_types in config.json has sliding_attention, but the window is {window!r}; set "
      "sliding_window (and use_sliding_window for Qwen)"
    )
  return tuple(window if kind == "sliding_attention" else NO_WINDOW for kind in layer_types)
