"""What a kernel does, found by evaluating it: which responses it reads, margins, lengths, bounds.

Every case of `cases` is a batch of one prompt, and all are evaluated together.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax.explain import cases
from larpo_jax.explain.cases import DRAWS, KINDS, PLACES, Case
from larpo_jax.types import Kernel

LENGTH = 40  # of a curve's responses, at LEVEL nats a token where the margin is 0
LEVEL = -1.2


@dataclasses.dataclass(frozen=True)
class Facts:
  """What was measured of a kernel at its hyper-parameters; no numbers that differ by machine."""

  reads: tuple[str, ...]  # of PLACES: whose log-probs the loss of a list depends on
  counts_middle: bool  # leaving out a response in the middle changes the loss
  verdicts: bool  # labels are verdicts: one of 0 does not count
  margin_only: bool  # a constant added to all log-probs changes nothing
  by_sum: bool  # a longer response of the same log-prob changes nothing
  by_mean: bool  # a longer response of the same log-prob a token changes nothing
  falls: tuple[int, ...]  # signs of the margin towards which the loss falls without a bound


class Curve(NamedTuple):
  """A kernel along a line of margins, [N] each."""

  margin: np.ndarray  # nats
  loss: np.ndarray
  chosen: np.ndarray  # d loss / d log p(chosen)
  rejected: np.ndarray

  @property
  def slope(self) -> np.ndarray:
    """d loss / d margin, where the chosen gains one half of it and the rejected loses the other."""
    return 0.5 * (self.chosen - self.rejected)


def facts(kernel: Kernel) -> Facts:
  """Measures a kernel, once; one that carries statistics at its second step."""
  function: Any = kernel
  return _facts(function)


@functools.lru_cache(maxsize=256)
def _facts(kernel: Any) -> Facts:
  every = dict(cases.everything(np.random.default_rng(0)))
  found = dict(zip(every, _losses(kernel, list(every.values())), strict=True))

  def changes(what: str, base: str = "base") -> bool:
    return any(_differ(found[f"{base}{d}"], found[f"{what}{d}"]) for d in range(DRAWS))

  heard = {kind: changes(f"rejected_{kind}", f"pair_{kind}") for kind in KINDS}
  verdicts = heard["verdicts"] and not heard["grades"]
  kind = "verdicts" if verdicts else "grades"
  return Facts(
    reads=tuple(filter(changes, PLACES)),
    counts_middle=changes("without"),
    verdicts=verdicts,
    margin_only=not (changes("up") or changes("down")),
    by_sum=not any(changes(f"sum_{place}") for place in PLACES),
    by_mean=not any(changes(f"mean_{place}") for place in PLACES),
    falls=tuple(s for s in (1, -1) if _falls([found[f"far_{kind}_{s}_{i}"] for i in (1, 2, 4)])),
  )


def curve(kernel: Kernel, margins: np.ndarray, *, verdicts: bool = False) -> Curve:
  """A pair of responses of 40 tokens: the chosen above, the rejected below -1.2 nats a token.

  The reference is at -1.2 for both. No log-prob exceeds 0: where the chosen can not rise further
  the rejected falls instead. verdicts labels the rejected -1 instead of 0. Of a kernel that carries
  statistics it is the first step.
  """
  policy, reference, batch = cases.pair(
    np.full((2, LENGTH), LEVEL), KINDS["verdicts" if verdicts else "grades"]
  )
  tokens = np.stack([cases.apart(policy.token, margin) for margin in margins]).astype(np.float32)

  def loss(token: jax.Array) -> jax.Array:
    return kernel(_row(dataclasses.replace(policy, token=token)), _row(reference), _row(batch))[0][
      0
    ]

  values, slopes = jax.vmap(jax.value_and_grad(loss))(jnp.asarray(tokens))
  # A nat of a response is spread evenly over its tokens.
  chosen, rejected = np.mean(np.asarray(slopes), axis=-1).T
  return Curve(np.asarray(margins), np.asarray(values), chosen, rejected)


def _losses(kernel: Kernel, every: list[Case]) -> np.ndarray:
  stacked = jax.tree.map(lambda *x: np.stack(x), *every)

  def evaluate(*before: Any) -> Any:
    return jax.vmap(lambda case: kernel(*_row(case), *before))(stacked)

  initial: Any = getattr(kernel, "statistics", None)
  if initial is None:
    return np.asarray(evaluate()[0][:, 0])
  carried = evaluate(initial())[2]
  return np.asarray(evaluate(jax.tree.map(lambda x: x[0], carried))[0][:, 0])


def _row(tree: Any) -> Any:
  """A prompt as a batch of one."""
  return jax.tree.map(lambda x: x[None], tree)


def _differ(one: float, other: float) -> bool:
  """Whether two values differ by more than float32 rounds."""
  return not abs(one - other) <= 2e-6 * max(abs(one), abs(other))


def _falls(values: list[float]) -> bool:
  """Whether a loss at distances 1, 2 and 4 goes on falling as steeply as before."""
  before, after = values[0] - values[1], values[1] - values[2]
  return after > 1e-5 * max(map(abs, values)) and after > 1.5 * before
