"""For tests of the step: a model that compiles at once, a loss that couples prompts, measures."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny_models import VOCABULARY

from larpo_jax import sharding
from larpo_jax.types import LogProbs

# One step of plain descent at rate 1 moves the parameters by their gradient.
DESCENT = optax.sgd(1.0)
RULES = {"embed": "fsdp", "mlp": "tensor", "vocab": "tensor"}
RULES |= {"heads": "tensor", "kv_heads": "tensor"}


def params(seed, size=VOCABULARY):
  """The logits of the next token, one row for each token before it."""
  table = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
  return nnx.State({"table": nnx.Param(jnp.asarray(table), logical_axes=("vocab", "embed"))})


def bigrams(model, params, batch, *, reference=None, collision=False):
  """A scorer: each token is predicted from the one before it; `model` is not read."""
  del model
  mask = jnp.asarray(batch.response_mask, jnp.float32)
  first = jnp.broadcast_to(batch.prompt[..., -1:], (*mask.shape[:2], 1))
  before = jnp.concatenate([first, batch.response[..., :-1]], axis=-1)
  logs = jax.nn.log_softmax(params["table"][...][before])  # [B, K, R, V]
  token = jnp.take_along_axis(logs, batch.response[..., None], axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(logs) * logs, axis=-1)
  found = LogProbs(token=token * mask, mask=mask, entropy=entropy * mask)
  if collision:
    squares = jax.nn.logsumexp(2.0 * jax.lax.stop_gradient(logs), axis=-1)
    found = found.replace(collision=squares * mask)
  if reference is not None:
    other = jax.lax.stop_gradient(jax.nn.log_softmax(reference["table"][...][before]))
    found = found.replace(kl=jnp.sum(jnp.exp(other) * (other - logs), axis=-1) * mask)
  return found


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


def mesh_of(data=1, fsdp=1, tensor=1):
  count = data * fsdp * tensor
  return sharding.make_mesh(dict(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[:count])


def host(tree):
  return jax.tree.map(np.asarray, tree)


def close(found, wanted, tolerance=1e-5):
  """Within tolerance of the largest number of each leaf."""
  pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
  for one, other in pairs:
    one, other = np.asarray(one), np.asarray(other)
    scale = max(1.0, float(np.max(np.abs(other))))
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


def weighted(batch, seed):
  """The batch with a row that does not count, a short list, and rows that weigh differently."""
  rng = np.random.default_rng(seed)
  weight = rng.uniform(0.5, 2.0, batch.weight.shape).astype(np.float32)
  weight[1] = 0.0
  valid = batch.valid.copy()
  valid[2, -1] = False
  mask = batch.response_mask * valid[..., None]
  return batch.replace(weight=weight, valid=valid, response_mask=mask)
