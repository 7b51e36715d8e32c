"""Losses of judges: the policy's sequence log-prob is the score of a reward model, or of a verdict.

A reward model is scored by `scorers.rewards`, which puts the score of a response on its last token;
no reference is read. ls is the logarithm of the logistic function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax.losses import _pairs, _scores
from larpo_jax.losses._scores import marked
from larpo_jax.types import Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]


@marked(needs_reference=False, reads=("score",))
def bradley_terry(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  margin: float = 0.0,
  centering: float = 0.0,
) -> Result:
  """A reward model on pairs: the chosen response scores higher, by a margin, around 0.

  Formula: -ls(r_w - r_l - margin (score_w - score_l)) + centering (r_w + r_l)^2
  Source: Bradley-Terry as in https://arxiv.org/abs/2203.02155, Eq. 1, the margin of Llama 2,
  https://arxiv.org/abs/2307.09288, Eq. 2, and the centring of https://arxiv.org/abs/2312.09244;
  TRL's RewardTrainer (its margin column is the difference, its coefficient centering).
  Defaults: margin and centering 0 are TRL's.
  Traps: without centring the mean score is arbitrary, so scores of different prompts do not
  compare.
  """
  del reference
  reward = _scores.log_prob(policy, batch)  # [B, K]
  chosen, rejected = _pairs.sides(reward)
  ahead = chosen - rejected - margin * _pairs.gap(_scores.score(batch), batch)
  terms = -jax.nn.log_sigmoid(ahead) + centering * jnp.square(chosen + rejected)
  return _pairs.free(terms, reward, policy, batch)


@marked(needs_reference=False)
def pairwise_preference(policy: LogProbs, reference: LogProbs, batch: Batch) -> Result:
  """A preference model: its responses are verdicts ("A", "B"), and the right one becomes likelier.

  Formula: -sum over verdicts of (label_i / sum of labels) log softmax(log p)_i
  Source: the pairwise ranking model of RSO, https://arxiv.org/abs/2309.06657, section 3.3: the
  prompt holds both answers, a response is the letter of the better one.
  Traps: labels are shares of judges who say so, 1 and 0 with one judge; below 0 they count as 0.
  Show both orders of the answers: these models prefer a position.
  """
  del reference
  verdict = jnp.minimum(_scores.log_prob(policy, batch), 0.0)
  log_share = _scores.log_softmax(verdict, batch)
  votes = jax.nn.relu(jnp.asarray(_scores.label(batch)))
  total = jnp.sum(votes, axis=-1, keepdims=True)
  terms = -votes / jnp.where(total > 0, total, 1.0) * log_share
  loss = jnp.where(_scores.ordered(batch), jnp.sum(terms, axis=-1), 0.0)
  return loss, _scores.rewarded(verdict, policy, batch)
