"""Losses over a whole ranked list: LarPO's, https://arxiv.org/abs/2502.03699, and their kin.

gamma(y) = beta (log p(y) - log p_ref(y)), sums over tokens, no length normalisation. Equal labels
never compete (see `_scores`), and short lists count the responses they have. In the formulas lse is
the log of a sum of exponentials, ls the logarithm of the logistic function.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from larpo_jax import masked
from larpo_jax.losses import _scores
from larpo_jax.types import Array, Batch, LogProbs, Metrics

Result = tuple[jax.Array, Metrics]


def contrastive(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1
) -> Result:
  """InfoNCE of the best response against all worse ones; for a list of two it is DPO.

  Formula: lse(gamma_best, gamma of all worse) - gamma_best
  Source: LarPO, https://arxiv.org/abs/2502.03699, Eq. 9 and 13 (Table 1 omits the logarithm): the
  positive is in the denominator once. It is S-DPO, https://arxiv.org/abs/2406.09215.
  Defaults: beta 0.1 is what the authors' scripts leave in place; the paper names none.
  Traps: where several share the best label, the mean over them as the positive, none of them a
  negative. The authors' training code takes the top few of the sorted list as positives and the
  bottom few as negatives: `code_contrastive`.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  terms = _scores.against(gamma, _scores.beaten(batch))
  loss = masked.mean(terms, _scores.best(batch), -1)
  return loss, _scores.metrics(gamma, policy, reference, batch)


def lambdarank(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  reduction: str = "sum",
) -> Result:
  """The logistic loss of every ordered pair of the list; for a list of two it is DPO.

  Formula: sum over i better than j of -ls(gamma_i - gamma_j)
  Source: LarPO, https://arxiv.org/abs/2502.03699, Eq. 15 and 18, with 1 <= i < j <= K (printed with
  strict bounds, which drops the best and the worst response).
  Defaults: beta 0.1 is what the authors' scripts leave in place. reduction "sum" is the paper's;
  "mean_pairs" divides by the pairs, "mean_items" by the responses.
  Traps: the paper calls it LambdaRank, but there are no delta-NDCG weights: it is RankNet over all
  pairs; with weights it is `lipo_lambda`. The sum grows as K (K - 1) / 2, and so do the steps. The
  authors' training code has pairs of matched rank instead: `code_matched_pairs`.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  wins = _scores.beaten(batch)
  terms = -jax.nn.log_sigmoid(_scores.margins(gamma))  # [B, K, K]
  loss = masked.sum(terms, wins, (-2, -1)) / _share(reduction, wins, batch)
  return loss, _scores.metrics(gamma, policy, reference, batch)


def listmle(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  reduction: str = "sum",
) -> Result:
  """Plackett-Luce: each response against itself and all that are ranked below it.

  Formula: sum over i of lse(gamma_i, gamma of all worse) - gamma_i
  Source: LarPO, https://arxiv.org/abs/2502.03699, Eq. 23 (Eq. 20 counts a response twice): the
  Plackett-Luce form of DPO, https://arxiv.org/abs/2305.18290, appendix A.3.
  Defaults: beta 0.1 is what the authors' scripts leave in place. reduction "sum" is the paper's;
  "mean_pairs" divides by the ordered pairs, "mean_items" by the responses.
  Traps: "worse" means a strictly lower label: responses of equal label share those below them and
  do not compete, where sorting alone would train on the arbitrary order of ties. The authors'
  training code for ListMLE is that of the contrastive loss: `code_contrastive` with two positives.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  wins = _scores.beaten(batch)
  terms = _scores.against(gamma, wins)
  loss = masked.sum(terms, batch.valid, -1) / _share(reduction, wins, batch)
  return loss, _scores.metrics(gamma, policy, reference, batch)


