"""What kernels share: the implicit reward, who is best, worst or beaten, and the metrics.

One rule of ties for every kernel: equal labels say nothing about order. Two responses with the
same label never compete, and where a kernel asks for the best (or the worst) response and several
share that label, it takes the mean over them. So nothing depends on the order of the candidates,
and a list whose labels are all equal has loss 0 and gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.types import Array, Batch, LogProbs, Metrics

Function = TypeVar("Function", bound=Callable[..., Any])
Choice = TypeVar("Choice")


def marked(**attributes: Any) -> Callable[[Function], Function]:
  """Sets the attributes of a kernel that types.Kernel lists."""

  def mark(kernel: Function) -> Function:
    for name, value in attributes.items():
      setattr(kernel, name, value)
    return kernel

  return mark


def implicit_reward(policy: LogProbs, reference: LogProbs, batch: Batch, beta: Any) -> jax.Array:
  """beta (log p(y) - log p_ref(y)) [B, K], sums over tokens; 0 where there is no response.

  Raises ValueError unless beta > 0 (a traced beta is not looked at).
  """
  require("beta", beta, lambda value: 0.0 < value < math.inf, "above 0 and finite")
  return beta * log_ratio(policy, reference, batch)


def log_ratio(policy: LogProbs, reference: LogProbs, batch: Batch) -> jax.Array:
  """log p(y) - log p_ref(y) [B, K], sums over tokens; 0 where there is no response."""
  return jnp.where(batch.valid, policy.sequence - reference.sequence, 0.0)


def log_prob(policy: LogProbs, batch: Batch) -> jax.Array:
  """log p(y) [B, K], the sum over tokens; 0 where there is no response."""
  return jnp.where(batch.valid, policy.sequence, 0.0)


def mean_log_prob(policy: LogProbs, batch: Batch) -> jax.Array:
  """log p(y) per token [B, K], at most 0; 0 where there is no response."""
  return jnp.minimum(jnp.where(batch.valid, policy.mean, 0.0), 0.0)


def mean_log_ratio(policy: LogProbs, reference: LogProbs, batch: Batch) -> jax.Array:
  """log p(y) - log p_ref(y) per token [B, K]; 0 where there is no response."""
  return log_ratio(policy, reference, batch) / jnp.maximum(length(policy, batch), 1.0)


def length(policy: LogProbs, batch: Batch) -> jax.Array:
  """Tokens that count [B, K]; 0 where there is no response."""
  return jnp.where(batch.valid, policy.length, 0.0)


def score(batch: Batch) -> Array:
  """The second judge's rewards [B, K], the labels where there is none; 0 where no response is."""
  given = batch.label if batch.score is None else batch.score
  return jnp.where(batch.valid, given, 0.0)


def label(batch: Batch) -> Array:
  """The labels [B, K]; 0 where there is no response."""
  return jnp.where(batch.valid, batch.label, 0.0)


def importance(batch: Batch) -> Array:
  """What each response counts [B, K], 1 where the data does not say; 0 where no response is."""
  given = 1.0 if batch.importance is None else batch.importance
  return jnp.where(batch.valid, given, 0.0)


def ordered(batch: Batch) -> Array:
  """Prompts with two responses of different labels, bool [B]."""
  return jnp.any(beaten(batch), axis=(-2, -1))


def require(name: str, value: Any, holds: Callable[[float], bool], bounds: str) -> None:
  """Raises ValueError that names the hyper-parameter unless it is in bounds; tracers pass."""
  if isinstance(value, int | float) and not holds(value):
    raise ValueError(f"{name} is {value}, and has to be {bounds}")


def soft_least(loss: jax.Array, there: Array, batch: Batch, temperature: float) -> jax.Array:
  """-b log of the weighted mean of exp(-loss / b) over the prompts that are there, at each of them.

  loss [B], there bool [B], b = temperature, above 0 and finite; 0 elsewhere.
  """
  weight = jnp.where(there, batch.weight, 0.0)
  scaled = jnp.where(there, -loss / temperature, 0.0)
  # Without any prompt, log of a sum of one stands in: there is no log of 0 to differentiate.
  some = jnp.sum(weight) > 0
  lse = jax.nn.logsumexp(scaled, b=jnp.where(some, weight, 1.0))
  value = -temperature * (lse - jnp.log(jnp.maximum(jnp.sum(weight), 1e-30)))
  return jnp.where(there & some, value, 0.0)


def choice(name: str, value: str, choices: Mapping[str, Choice]) -> Choice:
  """The one of several that a hyper-parameter names; raises ValueError that lists them."""
  if value not in choices:
    raise ValueError(f"{name} is {value!r}, and has to be one of {', '.join(choices)}")
  return choices[value]


def best(batch: Batch) -> Array:
  """The responses with the highest label of their list, bool [B, K]; none in an empty list."""
  top = jnp.max(jnp.where(batch.valid, batch.label, -jnp.inf), axis=-1, keepdims=True)
  return batch.valid & (batch.label == top)


def worst(batch: Batch) -> Array:
  """The responses with the lowest label of their list, bool [B, K]; none in an empty list."""
  bottom = jnp.min(jnp.where(batch.valid, batch.label, jnp.inf), axis=-1, keepdims=True)
  return batch.valid & (batch.label == bottom)


def beaten(batch: Batch) -> Array:
  """Who is strictly better than whom: bool [B, K, K], True at (i, j) where i beats j."""
  return masked.pairs(batch.label, batch.valid)


