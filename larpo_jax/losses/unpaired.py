"""Losses of single responses that are labelled desirable (above 0) or undesirable (below 0).

A label of 0 is no verdict: such a response is another prompt's, and serves KTO's baseline. The loss
of a prompt is the mean over its labelled responses. In the formulas r = beta (log p - log p_ref),
sums over tokens, w is the weight of its kind (desirable_weight, undesirable_weight), s is the
logistic function and ls its logarithm.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _running, _scores
from larpo_jax.losses._running import Statistics
from larpo_jax.losses._scores import marked
from larpo_jax.types import Array, Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]


@marked(
  compares=False,
  couples_prompts=True,
  requires={"data.mismatched": "responses of other prompts, with label 0, for its baseline"},
)
def kto(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> Result:
  """Kahneman-Tversky optimisation: each response's reward against the policy's drift as a whole.

  Formula: w (1 - s(r - beta kl)) if desirable, w (1 - s(beta kl - r)) if undesirable,
  kl = max(0, mean over the batch of log p - log p_ref on responses of other prompts), no gradient
  Source: KTO, https://arxiv.org/abs/2402.01306, Eq. 7 and 8; TRL's KTOTrainer.
  Defaults: beta 0.1 and weights 1 are TRL's.
  Traps: kl needs responses with label 0 (data.mismatched=True); without any it is 0, which makes
  this `apo_zero_unpaired`. The mean is over the global batch; TRL pairs within each device's part,
  HALOs within each micro-batch. Weights should balance the two kinds (paper, section 4.1).
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  other = batch.valid & (batch.label == 0)
  ratio = masked.mean(_scores.log_ratio(policy, reference, batch), other, -1)  # [B]
  heard = jnp.where(jnp.any(other, axis=-1), batch.weight, 0.0)
  kl = jax.lax.stop_gradient(jnp.maximum(masked.weighted_mean(ratio, heard), 0.0))
  good = desirable_weight * jax.nn.sigmoid(beta * kl - reward)
  bad = undesirable_weight * jax.nn.sigmoid(reward - beta * kl)
  loss, metrics = _labelled(good, bad, reward, policy, batch)
  return loss, metrics | {"kl": jnp.broadcast_to(kl, loss.shape)}


@marked(compares=False)
def apo_zero_unpaired(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
) -> Result:
  """Anchored preference optimisation on single responses: KTO with a baseline of 0.

  Formula: w (1 - s(r)) if desirable, w s(r) if undesirable
  Source: APO, https://arxiv.org/abs/2408.06266, Eq. 7; TRL's KTOTrainer, "apo_zero_unpaired".
  Defaults: beta 0.1 and weights 1 are TRL's.
  Traps: for desirable responses that are better than what the policy writes.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  good = desirable_weight * jax.nn.sigmoid(-reward)
  bad = undesirable_weight * jax.nn.sigmoid(reward)
  return _labelled(good, bad, reward, policy, batch)


@marked(
  compares=False,
  couples_prompts=True,
  reads=("importance",),
  statistics=_running.nothing_yet,
)
def bco(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  statistics: Statistics | None = None,
  *,
  beta: float = 0.1,
  smallest: float = 0.5,
  largest: float = 10.0,
) -> tuple[jax.Array, Metrics, Statistics]:
  """Binary classifier optimisation: desirable or not, by a reward less the mean of all so far.

  Formula: -ls(r - delta) if desirable, -u ls(delta - r) if undesirable, delta = mean of all rewards
  seen, this batch's too; u = clip(importance, smallest, largest), 1 where the data does not say
  Source: BCO, https://arxiv.org/abs/2404.04656, Eq. 8 and 11, and the trainer that TRL had until
  1.15, which counts every reward alike in the running mean.
  Defaults: beta 0.1, and the bounds of u, 0.5 and 10, are TRL's.
  Traps: u is the density ratio p / (1 - p) of a classifier of prompts, p that of a desirable one
  (the paper's underlying distribution matching), and belongs to undesirable responses alone.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  judged = batch.valid & (batch.label != 0)
  counted = jnp.where(judged, batch.weight[:, None], 0.0)
  before = _running.nothing_yet() if statistics is None else statistics
  new = _running.mean(before, reward, counted)
  ratio = 1.0 if batch.importance is None else jnp.clip(batch.importance, smallest, largest)
  good = -jax.nn.log_sigmoid(reward - new["mean"])
  bad = -ratio * jax.nn.log_sigmoid(new["mean"] - reward)
  loss, metrics = _labelled(good, bad, reward, policy, batch)
  return loss, metrics | {"bco/delta": jnp.broadcast_to(new["mean"], loss.shape)}, new


@marked(compares=False, couples_prompts=True)
def dro(policy: LogProbs, reference: LogProbs, batch: Batch, *, tau: float = 1.0) -> Result:
  """Direct reward optimisation: scalar rewards of single responses, against a value of the prompt.

  Formula: (reward - V - tau (log p - log p_ref))^2 / 2, reward the label, V the value that is best
  for the list, or for the batch where a list has one response; no gradient in V
  Source: DRO, https://arxiv.org/abs/2405.19107, Eq. 5. The paper learns V by a network; here V is
  the mean of reward - tau (log p - log p_ref), what the same loss would fit to it.
  Defaults: tau 1 is the paper's best.
  Traps: a common V is right only if prompts are alike: normalise rewards by prompt, or give lists.
  The scale of the rewards is that of tau nats. Every label counts, 0 too.
  """
  ratio = _scores.log_ratio(policy, reference, batch)
  rest = jnp.asarray(_scores.label(batch)) - tau * ratio  # [B, K]
  own = masked.mean(rest, batch.valid, -1)  # [B]
  single = jnp.sum(jnp.where(batch.valid, 1.0, 0.0), axis=-1) == 1
  common = masked.weighted_mean(own, jnp.where(single, batch.weight, 0.0))
  value = jax.lax.stop_gradient(jnp.where(single, common, own))
  loss = 0.5 * masked.mean(jnp.square(rest - value[:, None]), batch.valid, -1)
  return loss, _scores.metrics(tau * ratio, policy, reference, batch)


def _labelled(
  good: jax.Array, bad: jax.Array, reward: jax.Array, policy: LogProbs, batch: Batch
) -> Result:
  """The mean over a prompt's labelled responses, and its metrics.

  Rewards and log-probs are means over a prompt's responses of a kind; share/* is 1 where it has
  any, so the mean over responses, as TRL logs it for one response a prompt, is their quotient.
  """
  desirable, undesirable = (batch.valid & side for side in (batch.label > 0, batch.label < 0))
  loss = masked.mean(jnp.where(desirable, good, bad), desirable | undesirable, -1)
  found: Metrics = {}
  kinds: dict[str, Array] = {"chosen": desirable, "rejected": undesirable}
  for name, kind in kinds.items():
    found |= {
      f"rewards/{name}": masked.mean(reward, kind, -1),
      f"logps/{name}": masked.mean(policy.sequence, kind, -1),
      f"length/{name}": masked.mean(policy.length, kind, -1),
      f"share/{name}": jnp.any(kind, axis=-1).astype(jnp.float32),
    }
  if policy.entropy is not None:
    counted = (policy.mask > 0) & (desirable | undesirable)[..., None]
    found["entropy"] = masked.mean(policy.entropy, counted, (-2, -1))
  return loss, jax.lax.stop_gradient(found)
