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
  score: Array | None = None  # float32 [B, K]: a second judge's rewards, where labels prefer
  importance: Array | None = None  # float32 [B, K]: what a response counts: density ratio, novelty
  cond: Any = None  # what else the model is given (images, latents, timesteps)
  reference: Array | None = None  # float32 [B, K, R]: cached reference log-probs
  # How many tokens a prompt with its responses has, on average over the prompts of a device (and of
  # a micro-batch), at most: what is computed. Static; 0 for as many as there are places.
  room: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class LogProbs:
  """What one model says of a batch: log p(token | prefix) in nats, 0 where masked."""

  token: Array  # float32 [B, K, R]
  mask: Array  # float32 [B, K, R]
  entropy: Array | None = None  # float32 [B, K, R]: of the next-token distribution, no gradient
  kl: Array | None = None  # float32 [B, K, R]: KL(reference || policy) over the whole vocabulary
  collision: Array | None = None  # float32 [B, K, R]: log sum_v p(v)^2, no gradient

  @property
  def sequence(self) -> jax.Array:
    """log p(response | prompt): the sum over the tokens that count, [B, K]."""
    return jnp.sum(jnp.where(self.mask > 0, self.token * self.mask, 0.0), axis=-1)

  @property
  def length(self) -> jax.Array:
    """Tokens that count, however much each does, [B, K]."""
    return jnp.sum(jnp.where(self.mask > 0, 1.0, 0.0), axis=-1)

  @property
  def mean(self) -> jax.Array:
    """Log-prob per token, [B, K]; 0 for an empty response."""
    return self.sequence / jnp.maximum(self.length, 1.0)


class Kernel(Protocol):
  """A loss: arrays in, one float32 per prompt and per-prompt metrics out.

  Attributes describe it, all optional:

  * needs_reference = False: `reference` is never read.
  * couples_prompts = True: the loss of one prompt depends on the others in the batch.
  * needs = ("kl",) or ("collision",): fields of `policy` that a scorer gives only when asked.
  * reads = ("score",), ("importance",) or ("span",): fields of `batch` that data may bring.
  * requires = {"data.spans": "edited spans"}: settings it can not do without, and what for.
  * compares = False: it reads responses one at a time, so lists of one will do.
  * statistics = a function of nothing: what the kernel carries from step to step, a dict of arrays
    as it is before the first one. Such a kernel takes them as its fourth argument (None: before the
    first step) and returns those after the step as its third result.
  """

  def __call__(
    self, policy: LogProbs, reference: LogProbs, batch: Batch, **hyper_parameters: Any
  ) -> tuple[jax.Array, Metrics]:
    """Returns loss [B] and metrics {name: [B]}."""


class Scorer(Protocol):
  """A model's log-probs of a batch.

  A loss that asks for "kl" passes the parameters `reference` too, one that asks for "collision"
  collision=True; a scorer that takes neither serves all other losses. With the attribute
  classifies = True its model is a `models.heads.Classifier`, which scores texts and writes none.
  """

  def __call__(self, model: Any, params: Any, batch: Batch, **asked: Any) -> LogProbs:
    """Returns float32 log-probs whatever the model computes in."""


class Reward(Protocol):
  """A judge of text: prompts and the responses to each -> one number a response."""

  def __call__(self, prompts: list[str], responses: list[list[str]]) -> np.ndarray:
    """Returns float32 [B, K]."""
