"""What a judge who errs says of a list: its labels, given to other responses.

Every public function is a noise that the config may name, as in `rounds.noise =
dict(name="noise.symmetric", rate=0.2)`. It takes the rewards [K] of a list's responses, their
labels [K] and a generator of random numbers, and returns labels [K].

* The strategy has chosen the responses by their true rewards; noise changes which is preferred. No
  label has a value that was not there, so a pair keeps its labels or has them swapped, and lists
  whose labels differ still do.
* Lists of more than two are turned round as a whole where responses are flipped, which is what
  `wrappers.robust` assumes, and ranked anew where rewards are perturbed.
* Rewards and `scale` have one unit. At a scale of 1 rewards are logits: one that is better by g
  wins with chance 1 / (1 + exp(-g)), and g is the margin that `scored.madpo` reads.
"""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np

Noise = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def symmetric(
  rewards: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *, rate: float = 0.2
) -> np.ndarray:
  """With chance `rate` the list is turned round: what is worst is said to be best.

  The noise of rDPO, https://arxiv.org/abs/2403.00409. The lists that a rate turns round are turned
  by any higher rate too. Raises ValueError unless rate is from 0 to 1.
  """
  _share(rate)
  return _turned(labels) if rng.random() < rate else labels


def margin_dependent(
  rewards: np.ndarray,
  labels: np.ndarray,
  rng: np.random.Generator,
  *,
  rate: float = 0.4,
  scale: float = 1.0,
) -> np.ndarray:
  """`symmetric` with chance rate exp(-gap / scale), the gap being between best and worst reward.

  Raises ValueError unless rate is from 0 to 1 and scale above 0.
  """
  _share(rate)
  if not 0 < scale < math.inf:
    raise ValueError(f"scale={scale} must be above 0: at this gap the rate has fallen to 1 / e")
  chance = rate * np.exp(-(rewards.max() - rewards.min()) / scale)
  return _turned(labels) if rng.random() < chance else labels


def annotators(
  rewards: np.ndarray,
  labels: np.ndarray,
  rng: np.random.Generator,
  *,
  rates: tuple[float, ...] = (0.05, 0.2, 0.4),
) -> np.ndarray:
  """`symmetric` by one of several annotators, drawn evenly for the list, each with its own rate.

  Raises ValueError without an annotator, and unless each rate is from 0 to 1.
  """
  if not rates:
    raise ValueError("rates=() names no annotator: give the rate at which each of them errs")
  for rate in rates:
    _share(rate)
  return symmetric(rewards, labels, rng, rate=rates[rng.integers(len(rates))])


def bradley_terry(
  rewards: np.ndarray, labels: np.ndarray, rng: np.random.Generator, *, scale: float = 1.0
) -> np.ndarray:
  """Responses are ranked by their rewards plus Gumbel noise of a scale.

  Of a pair that is the Bradley-Terry model, the better one wins with chance s(gap / scale); of a
  list it is Plackett-Luce. As MADPO's notebooks draw labels, https://arxiv.org/abs/2510.05342. A
  scale of 0 is no noise. Raises ValueError where scale is below 0.
  """
  return _ranked(labels, rewards + _gumbel(rng, scale, len(rewards)))


def position_bias(
  rewards: np.ndarray,
  labels: np.ndarray,
  rng: np.random.Generator,
  *,
  bias: float = 1.0,
  scale: float = 1.0,
) -> np.ndarray:
  """`bradley_terry` by a judge who adds `bias` to the reward of what is shown first.

  The order is drawn. In a list the addition falls evenly to 0 for what is shown last; a bias below
  0 is one towards the last. Raises ValueError where scale is below 0 or bias not finite.
  """
  if not math.isfinite(bias):
    raise ValueError(f"bias={bias} must be a finite number, in the unit of the rewards")
  shown = rng.permutation(len(rewards))
  drawn = bias * (1.0 - shown / max(len(rewards) - 1, 1))
  return _ranked(labels, rewards + drawn + _gumbel(rng, scale, len(rewards)))


def _turned(labels: np.ndarray) -> np.ndarray:
  """The highest label for the lowest and so on; equal labels stay equal."""
  values, places = np.unique(labels, return_inverse=True)
  return values[::-1][places]


def _ranked(labels: np.ndarray, worth: np.ndarray) -> np.ndarray:
  """The highest label for what is worth most and so on."""
  given = np.empty_like(labels)
  given[np.argsort(-worth, kind="stable")] = np.sort(labels)[::-1]
  return given


def _gumbel(rng: np.random.Generator, scale: float, count: int) -> np.ndarray:
  if not 0 <= scale < math.inf:
    raise ValueError(f"scale={scale} must be at least 0 and finite, in the unit of the rewards")
  return scale * rng.gumbel(size=count)


def _share(rate: float) -> None:
  if not 0 <= rate <= 1:
    raise ValueError(f"rate={rate} must be from 0 to 1: it is a share of the lists")
