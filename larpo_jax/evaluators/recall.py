"""What N samples a prompt are good for: Pass@N, best-of-N, majority vote, and how alike they are.

In LarPO's reading (https://arxiv.org/abs/2502.03699, Table 5) a policy is a retriever and a reward
a reranker: Pass@N is Recall@N, best-of-N is retrieving N and reranking them. All is estimated from
one pool of n >= N samples a prompt, without a further draw: Pass@N and best-of-N as the mean over
all sets of N of the pool (for Pass@N that is 1 - C(n - c, N) / C(n, N), Chen et al.,
https://arxiv.org/abs/2107.03374), majority vote as the mean over the n runs of N neighbours of the
pool as a ring. Each is unbiased for N fresh samples. Every number is one a prompt, float64 [B].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from larpo_jax.types import Array

RUNS = 256  # of neighbours that a majority vote is averaged over, at most


def sizes(n: int) -> list[int]:
  """1, 2, 5, 10, 20, 50, 100, ... up to n."""
  return [m * 10**e for e in range(len(str(n))) for m in (1, 2, 5) if m * 10**e <= n]


def best_weights(n: int, k: int) -> np.ndarray:
  """The chance of each of n, the lowest first, to be the best of k drawn of them; float64 [n].

  C(r, k - 1) / C(n, k) for rank r from 0, by the ratio of neighbours, so that n may be large.
  Raises ValueError unless 1 <= k <= n.
  """
  if not 1 <= k <= n:
    raise ValueError(f"the best of {k} cannot be taken from a pool of {n}: draw more samples")
  rank = np.arange(n - 1, k - 1, -1, dtype=np.float64)
  weights = k / n * np.cumprod(np.concatenate([[1.0], (rank - k + 1) / rank]))
  return np.concatenate([np.zeros(k - 1), weights[::-1]])


def hit(counts: Array, n: int, k: int) -> np.ndarray:
  """The chance that k drawn of n hold at least one of counts [...] of them; float64 [...]."""
  highest = np.cumsum(np.concatenate([[0.0], best_weights(n, k)[::-1]]))
  return np.minimum(highest, 1.0)[np.asarray(counts, np.int64)]


def pass_at(correct: Array, k: int) -> np.ndarray:
  """Pass@k, which is Recall@k, of pools correct [B, n] of 0 and 1."""
  right = np.asarray(correct) > 0
  return hit(right.sum(-1), right.shape[-1], k)


def best_of(score: Array, gold: Array, k: int) -> np.ndarray:
  """The expected gold [B, n] of the best of k by score [B, n]; equal scores are drawn by lot."""
  score, gold = np.asarray(score), np.asarray(gold, np.float64)
  weights = best_weights(score.shape[-1], k)
  found = np.empty(len(score))
  for b, row in enumerate(score):
    level = np.unique(row, return_inverse=True)[1]
    share = np.bincount(level)
    mean = np.bincount(level, gold[b]) / share
    found[b] = np.add.reduceat(weights, np.cumsum(share) - share) @ mean
  return found


def majority(answers: Sequence[Sequence[str | None]], correct: Array, k: int) -> np.ndarray:
  """How often the most frequent of k answers is right; a tie is broken by lot, None has no vote.

  answers and correct [B, n] are of one pool; alike answers to a prompt are right or wrong alike.
  Where nobody votes, it is wrong.
  """
  correct = np.asarray(correct, np.float64)
  n = correct.shape[-1]
  starts = np.unique(np.linspace(0, n, min(n, RUNS), endpoint=False).astype(np.int64))
  runs = (starts[:, None] + np.arange(k)) % n  # [W, k]
  found = np.empty(len(correct))
  for b, row in enumerate(answers):
    names = {name: code for code, name in enumerate(dict.fromkeys(row))}
    code = np.array([names[name] for name in row])
    right = np.bincount(code, correct[b]) / np.bincount(code)  # [A]
    flat = code[runs] + len(names) * np.arange(len(runs))[:, None]
    votes = np.bincount(flat.ravel(), minlength=len(runs) * len(names)).reshape(len(runs), -1)
    if None in names:
      votes[:, names[None]] = 0
    first = (votes == votes.max(-1, keepdims=True)) & (votes > 0)
    found[b] = np.mean(first @ right / np.maximum(first.sum(-1), 1))
  return found


def unique(texts: Sequence[Sequence[str]], k: int) -> np.ndarray:
  """The expected share of k samples that are left when repetitions are dropped."""
  counts = [np.unique(np.asarray(row, object), return_counts=True)[1] for row in texts]
  return np.array([hit(each, sum(each), k).sum() / k for each in counts])


def all_tied(reward: Array, k: int) -> np.ndarray:
  """The chance that k samples have one reward [B, n], so that their list teaches nothing."""
  reward = np.asarray(reward)
  n = reward.shape[-1]
  counts = [np.unique(row, return_counts=True)[1] for row in reward]
  return np.array([np.sum(1 - hit(n - each, n, k)) for each in counts])


def curves(
  texts: Sequence[Sequence[str]],
  answers: Sequence[Sequence[str | None]],
  *,
  correct: Array,
  gold: Array,
  proxy: Array | None = None,
) -> dict[str, np.ndarray]:
  """Everything of pools of n samples a prompt, {name@N: float64 [B]} for the `sizes` of n.

  correct (0 or 1), gold and proxy rewards are [B, n]. best@N is the gold reward of the best of N by
  gold, proxy_best@N of the best by the proxy; unique@N and all_tied@N say of lists of N how much
  there is to learn from them, the latter by the proxy where there is one.
  """
  judge = gold if proxy is None else proxy
  found = {}
  for k in sizes(np.shape(correct)[-1]):
    found[f"pass@{k}"] = pass_at(correct, k)
    found[f"best@{k}"] = best_of(gold, gold, k)
    if proxy is not None:
      found[f"proxy_best@{k}"] = best_of(proxy, gold, k)
    found[f"majority@{k}"] = majority(answers, correct, k)
    if k > 1:
      found[f"unique@{k}"] = unique(texts, k)
      found[f"all_tied@{k}"] = all_tied(judge, k)
  return found
