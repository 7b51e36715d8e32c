"""Whether chosen and rejected responses can be told apart by their surface."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

TOKENS = 256  # the most frequent ones are counted
DECAY = 1e-2  # of the weights, so that a fit exists where a hyperplane divides the pairs


def separability(chosen: Sequence[np.ndarray], rejected: Sequence[np.ndarray]) -> float:
  """How well a logistic regression on counts of tokens tells chosen from rejected, unseen ones.

  chosen and rejected are token ids, a pair at a place. Returns the accuracy on each half of the
  pairs of a fit to the other half: 0.5 is chance, 1 is a surface that gives the answer away. 0.5
  where there are fewer than two pairs. More is Less, https://arxiv.org/abs/2504.02193, finds that
  pairs of several models are linearly separable, and blames it for what they fail to teach.
  """
  pairs = len(chosen)
  if pairs < 2:
    return 0.5
  bags = _bags([*chosen, *rejected])
  target = np.repeat([1.0, -1.0], pairs)
  fold = np.tile(np.arange(pairs) % 2, 2)
  right = np.empty(2 * pairs)
  for held in (0, 1):
    seen, unseen = fold != held, fold == held
    score = bags[unseen] @ _fit(bags[seen], target[seen])
    right[unseen] = np.where(score == 0, 0.5, score * target[unseen] > 0)
  return float(np.mean(right))


def _bags(responses: Sequence[np.ndarray]) -> np.ndarray:
  """Standardised counts [N, tokens + 1] of the most frequent tokens, and a constant."""
  known, place = np.unique(np.concatenate(responses), return_inverse=True)
  row = np.repeat(np.arange(len(responses)), [len(ids) for ids in responses])
  frequent = np.argsort(-np.bincount(place, minlength=len(known)), kind="stable")[:TOKENS]
  column = np.full(len(known), -1)
  column[frequent] = np.arange(len(frequent))
  kept = column[place] >= 0
  counts = np.zeros((len(responses), len(frequent)))
  np.add.at(counts, (row[kept], column[place[kept]]), 1.0)
  counts -= counts.mean(axis=0)
  deviation = counts.std(axis=0)
  counts /= np.where(deviation > 0, deviation, 1.0)
  return np.append(counts, np.ones((len(responses), 1)), axis=1)


def _fit(bags: np.ndarray, target: np.ndarray) -> np.ndarray:
  """The weights of a logistic regression, labels 1 and -1."""

  def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
    margin = target * (bags @ weights)
    loss = np.mean(np.logaddexp(0.0, -margin)) + 0.5 * DECAY * weights @ weights
    slope = -target * special.expit(-margin) / len(target)
    return loss, bags.T @ slope + DECAY * weights

  start = np.zeros(bags.shape[1])
  return optimize.minimize(objective, start, jac=True, method="L-BFGS-B").x
