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

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu")
NO_WINDOW = 2**30

REQUIRED = (
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
)

# Read below, whatever the family.
READ = {
  *REQUIRED,
  "model_type",
  "architectures",
  "num_key_value_heads",
  "head_dim",
  "rms_norm_eps",
  "hidden_act",
  "tie_word_embeddings",
  "initializer_range",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "bos_token_id",
  "eos_token_id",
  "pad_token_id",
  "id2label",
  "num_labels",
}

# Read below, for these families only.
READ_BY = {
  "llama": {"attention_bias", "mlp_bias"},
  "mistral": {"sliding_window"},
  "qwen2": {"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"},
  "qwen3": {
    "attention_bias",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
  },
  "gemma2": {
    "attention_bias",
    "hidden_activation",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "sliding_window",
    "layer_types",
  },
  "gemma3_text": {
    "attention_bias",
    "hidden_activation",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "sliding_window",
    "layer_types",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "rope_local_base_freq",
  },
}

# Where the numbers come from, how they are stored, and what happens around the model.
HARMLESS = {
  "_name_or_path",
  "_attn_implementation_autoset",
  "attn_implementation",
  "cache_implementation",
  "chunk_size_feed_forward",
  "dtype",
  "label2id",
  "output_attentions",
  "output_hidden_states",
  "pretraining_tp",  # the same products, cut into slices
  "problem_type",
  "return_dict",
  "tokenizer_class",
  "torch_dtype",
  "transformers_version",
  "unsloth_fixed",
  "unsloth_version",
  "use_cache",
  # Only bounds the longest input; where it changes the rotation it is read through rope_parameters.
  "max_position_embeddings",
  # Dropout is never applied: alignment compares two passes of one model.
  "attention_dropout",
  "classifier_dropout",
}