def lipo_lambda(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.05
) -> Result:
  """LiPO: LambdaRank with its weights, the change of DCG were the two responses swapped.

  Formula: sum over i better than j of -|G_i - G_j| |1 / D_i - 1 / D_j| ls(gamma_i - gamma_j),
  G = 2^label - 1, D = log(1 + rank of the response by gamma), no gradient in the weights
  Source: LiPO, https://arxiv.org/abs/2402.01878, Eq. 12 and 13.
  Defaults: beta 0.05 is the paper's best.
  Traps: labels should lie in [0, 1], as the paper's chances of winning do; above 30 they are cut.
  Where gammas are equal, as at the reference, the worse response is taken to rank first: with equal
  ranks all weights, and so all gradients, would be 0.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  label = jnp.clip(_scores.label(batch), -30.0, 30.0)
  gain = jnp.exp2(label) - 1.0
  discount = 1.0 / jnp.log1p(_rank(jax.lax.stop_gradient(gamma), label, batch))
  weight = jnp.abs(_scores.margins(gain) * _scores.margins(discount))
  terms = -weight * jax.nn.log_sigmoid(_scores.margins(gamma))
  loss = masked.sum(terms, _scores.beaten(batch), (-2, -1))
  return loss, _scores.metrics(gamma, policy, reference, batch)


def code_contrastive(
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  *,
  beta: float = 0.1,
  positives: int = 2,
  negatives: int = 2,
  label_smoothing: float = 0.0,
) -> Result:
  """What LarPO's authors run as contrastive (1 positive) and as ListMLE (2): top against bottom.

  Formula: mean over the top responses i of (1 - eps) (lse(gamma_i, N) - gamma_i)
  + eps (lse(gamma_i, N) - lse(N)), N = gammas of the bottom responses
  Source: run_dpo_infonce.py of the authors' training code for
  LarPO, https://arxiv.org/abs/2502.03699; the published ListMLE numbers most probably come from it.
  Defaults: 2 positives, 2 negatives as in llama_listmle.sh (llama_contrastive.sh: 1 and 3, of 10);
  eps = label_smoothing 0 and beta 0.1 as the scripts leave them.
  Traps: there is no order within the top or within the bottom, and what is between is not used.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  wins = _scores.beaten(batch)
  top = batch.valid & (_count(wins, -2) < positives)
  rivals = wins & (batch.valid & (_count(wins, -1) < negatives))[..., None, :]
  contested = top & jnp.any(rivals, axis=-1)
  terms = _scores.against(gamma, rivals)  # lse(gamma_i, N) - gamma_i
  left_out = jnp.where(jnp.any(rivals, axis=-1), -jnp.inf, 0.0)[..., None]
  bottom = jax.nn.logsumexp(jnp.where(rivals, gamma[..., None, :], left_out), axis=-1)
  flipped = terms + gamma - bottom
  terms = (1.0 - label_smoothing) * terms + label_smoothing * flipped
  loss = masked.mean(terms, contested, -1)
  return loss, _scores.metrics(gamma, policy, reference, batch)


def code_matched_pairs(
  policy: LogProbs, reference: LogProbs, batch: Batch, *, beta: float = 0.1, pairs: int = 2
) -> Result:
  """What LarPO's authors run as LambdaRank: DPO on best and worst, second best and worst, ...

  Formula: mean over i <= pairs of -ls(gamma_(i) - gamma_(K + 1 - i))
  Source: run_dpo.py of the authors' training code for LarPO, https://arxiv.org/abs/2502.03699; its
  loop over all pairs is commented out.
  Defaults: 2 pairs, as the paper's appendix H.1 says; as released, the script trains on the first
  pair only. beta 0.1 is what the scripts leave in place.
  Traps: in lists with ties, responses of one label share their place.
  """
  gamma = _scores.implicit_reward(policy, reference, batch, beta)  # [B, K]
  wins = _scores.beaten(batch)
  better, worse = _count(wins, -2), _count(wins, -1)  # [B, K]
  matched = wins & (better[..., :, None] == worse[..., None, :]) & (better < pairs)[..., None]
  loss = masked.mean(-jax.nn.log_sigmoid(_scores.margins(gamma)), matched, (-2, -1))
  return loss, _scores.metrics(gamma, policy, reference, batch)


def _count(wins: Array, axis: int) -> jax.Array:
  """How many are better than each response (axis -2), or worse (axis -1), [B, K]."""
  return jnp.sum(wins.astype(jnp.int32), axis=axis)


def _share(reduction: str, wins: Array, batch: Batch) -> jax.Array:
  """What a sum over a list is divided by, [B]: at least 1."""
  pairs = jnp.sum(wins.astype(jnp.float32), axis=(-2, -1))
  items = jnp.sum(jnp.where(batch.valid, 1.0, 0.0), axis=-1)
  divisors = {"sum": jnp.ones_like(items), "mean_pairs": pairs, "mean_items": items}
  return jnp.maximum(_scores.choice("reduction", reduction, divisors), 1.0)


def _rank(gamma: jax.Array, label: jax.Array, batch: Batch) -> jax.Array:
  """The place of each response by gamma, from 1, [B, K]; equals by label, the worse first.

  Responses that are equal in both share the mean of their places.
  """
  ahead = _scores.margins(gamma) < 0  # at (i, j): j is ahead of i
  level = _scores.margins(gamma) == 0
  ahead |= level & (_scores.margins(label) > 0)
  tied = level & (_scores.margins(label) == 0)
  places = jnp.where(ahead, 1.0, 0.0) + jnp.where(tied, 0.5, 0.0)
  return 0.5 + jnp.sum(jnp.where(batch.valid[..., None, :], places, 0.0), axis=-1)
