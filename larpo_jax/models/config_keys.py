"""Which keys of `config.json` are read, which change nothing, and which must have one value."""

from collections.abc import Mapping
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
HEADS = ("ForCausalLM", "ForSequenceClassification")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu")
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
  "bos_token_id",
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
    "sliding_window_size",  # a leftover in published files that transformers does not read either
  },
  "gemma3_text": {
    "attention_bias",
    "hidden_activation",
    "query_pre_attn_scalar",
    "final_logit_softcapping",
    "sliding_window",
    "layer_types",
    "sliding_window_pattern",
    "_sliding_window_pattern",  # written beside layer_types, and not read back
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


def check(raw: Mapping[str, Any], family: str) -> None:
  """Raises ValueError that names the first key whose effect on the outputs is not computed."""
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