def margins(reward: jax.Array) -> jax.Array:
  """reward_i - reward_j at (i, j): [B, K] -> [B, K, K]."""
  return reward[..., :, None] - reward[..., None, :]


def against(reward: Array, rivals: Array) -> jax.Array:
  """-log softmax of each response among itself and its rivals: [B, K]; 0 where it has none.

  rivals is bool [B, K, K], True at (i, j) where j is a rival of i.
  """
  return behind(reward, reward[..., None, :], rivals)


def behind(own: Array, others: Array, rivals: Array) -> jax.Array:
  """log(exp(own) + sum of exp(others) of the rivals) - own: [B, K]; 0 where there is no rival.

  own is [B, K], others [B, 1 | K, K], at (i, j) what j is worth against i. It is written as
  -log sigmoid(own - lse(others)), which for one rival is DPO to the last bit and, unlike
  lse(all) - own, does not cancel to 0 when the response is far ahead.
  """
  contested = jnp.any(rivals, axis=-1)  # [B, K]
  # Without a rival a list of zeros stands in, so that the log-sum-exp and its gradient are finite.
  left_out = jnp.where(contested, -jnp.inf, 0.0)[..., None]  # [B, K, 1]
  others = jnp.where(rivals, others, left_out)  # [B, K, K]
  ahead = own - jax.nn.logsumexp(others, axis=-1)  # [B, K]
  return jnp.where(contested, -jax.nn.log_sigmoid(ahead), 0.0)


def metrics(reward: jax.Array, policy: LogProbs, reference: LogProbs, batch: Batch) -> Metrics:
  """What every kernel with a reference reports of each prompt, {name: float32 [B]}; no gradient.

  What `rewarded` says, and

  * displacement/chosen: logps/chosen minus the reference's; below 0, the chosen became less likely;
  * kl: mean over responses of log p(y) - log p_ref(y); estimates KL(policy || reference) only as
    far as the responses are samples of the policy, and can be negative.
  """
  ratio = log_ratio(policy, reference, batch)
  found = {
    "displacement/chosen": masked.mean(ratio, best(batch), -1),
    "kl": masked.mean(ratio, batch.valid, -1),
  }
  return jax.lax.stop_gradient(found) | rewarded(reward, policy, batch)


def rewarded(reward: jax.Array, policy: LogProbs, batch: Batch) -> Metrics:
  """What every kernel with a reward [B, K] reports of each prompt, {name: float32 [B]}.

  Names that TRL has mean what they mean there: chosen is the best-labelled response and rejected
  the worst-labelled; in a list of equal labels every response is both. Beyond TRL's:

  * rank/accuracy: share of ordered pairs that the reward orders rightly, equal rewards count 1/2;
  * rank/ordered: 1 where the list has an ordered pair. Elsewhere both accuracies are 0, so divide
    their means by its mean when data with lists of equal labels are trained on.
  """
  chosen, rejected, wins = best(batch), worst(batch), beaten(batch)
  right = jnp.where(margins(reward) > 0, 1.0, 0.0)  # [B, K, K]
  half = jnp.where(margins(reward) == 0, 0.5, 0.0)
  ends = wins & chosen[..., :, None] & rejected[..., None, :]
  on = {"chosen": chosen, "rejected": rejected}
  found: Metrics = {f"rewards/{name}": masked.mean(reward, who, -1) for name, who in on.items()}
  found |= {
    "rewards/margins": found["rewards/chosen"] - found["rewards/rejected"],
    "rewards/accuracies": masked.mean(right, ends, (-2, -1)),
    "rank/accuracy": masked.mean(right + half, wins, (-2, -1)),
    "rank/ordered": ordered(batch).astype(jnp.float32),
  }
  for name, who in on.items():
    found |= {
      f"logps/{name}": masked.mean(policy.sequence, who, -1),
      f"length/{name}": masked.mean(policy.length, who, -1),
    }
  return jax.lax.stop_gradient(found | likelihood(policy, batch))


def likelihood(policy: LogProbs, batch: Batch) -> Metrics:
  """What can be said of a prompt without a reference, {name: float32 [B]}; no gradient.

  entropy is the mean over the tokens of a prompt's responses. TRL takes the mean over the tokens
  of the batch, where a longer prompt weighs more.
  """
  chosen = best(batch)
  found: Metrics = {
    "logps/chosen": masked.mean(policy.sequence, chosen, -1),
    "logps/chosen_per_token": masked.mean(policy.mean, chosen, -1),
    "length/chosen": masked.mean(policy.length, chosen, -1),
  }
  if policy.entropy is not None:
    counted = (policy.mask > 0) & batch.valid[..., None]  # [B, K, R]
    found["entropy"] = masked.mean(policy.entropy, counted, (-2, -1))
  return jax.lax.stop_gradient(found)


def log_softmax(value: jax.Array, batch: Batch) -> jax.Array:
  """log softmax over the responses of a list, [B, K]; 0 where there is no response.

  Shifted before it is summed, so that a share near 1 keeps its digits.
  """
  far = jnp.where(batch.valid, value, -jnp.inf)
  some = jnp.any(batch.valid, axis=-1, keepdims=True)
  shares = jax.nn.log_softmax(jnp.where(some, far, 0.0), axis=-1)
  return jnp.where(batch.valid, shares, 0.0)
