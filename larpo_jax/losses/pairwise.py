"""Losses of the best response against the worst: a preference pair is a list of two."""

from __future__ import annotations

import jax

from larpo_jax import masked
from larpo_jax.losses import _scores
from larpo_jax.types import Batch, LogProbs, Metrics


def dpo(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  label_smoothing: float = 0.0,
) -> tuple[jax.Array, Metrics]:
  """-(1 - eps) log sigmoid(z) - eps log sigmoid(-z), z = gamma_chosen - gamma_rejected.

  gamma = beta (log p - log p_ref), sums over tokens: DPO, https://arxiv.org/abs/2305.18290, Eq. 7.
  eps = label_smoothing is the conservative DPO of https://ericmitchell.ai/cdpo.pdf, whose optimum
  is the finite margin log((1 - eps) / eps); it is not the unbiased rDPO. In a list of more than two
  the pair is the best and the worst response; where several share that label, the mean over them.
  """
  _scores.require("label_smoothing", label_smoothing, lambda e: 0.0 <= e <= 0.5, "from 0 to 0.5")
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  z = _scores.margins(gamma)  # [B, K, K]
  flipped = label_smoothing
  terms = -(1 - flipped) * jax.nn.log_sigmoid(z) - flipped * jax.nn.log_sigmoid(-z)
  chosen, rejected = _scores.best(batch), _scores.worst(batch)
  pairs = _scores.beaten(batch) & chosen[..., :, None] & rejected[..., None, :]
  loss = masked.mean(terms, pairs, (-2, -1))
  return loss, _scores.metrics(gamma, policy, reference, batch)
