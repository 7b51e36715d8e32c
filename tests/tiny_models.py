"""Tiny models of every family: their config.json, and PyTorch's own implementation of them."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax.models import transformer

# For jax.jit(compiler_options=...): compiles in half the time where speed is not the matter.
FAST = {"xla_backend_optimization_level": 0}
VOCABULARY = 97
SIZES = {
  "vocab_size": VOCABULARY,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "rope_theta": 321.0,
  "max_position_embeddings": 64,
  "initializer_range": 0.02,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "pad_token_id": 0,
}
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 4.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
SLIDING = {"sliding_window": 5}

# Between them: tied and untied, with and without every bias, grouped heads, windows, both ropes.
FAMILIES = {
  "llama2": SIZES | {"model_type": "llama", "num_key_value_heads": 4},
  "llama3": SIZES
  | {
    "model_type": "llama",
    "rope_scaling": LLAMA3,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
  },
  "mistral": SIZES | SLIDING | {"model_type": "mistral", "head_dim": 16},
  "qwen2_sliding": SIZES
  | SLIDING
  | {
    "model_type": "qwen2",
    "use_sliding_window": True,
    "max_window_layers": 1,
    "tie_word_embeddings": True,
  },
  "qwen3": SIZES | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False},
  "gemma2": SIZES
  | SLIDING
  | {
    "model_type": "gemma2",
    "head_dim": 8,
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 4.0,
  },
  "gemma3": SIZES
  | SLIDING
  | {
    "model_type": "gemma3_text",
    "head_dim": 8,
    "sliding_window_pattern": 2,
    "rope_local_base_freq": 55.0,
    "rope_scaling": {"rope_type": "linear", "factor": 3.0},
    "tie_word_embeddings": False,
  },
}


def torch_model(torch, settings, seed, kind="AutoModelForCausalLM"):
  """PyTorch's model of a config.json, every weight random: norms and biases too."""
  import transformers

  settings = dict(settings)
  config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
  model = getattr(transformers, kind).from_config(config, attn_implementation="eager").eval()
  usual = 0.0 if config.model_type.startswith("gemma") else 1.0  # Gemma's norms multiply by 1 + w
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      centre = usual if name.endswith("norm.weight") else 0.0
      # Seven times what checkpoints start from, so that nothing hides in small numbers; at twelve
      # times, float32 rounding alone can reach the bar of 2e-5.
      weight.copy_(centre + 0.15 * torch.randn(weight.shape, generator=generator))
  return model


def padded(seed, length=12):
  """Tokens, mask and positions [3, length]: padded left, padded right, and not at all."""
  random = np.random.default_rng(seed)
  tokens = random.integers(3, VOCABULARY, (3, length))
  mask = np.ones((3, length), bool)
  mask[0, :3], mask[1, -4:] = False, False
  tokens[~mask] = 0
  return tokens, mask, np.maximum(np.cumsum(mask, -1) - 1, 0)


def randomise(params, seed):
  """The same parameters with large random values, so that nothing is near its initial symmetry."""
  random = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(0.25 * random.normal(size=leaf.shape), jnp.float32)  # noqa: E731
  return jax.tree.map(draw, params)


def random_model(settings, seed, **options):
  """(graphdef, params) with large random weights; options are those of Transformer."""
  make = lambda: transformer.Transformer(settings, rngs=nnx.Rngs(params=0), **options)  # noqa: E731
  graphdef, shapes = nnx.split(nnx.eval_shape(make))
  return graphdef, randomise(shapes, seed)


def inputs(seed, lists, length):
  """Random tokens, positions from 0 and validity, [2, lists, length]."""
  tokens = jnp.asarray(np.random.default_rng(seed).integers(3, VOCABULARY, (2, lists, length)))
  positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
  return tokens, positions, jnp.ones(tokens.shape, bool)


def total(logits):
  """A loss that every logit has its own weight in."""
  return jnp.sum(logits * np.random.default_rng(0).normal(size=logits.shape).astype(np.float32))


def close(ours, wanted, atol=1e-5):
  """The same values, relative to the largest of each array."""
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
    scale = np.max(np.abs(b)) + 1e-30
    np.testing.assert_allclose(a / scale, b / scale, atol=atol)
