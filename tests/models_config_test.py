"""What of a config.json is computed, and what is refused by name."""

import pytest
from tiny_models import FAMILIES, SIZES

from larpo_jax.models import config, rope


def test_old_and_new_rope_keys_say_the_same():
  llama3 = FAMILIES["llama3"]["rope_scaling"]
  old = {"rope_theta": 5e5, "rope_scaling": llama3}
  new = {"rope_parameters": {"rope_theta": 5e5, **llama3}}
  assert rope.read(old, "llama") == rope.read(new, "llama") == rope.read(old | new, "llama")
  gemma = {"rope_theta": 9e5, "rope_local_base_freq": 9e3}
  nested = {
    "full_attention": {"rope_type": "default", "rope_theta": 9e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 9e3},
  }
  assert rope.read(gemma, "gemma3_text") == rope.read({"rope_parameters": nested}, "gemma3_text")
  for family in FAMILIES:
    settings = config.read(FAMILIES[family])
    assert rope.read(rope.write(settings.ropes), settings.model_type) == settings.ropes


def test_a_config_says_the_same_when_it_is_read_again():
  for settings in FAMILIES.values():
    once = config.read(settings)
    assert once == config.read(dict(reversed(settings.items())))
    assert hash(once) == hash(config.read(settings))


@pytest.mark.parametrize(
  ("family", "changes", "message"),
  [
    ("llama2", {"residual_multiplier": 0.5}, "residual_multiplier=0.5"),
    ("llama2", {"sliding_window": 4}, "sliding_window=4"),
    ("llama2", {"hidden_act": "relu"}, "hidden_act='relu'"),
    ("gemma2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("llama2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
    ("llama2", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
    ("llama2", {"rope_scaling": {"rope_type": "linear"}}, "missing or unread: factor"),
    ("llama2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama2", {"num_key_value_heads": 3}, "not a multiple of num_key_value_heads=3"),
    ("llama2", {"hidden_size": "32"}, "hidden_size in config.json must be a positive integer"),
    ("llama2", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("mistral", {"attention_bias": True}, "attention_bias=True"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("qwen2_sliding", {"use_mrope": True}, "use_mrope=True"),
    ("qwen2_sliding", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "the window is None"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias=True"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
  ],
)
def test_what_is_not_computed_is_refused_by_name(family, changes, message):
  with pytest.raises(ValueError, match=message):
    config.read(FAMILIES[family] | changes)


def test_keys_that_change_nothing_are_accepted():
  harmless = {"torch_dtype": "bfloat16", "transformers_version": "4.40.0", "use_cache": True}
  assert config.read(SIZES | {"model_type": "llama"} | harmless | {"unknown": None})
  assert all(config.read(settings | harmless) for settings in FAMILIES.values())
