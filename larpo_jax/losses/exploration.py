"""DPO with a bonus for what the policy has not tried: three ways to explore.

The bonus is on the explored responses, those of a list whose `batch.importance` is above 0 (the
policy's own sample, the reference's), or all of it where the data does not say. It comes with a
pair: a list whose labels are all equal has loss 0. In the formulas rho = log p - log p_ref, sums
over tokens, z = beta (rho_w - rho_l), ls is the logarithm of the logistic function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _pairs, _scores
from larpo_jax.losses._scores import marked
from larpo_jax.types import Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]


@marked(reads=("importance",))
def selm(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.01, alpha: float = 0.001
) -> Result:
  """Self-exploring language models: the reference's own responses are made less likely.

  Formula: -ls(z) + alpha beta mean over the explored responses of rho
  Source: SELM, https://arxiv.org/abs/2405.19332, Eq. 4.2 and the authors' trainer; the paper's
  Algorithm 1 has no beta there, which is 100 times as much.
  Defaults: beta 0.01, alpha 0.001 are the paper's for Zephyr (0.0001 for Llama-3).
  Traps: at the start the bonus is 2 alpha of DPO's gradient: expect no difference. Unbounded below
  where the explored response is not the chosen one.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  return _explored(reward, alpha * reward, policy, reference, batch)


@marked(reads=("importance",))
def xpo(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, alpha: float = 1e-5
) -> Result:
  """Exploratory preference optimisation: a sample of the reference is made less likely.

  Formula: -ls(z) + alpha mean over the explored responses of log p
  Source: XPO, https://arxiv.org/abs/2405.21046, Algorithm 1, and the trainer that TRL had.
  Defaults: beta 0.1, alpha 1e-5 are TRL's.
  Traps: the explored response is the reference's sample, chosen or rejected. Unbounded below.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  return _explored(reward, alpha * _scores.log_prob(policy, batch), policy, reference, batch)


@marked(reads=("importance",))
def copo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.01,
  alpha: float = 1e-4,
  scale: float = 0.1,
  largest: float = 5.0,
) -> Result:
  """Count-based online preference optimisation: novel responses of the policy are made likelier.

  Formula: -ls(z) - alpha mean over the explored responses of sg[weight] log p,
  weight = scale b min(exp(rho), largest)
  Source: COPO, https://arxiv.org/abs/2501.12735, and the authors' copo_trainer.py.
  Defaults: beta 0.01, alpha 1e-4, scale 0.1, largest 5 are the authors'.
  Traps: b, the novelty, is batch.importance (the root of the mean squared output of a coin-flip
  network, or exact counts). Without it b is 1 and this is not COPO. SELM and XPO have the other
  sign.
  """
  reward = _scores.implicit_reward(policy, reference, batch, beta)
  ratio = jnp.exp(jnp.minimum(_scores.log_ratio(policy, reference, batch), jnp.log(largest)))
  novelty = jax.lax.stop_gradient(ratio * scale * _scores.importance(batch))
  bonus = -alpha * novelty * _scores.log_prob(policy, batch)
  return _explored(reward, bonus, policy, reference, batch)


def _explored(
  reward: jax.Array, bonus: jax.Array, policy: LogProbs, reference: LogProbs, batch: Batch
) -> Result:
  """DPO on the reward [B, K], and the mean of the bonus [B, K] over the explored responses."""
  pair = _pairs.mean(-jax.nn.log_sigmoid(_scores.margins(reward)), batch)
  extra = masked.mean(bonus, _scores.importance(batch) > 0, -1)
  loss = pair + jnp.where(_scores.ordered(batch), extra, 0.0)
  return loss, _scores.metrics(reward, policy, reference, batch)
