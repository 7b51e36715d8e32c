"""Losses over a whole ranked list: LarPO's three, https://arxiv.org/abs/2502.03699.

gamma(y) = beta (log p(y) - log p_ref(y)), sums over tokens, no length normalisation. For a list of
two with different labels each of these is DPO. Equal labels never compete (see `_scores`).
"""

from __future__ import annotations

import jax

from larpo_jax import masked
from larpo_jax.losses import _scores
from larpo_jax.types import Batch, LogProbs, Metrics


def contrastive(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1
) -> tuple[jax.Array, Metrics]:
  """InfoNCE of the best response against all worse ones: lse(gamma_best, gamma_rest) - gamma_best.

  LarPO, https://arxiv.org/abs/2502.03699, Eq. 9 and 13 (Table 1 omits the logarithm): the positive
  is in the denominator once. It is S-DPO, https://arxiv.org/abs/2406.09215. Where several share the
  best label, the mean over them as the positive, none of them a negative. The authors' training
  code takes the top few of the sorted list as positives and the bottom few as negatives, one row
  for each positive, and leaves out the responses between them.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  terms = _scores.against(gamma, _scores.beaten(batch))
  loss = masked.mean(terms, _scores.best(batch), -1)
  return loss, _scores.metrics(gamma, policy, reference, batch)


def lambdarank(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1
) -> tuple[jax.Array, Metrics]:
  """The sum over all ordered pairs of -log sigmoid(gamma_i - gamma_j).

  LarPO, https://arxiv.org/abs/2502.03699, Eq. 15 and 18, with 1 <= i < j <= K (printed with strict
  bounds, which drops the best and the worst response). The paper calls it LambdaRank, but there are
  no delta-NDCG weights: it is RankNet over all pairs. It is a sum, so it grows as K (K - 1) / 2.
  Pairs of equal labels are left out. The authors' training code runs DPO on pairs of matched rank
  (best and worst, second best and second worst, ...); its loop over all pairs is commented out.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  terms = -jax.nn.log_sigmoid(_scores.margins(gamma))  # [B, K, K]
  loss = masked.sum(terms, _scores.beaten(batch), (-2, -1))
  return loss, _scores.metrics(gamma, policy, reference, batch)


def listmle(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1
) -> tuple[jax.Array, Metrics]:
  """Plackett-Luce: each response against itself and all that are ranked below it, summed.

  sum over i of lse(gamma_i, ..., gamma_K) - gamma_i for a list sorted from best to worst: LarPO,
  https://arxiv.org/abs/2502.03699, Eq. 23 (Eq. 20 counts a response twice). It is the Plackett-Luce
  form of DPO, https://arxiv.org/abs/2305.18290, appendix A.3. "Below" means a strictly lower label:
  responses of equal label share the responses below them and do not compete with one another, where
  sorting alone would train on the arbitrary order of ties. The authors' training code for ListMLE
  is that of the contrastive loss, with two positives and two negatives.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  terms = _scores.against(gamma, _scores.beaten(batch))
  loss = masked.sum(terms, batch.valid, -1)
  return loss, _scores.metrics(gamma, policy, reference, batch)
