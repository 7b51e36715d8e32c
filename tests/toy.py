"""A model small enough to compile at once, and a loss that couples the prompts of a batch."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import VOCABULARY

from larpo_jax.types import LogProbs

RULES = {"embed": "fsdp", "mlp": "tensor", "vocab": "tensor"}
RULES |= {"heads": "tensor", "kv_heads": "tensor"}


def params(seed):
  """The logits of the next token, one row for each token before it."""
  table = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)
  return nnx.State({"table": nnx.Param(jnp.asarray(table), logical_axes=("vocab", "embed"))})


def bigrams(model, params, batch):
  """A scorer: each token is predicted from the one before it; `model` is not read."""
  del model
  mask = jnp.asarray(batch.response_mask, jnp.float32)
  first = jnp.broadcast_to(batch.prompt[..., -1:], (*mask.shape[:2], 1))
  before = jnp.concatenate([first, batch.response[..., :-1]], axis=-1)
  logs = jax.nn.log_softmax(params["table"][...][before])  # [B, K, R, V]
  token = jnp.take_along_axis(logs, batch.response[..., None], axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(logs) * logs, axis=-1)
  return LogProbs(token=token * mask, mask=mask, entropy=entropy * mask)


def sorted_pairs(policy, reference, batch):
  """AOT's shape: the i-th best first response against the i-th best last one, over the batch.

  The entropy is in it too, so that not only token log-probs carry a slope.
  """
  reward = policy.sequence - reference.sequence  # [B, K]
  margin = jnp.sort(reward[:, 0]) - jnp.sort(reward[:, -1])  # [B]
  spread = jnp.square(reward[:, 0] - jnp.mean(reward))
  surprise = jnp.sum(policy.entropy * batch.response_mask, axis=(1, 2))
  loss = jax.nn.softplus(-margin) + 0.01 * spread + 0.003 * jnp.square(surprise - surprise.mean())
  return loss, {"margin": margin}


sorted_pairs.couples_prompts = True
