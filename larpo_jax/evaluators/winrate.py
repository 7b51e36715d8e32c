"""Win rate against a baseline, plain and as it would be were both answers of one length.

Annotations are AlpacaEval's: dicts with "instruction", "output_1" (the baseline's answer),
"output_2" (the model's) and "preference": 1 where the first is better, 2 the second, 1.5 or 0 a
tie, and anything from 1 to 2 is 1 + P(the second is better). None or nan is no judgement and is
left out.

The length-controlled rate is of https://arxiv.org/abs/2404.04475, for one model. It fits

    logit P(win on i) = theta + phi tanh((n_model - n_baseline) / s) + psi gamma_i

to the preferences as probabilities, by maximum likelihood, and is the mean over i of P with the
term of length left out. n are characters, s is the standard deviation of their differences. gamma_i
is the difficulty of an instruction, which the paper estimates from many models at once: one model
cannot say it, so the term is there only where difficulties are given. Compared with AlpacaEval's
own code there is no L1 penalty chosen by cross-validation and there are no pseudo-annotations of
gamed baselines, so that numbers differ from its leaderboard's; a weak ridge on phi and psi keeps
them finite where they tell wins from losses without an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from larpo_jax.types import Array

RIDGE = 0.01  # of phi and psi, in wins: half of it times their squares is added to the loss


class WinRate(NamedTuple):
  """How often a model wins, in [0, 1]; the baseline against itself has 0.5."""

  plain: float
  stderr: float  # of plain, over instructions; nan of fewer than two
  length_controlled: float
  length: float  # phi: above 0 where longer answers win
  difficulty: float  # psi; 0 without difficulties
  judged: int  # how many annotations


def by_reward(
  instructions: Sequence[str],
  baseline: Sequence[str],
  model: Sequence[str],
  rewards: tuple[Array, Array],
) -> list[dict[str, Any]]:
  """Annotations by the rewards [B] of the baseline's and of the model's answers; equal is a tie."""
  rows = zip(instructions, baseline, model, *rewards, strict=True)
  return [
    {"instruction": asked, "output_1": first, "output_2": second}
    | {"preference": 1.5 + 0.5 * float(np.sign(float(after) - float(before)))}
    for asked, first, second, before, after in rows
  ]


def win_rate(
  annotations: Sequence[Mapping[str, Any]], difficulty: Mapping[str, float] | None = None
) -> WinRate:
  """The win rates of the model whose answers are output_2; difficulty is {instruction: gamma}.

  Raises ValueError where nothing is judged, a field is missing, a preference is out of range, or a
  difficulty is not known.
  """
  judged = [row for row in map(_checked, annotations) if not math.isnan(row["preference"])]
  if not judged:
    raise ValueError("no annotation has a preference: there is no win rate of nothing")
  win = np.array([row["preference"] for row in judged])
  gap = np.array([float(len(row["output_2"]) - len(row["output_1"])) for row in judged])
  spread = np.std(gap, ddof=1) if len(gap) > 1 else 0.0
  length = np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)
  columns = [np.ones_like(gap), length, _difficulties(judged, difficulty)]
  features = np.stack(columns, axis=-1)  # [n, 3]
  weights = _fit(features, win)
  same = features * [1.0, 0.0, 1.0]
  return WinRate(
    plain=float(win.mean()),
    stderr=float(win.std(ddof=1) / math.sqrt(len(win))) if len(win) > 1 else math.nan,
    length_controlled=float(special.expit(same @ weights).mean()),
    length=float(weights[1]),
    difficulty=float(weights[2]),
    judged=len(win),
  )


def _checked(row: Mapping[str, Any]) -> dict[str, Any]:
  """The row with its preference as P(model wins), nan where there is none."""
  for name in ("instruction", "output_1", "output_2", "preference"):
    if name not in row:
      raise ValueError(f"an annotation has no {name!r}; it has {', '.join(map(repr, row))}")
  given = row["preference"]
  preference = math.nan if given is None else float(given)
  preference = 1.5 if preference == 0 else preference
  if not (math.isnan(preference) or 1 <= preference <= 2):
    raise ValueError(
      f"preference {given!r} of {str(row['instruction'])[:40]!r} is neither 0 nor from 1 to 2"
    )
  return {**row, "preference": preference - 1}


def _difficulties(
  rows: Sequence[Mapping[str, Any]], difficulty: Mapping[str, float] | None
) -> np.ndarray:
  if difficulty is None:
    return np.zeros(len(rows))
  missing = [row["instruction"] for row in rows if row["instruction"] not in difficulty]
  if missing:
    raise ValueError(f"{len(missing)} instructions have no difficulty, such as {missing[0][:40]!r}")
  return np.array([float(difficulty[row["instruction"]]) for row in rows])


def _fit(features: np.ndarray, win: np.ndarray) -> np.ndarray:
  """Weights [3] that maximise the likelihood of soft labels; a column of zeros gets 0."""
  ridge = np.array([0.0, RIDGE, RIDGE])

  def loss(weights: np.ndarray) -> float:
    logits = features @ weights
    misfit = np.logaddexp(0.0, logits) - win * logits
    return float(misfit.sum() + 0.5 * ridge @ weights**2)

  def slope(weights: np.ndarray) -> np.ndarray:
    return features.T @ (special.expit(features @ weights) - win) + ridge * weights

  def curvature(weights: np.ndarray) -> np.ndarray:
    chance = special.expit(features @ weights)
    return (features.T * (chance * (1 - chance))) @ features + np.diag(ridge)

  start = np.array([special.logit(np.clip(win.mean(), 1e-9, 1 - 1e-9)), 0.0, 0.0])
  how = dict(jac=slope, hess=curvature, options=dict(gtol=1e-8))
  return optimize.minimize(loss, start, method="trust-exact", **how).x
