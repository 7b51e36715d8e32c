"""What the formulas of longhand_*.py are written in: responses as Python floats, and a register.

Everything here is float64 and plain: a second implementation that shares nothing with the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
import math
from typing import Any

import numpy as np


@dataclass
class Response:
  """One response that is there: lists over its tokens that count, and what data says of it."""

  policy: list  # log p(token)
  reference: list  # log p_ref(token)
  kl: list  # KL(reference || policy) at each token
  collision: list  # log sum_v p(v)^2 at each token
  span: list | None  # 0 shared, i > 0 the i-th edited span
  ids: list  # the tokens themselves
  label: float
  judged: float | None  # by a second judge
  importance: float | None
  before: Response | None = None  # as it was before it was moved, where a gradient is measured

  @property
  def p(self):
    return sum(self.policy)

  @property
  def q(self):
    return sum(self.reference)

  @property
  def rho(self):
    return self.p - self.q

  @property
  def n(self):
    return len(self.policy)

  @property
  def a(self):
    """log p per token."""
    return self.p / self.n

  @property
  def score(self):
    return self.label if self.judged is None else self.judged

  @property
  def held(self):
    """The response under a stopped gradient."""
    return self.before or self


@dataclass
class Prompt:
  """The responses to one prompt, and whether the prompt counts."""

  responses: list
  weight: float = 1.0

  @property
  def labels(self):
    return [y.label for y in self.responses]

  @property
  def best(self):
    return [y for y in self.responses if y.label == max(self.labels)]

  @property
  def worst(self):
    return [y for y in self.responses if y.label == min(self.labels)]

  @property
  def pairs(self):
    """Every (better, worse)."""
    return [(i, j) for i in self.responses for j in self.responses if i.label > j.label]

  @property
  def ends(self):
    """Every (best, worst); none where all labels are equal."""
    return [(w, l) for w in self.best for l in self.worst if w.label > l.label]

  def below(self, y):
    return [other for other in self.responses if other.label < y.label]


def prompts(policy, reference, batch):
  """A batch as a list of Prompts."""
  return [
    Prompt(
      [_response(policy, reference, batch, b, k) for k in np.flatnonzero(batch.valid[b])],
      float(batch.weight[b]),
    )
    for b in range(len(batch.label))
  ]


def _response(policy, reference, batch, b, k):
  counts = policy.mask[b, k] > 0
  tokens = lambda x: None if x is None else np.float64(x[b, k])[counts].tolist()  # noqa: E731
  number = lambda x: None if x is None else float(x[b, k])  # noqa: E731
  return Response(
    policy=tokens(policy.token),
    reference=tokens(reference.token),
    kl=tokens(policy.kl),
    collision=tokens(policy.collision),
    span=tokens(batch.span),
    ids=tokens(batch.response),
    label=number(batch.label),
    judged=number(batch.score),
    importance=number(batch.importance),
  )


def moved(rows, how, hold=False):
  """The prompts with other log-probs: how(response) -> new lists (policy, reference).

  hold keeps the old ones where a gradient is stopped.
  """

  def move(y):
    policy, reference = how(y)
    return replace(y, policy=policy, reference=reference, before=y if hold else None)

  return [replace(row, responses=[move(y) for y in row.responses]) for row in rows]


@dataclass
class Formula:
  """losses(prompts, **hyper_parameters) -> a list, and the values to try for each of those.

  A tuple is a range of numbers, a list a choice of settings.
  """

  losses: Callable[..., list]
  hyper_parameters: dict[str, Any]


FORMULAS: dict[str, Formula] = {}


def of_batch(name, **hyper_parameters):
  """Registers f(prompts, **hyper_parameters) -> losses."""

  def register(f):
    assert name not in FORMULAS
    FORMULAS[name] = Formula(f, hyper_parameters)
    return f

  return register


def of_prompt(name, **hyper_parameters):
  """Registers f(prompt, **hyper_parameters) -> loss; a prompt without responses has loss 0."""

  def register(f):
    each = lambda rows, **h: [f(row, **h) if row.responses else 0.0 for row in rows]  # noqa: E731
    of_batch(name, **hyper_parameters)(each)
    return f

  return register


def of_list(name, **hyper_parameters):
  """The same for losses of order: a list whose labels are all equal has loss 0."""

  def register(f):
    of_prompt(name, **hyper_parameters)(lambda row, **h: f(row, **h) if row.pairs else 0.0)
    return f

  return register


def of_pair(name, **hyper_parameters):
  """Registers f(chosen, rejected, **hyper_parameters): the mean over pairs of best and worst."""

  def register(f):
    of_prompt(name, **hyper_parameters)(lambda row, **h: mean(f(w, l, **h) for w, l in row.ends))
    return f

  return register


def mean(values):
  values = list(values)
  return sum(values) / len(values) if values else 0.0


def softplus(x):
  """-log sigmoid(-x)."""
  return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def ls(x):
  """log sigmoid(x)."""
  return -softplus(-x)


def sigmoid(x):
  return math.exp(ls(x))


def lse(values):
  """log of the sum of exponentials."""
  largest = max(values)
  return largest + math.log(sum(math.exp(x - largest) for x in values))


def softmax(values):
  total = lse(values)
  return [math.exp(x - total) for x in values]


def relu(x):
  return max(0.0, x)