# Keys that other maths could hide behind: only these values are computed here.
ONLY = {
  "add_cross_attention": (False,),
  "attention_bias": (False,),
  "attn_logit_softcapping": (),
  "is_decoder": (False, True),
  "is_encoder_decoder": (False,),
  "mlp_bias": (False,),
  "partial_rotary_factor": (1.0,),
  "use_bidirectional_attention": (False,),
  "use_mrope": (False,),
  "use_sliding_window": (False,),
}


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary frequencies: theta ** (-2 i / head_dim), stretched by `kind`."""

  theta: float
  kind: str = "default"  # default, linear or llama3
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 1.0
  original_positions: int = 0


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
  ropes: tuple[Rope, ...]  # one, or (full attention, sliding attention)
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
      "config.json has auto_map, which runs code from the checkpoint; remove it if the model is one "
      f"of {', '.join(FAMILIES)}"
    )
  if family not in FAMILIES:
    raise ValueError(
      f"unknown architecture {family!r} in config.json; known: {', '.join(FAMILIES)}"
    )
  _check(raw, family)
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


def _check(raw: Mapping[str, Any], family: str) -> None:
  known = READ | READ_BY[family] | HARMLESS
  for key, value in raw.items():
    if key in known or value is None:
      continue
    if key not in ONLY:
      raise ValueError(
        f"config.json has {key}={value!r}, which nothing here reads, so the {family} model would "
        "compute something else; remove the key if it does not change the outputs"
      )
    if value not in ONLY[key]:
      raise ValueError(f"{key}={value!r} in config.json is not implemented for {family}")


def _build(raw: Mapping[str, Any], family: str) -> Config:
  gemma = family.startswith("gemma")
  heads = raw["num_attention_heads"]
  kv_heads = _get(
    raw, "num_key_value_heads", {"mistral": 8, "gemma2": 4, "gemma3_text": 4}.get(family, heads)
  )
  default_dim = {"qwen3": 128, "gemma2": 256, "gemma3_text": 256}.get(
    family, raw["hidden_size"] // heads
  )
  head_dim = _get(raw, "head_dim", default_dim)
  if heads % kv_heads:
    raise ValueError(
      f"num_attention_heads={heads} in config.json is not a multiple of num_key_value_heads={kv_heads}"
    )
  layer_types = _layer_types(raw, family)
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
    ropes=_ropes(raw, family),
    rope_of_layer=tuple(
      int(family == "gemma3_text" and kind.startswith("s")) for kind in layer_types
    ),
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
  name = (
    _get(raw, "hidden_activation", "gelu_pytorch_tanh")
    if gemma
    else _get(raw, "hidden_act", "silu")
  )
  if name not in ACTIVATIONS or raw.get("hidden_act") not in (None, name):
    raise ValueError(
      f"hidden_act={raw.get('hidden_act')!r}, hidden_activation={raw.get('hidden_activation')!r} in "
      f"config.json is not implemented; known: {', '.join(ACTIVATIONS)}"
    )
  return name


def _num_labels(raw: Mapping[str, Any]) -> int | None:
  """transformers writes the labels of a classifier by name only, and nothing for the default two."""
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
  if (
    family.startswith("qwen") and raw.get("use_sliding_window") and raw.get("sliding_window", 4096)
  ):
    start = _get(raw, "max_window_layers", 28)
    return [sliding if layer >= start else full for layer in range(layers)]
  if family.startswith("gemma"):
    period = _get(raw, "sliding_window_pattern", _get(raw, "_sliding_window_pattern", 6))
    period = 2 if family == "gemma2" else period
    return [sliding if (layer + 1) % period else full for layer in range(layers)]
  return [full] * layers


def _windows(raw: Mapping[str, Any], layer_types: list[str]) -> tuple[int, ...]:
  sliding = "sliding_attention" in layer_types
  window = raw.get("sliding_window", 4096) if sliding else None
  if sliding and (not isinstance(window, int) or window < 1):
    raise ValueError(
      f"sliding_window={window!r} in config.json, but layer_types has sliding_attention"
    )
  return tuple(window if kind == "sliding_attention" else NO_WINDOW for kind in layer_types)


def _ropes(raw: Mapping[str, Any], family: str) -> tuple[Rope, ...]:
  """transformers 5 writes `rope_parameters`, older files `rope_theta` and `rope_scaling`."""
  parameters = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
  theta = _get(raw, "rope_theta", 1e6 if family == "gemma3_text" else 1e4)
  if family != "gemma3_text":
    return (_rope(parameters, theta, raw),)
  local = _get(raw, "rope_local_base_freq", 1e4)
  if "rope_theta" in parameters or "full_attention" not in parameters:
    return _rope(parameters, theta, raw), Rope(theta=local)
  sliding = parameters.get("sliding_attention") or {}
  return _rope(parameters["full_attention"] or {}, theta, raw), _rope(sliding, local, raw)


def _rope(parameters: Mapping[str, Any], theta: float, raw: Mapping[str, Any]) -> Rope:
  values = {key: value for key, value in parameters.items() if value is not None}
  kind = values.pop("rope_type", values.pop("type", "default"))
  values.pop("type", None)
  theta = float(values.pop("rope_theta", theta))
  if values.pop("partial_rotary_factor", 1.0) != 1.0:
    raise ValueError("partial_rotary_factor other than 1 in config.json is not implemented")
  wanted = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
  }
  if kind not in wanted:
    raise ValueError(
      f"rope_type {kind!r} in config.json is not implemented; known: {', '.join(wanted)}"
    )
  original = values.pop("original_max_position_embeddings", raw.get("max_position_embeddings"))
  missing, extra = set(wanted[kind]) - set(values), set(values) - set(wanted[kind])
  if missing or (kind == "llama3" and not original):
    raise ValueError(
      f"rope_type {kind!r} in config.json lacks {', '.join(sorted(missing)) or 'original_max_position_embeddings'}"
    )
  if extra:
    raise ValueError(
      f"rope_type {kind!r} in config.json has {', '.join(sorted(extra))}, which it does not read"
    )
  numbers = {key: float(value) for key, value in values.items()}
  return Rope(theta, kind, original_positions=int(original) if kind == "llama3" else 0, **numbers)
