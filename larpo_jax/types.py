"""The one data layout: B prompts with K scored responses each.

The letters, used everywhere: B prompts, K responses of a prompt, P prompt tokens, R response
tokens, V vocabulary, L layers, D model width, H query heads, G key/value heads, M MLP width.
A trailing comment `# [B, K]` tags each change of rank.
"""

from __future__ import annotations

from typing import Any, Protocol

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
Metrics = dict[str, Array]


@struct.dataclass
class Batch:
  """B prompts with K scored responses each.

  The prompt may be padded on either side. A response is padded on the right: every token up to
  the last one that counts is read as context, whether it counts or not.
  """

  prompt: Array  # int32 [B, 1 | K, P]: one prompt for the list, or one for each response
  prompt_mask: Array  # bool [B, 1 | K, P]
  response: Array  # int32 [B, K, R]
  response_mask: Array  # float32 [B, K, R]: 1 on the tokens that count
  label: Array  # float32 [B, K]: reward, relevance, or +1 / -1 / 0; higher is better
  valid: Array  # bool [B, K]: False where a short list is padded
  weight: Array  # float32 [B]: 0 on rows that pad a short batch
  row: Array  # int32 [B]: which row of the data set this is, -1 on padding
  span: Array | None = None  # int32 [B, K, R]: 0 shared, i > 0 the i-th edited span
  cond: Any = None  # what else the model is given (images, latents, timesteps)
  reference: Array | None = None  # float32 [B, K, R]: cached reference log-probs


@struct.dataclass
class LogProbs:
  """What one model says of a batch: log p(token | prefix) in nats, 0 where masked."""

  token: Array  # float32 [B, K, R]
  mask: Array  # float32 [B, K, R]
  entropy: Array | None = None  # float32 [B, K, R]: of the next-token distribution, no gradient
  kl: Array | None = None  # float32 [B, K, R]: KL(reference || policy) over the whole vocabulary

  @property
  def sequence(self) -> jax.Array:
    """log p(response | prompt): the sum over the tokens that count, [B, K]."""
    return jnp.sum(jnp.where(self.mask > 0, self.token * self.mask, 0.0), axis=-1)

  @property
  def length(self) -> jax.Array:
    """Tokens that count, [B, K]."""
    return jnp.sum(self.mask, axis=-1)

  @property
  def mean(self) -> jax.Array:
    """Log-prob per token, [B, K]; 0 for an empty response."""
    return self.sequence / jnp.maximum(self.length, 1.0)


class Kernel(Protocol):
  """A loss: arrays in, one float32 per prompt and per-prompt metrics out.

  Two attributes describe it, both optional: `couples_prompts = True` when the loss of one prompt
  depends on the others in the batch, `needs_reference = False` when `reference` is never read.
  """

  def __call__(
    self, policy: LogProbs, reference: LogProbs, batch: Batch, **hyper_parameters: Any
  ) -> tuple[jax.Array, Metrics]:
    """Returns loss [B] and metrics {name: [B]}."""


class Scorer(Protocol):
  """A model's log-probs of a batch."""

  def __call__(self, model: Any, params: Any, batch: Batch) -> LogProbs:
    """Returns float32 log-probs whatever the model computes in."""


class Reward(Protocol):
  """A judge of text: prompts and the responses to each -> one number a response."""

  def __call__(self, prompts: list[str], responses: list[list[str]]) -> np.ndarray:
    """Returns float32 [B, K]."""
