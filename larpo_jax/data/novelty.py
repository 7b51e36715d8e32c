"""How much is explored of what each response is: the importance that kernels of exploration read.

Every public function is what the config may name in `rounds.novelty = dict(name="novelty.counts")`.
It takes all that has been sampled up to a round and returns a number for each candidate of each of
these rounds, 0 where a response is not explored. It sees the same in a run that was killed and goes
on, so it says the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from larpo_jax.data.candidates import Tokens

Importance = list[list[list[float]]]  # of each round, of each of its rows, of each response


class Sampled(NamedTuple):
  """What has been sampled up to a round, the round's own last."""

  rounds: Sequence[Sequence[Tokens]]  # candidates, a row a prompt
  samples: int  # so many of a row were sampled, and come first
  encode: Callable[[int], np.ndarray]  # a round's number -> states of its candidates [N, K, D]
  seed: int


def first(sampled: Sampled) -> Importance:
  """1 for the first candidate to each prompt of the round, 0 for all others: SELM and XPO.

  With rounds.greedy that is the greedy answer of the round's start, else one of its samples.
  """
  chosen = _firsts(sampled)
  return _each(sampled, lambda key: float(key in chosen))


def counts(sampled: Sampled, *, exponent: float = 0.5, explored: str = "all") -> Importance:
  """N^-exponent, where N is how often the response was sampled to its prompt, up to now.

  COPO, https://arxiv.org/abs/2501.12735, whose theory has the exact count that its network stands
  for. What was never sampled, as a gold answer, counts as sampled once. explored="first" leaves
  the others than `first` at 0; the authors' code has the policy's greedy answer there. Raises
  ValueError where exponent is below 0, and on another explored.
  """
  if exponent < 0:
    raise ValueError(f"exponent={exponent} must be at least 0: novelty falls as counts rise")
  taken = _explored(sampled, explored)
  found = Counter(
    key for rows in sampled.rounds for row in rows for key in list(_keys(row))[: sampled.samples]
  )
  return _each(sampled, lambda key: taken(key) * max(found[key], 1) ** -exponent)


def coin_flips(
  sampled: Sampled,
  *,
  flips: int = 20,
  hidden: int = 32,
  dropout: float = 0.1,
  learning_rate: float = 1e-3,
  epochs: int = 20,
  batch_size: int = 64,
  exponent: float = 0.5,
  reset: bool = False,
  explored: str = "all",
) -> Importance:
  """(mean f^2)^exponent of a network that is to predict coin flips from a frozen hidden state.

  Each sample has flips of its own, so the best prediction for one that came n times is the mean of
  n flips, whose square is 1/n on average: COPO, https://arxiv.org/abs/2501.12735, and the authors'
  code, after coin-flip networks for pseudo-counts. f is learnt from each round's samples in turn,
  with reset from the last round's alone, and never from what else is a candidate. flips, hidden and
  dropout are the authors'. Theirs is a learning rate of 1e-4 and new flips for each batch; here a
  sample keeps its flips, as repeated with others it would look as if it had come more often, and
  states are standardised, for what all of them share is large. explored is as in `counts`. Raises
  ValueError where a number is out of range, and on another explored.
  """
  _at_least_one(flips=flips, hidden=hidden, epochs=epochs, batch_size=batch_size)
  if not (0 <= dropout < 1 and learning_rate > 0 and exponent >= 0):
    raise ValueError(
      f"dropout={dropout}, learning_rate={learning_rate}, exponent={exponent}: dropout is a share "
      "below 1, the learning rate above 0, and the exponent at least 0"
    )
  taken = _explored(sampled, explored)
  states = _standardised(list(map(sampled.encode, range(len(sampled.rounds)))), sampled.samples)
  fit = functools.partial(
    _fitted, hidden=hidden, epochs=epochs, batch_size=batch_size, how=(learning_rate, dropout)
  )
  net: Any = None
  for number in list(range(len(states)))[-1 if reset else 0 :]:
    rng = np.random.default_rng([sampled.seed, number, 5])
    net = fit(net, states[number][:, : sampled.samples], flips, rng)
  bonus = lambda x: np.mean(np.square(_predicted(net, x)), axis=-1) ** exponent  # noqa: E731
  return [
    [[taken(key) * float(b) for key, b in zip(_keys(row), line)] for row, line in zip(rows, found)]
    for rows, found in zip(sampled.rounds, map(bonus, states))
  ]


def _each(sampled: Sampled, value: Callable[[bytes], float]) -> Importance:
  return [[[value(key) for key in _keys(row)] for row in rows] for rows in sampled.rounds]


def _keys(row: Tokens) -> Iterator[bytes]:
  """What stands for a prompt and each response to it."""
  start = np.int64(len(row.prompt)).tobytes() + row.prompt.tobytes()
  return (start + ids.tobytes() for ids in row.responses)


def _firsts(sampled: Sampled) -> set[bytes]:
  return {next(_keys(row)) for rows in sampled.rounds[-1:] for row in rows}


def _explored(sampled: Sampled, explored: str) -> Callable[[bytes], float]:
  """1 for what is explored, 0 for all else."""
  if explored not in ("all", "first"):
    raise ValueError(f"explored={explored!r} is not one of all, first")
  chosen = _firsts(sampled)
  return lambda key: float(explored == "all" or key in chosen)


def _at_least_one(**numbers: int) -> None:
  for name, number in numbers.items():
    if number < 1:
      raise ValueError(f"{name}={number} must be at least 1")


def _standardised(encoded: list[np.ndarray], count: int) -> list[np.ndarray]:
  """With mean 0 and variance 1 over the samples of the first round, for all rounds."""
  if not encoded:
    return []
  start = encoded[0][:, :count].reshape(-1, encoded[0].shape[-1]).astype(np.float64)
  centre, spread = start.mean(axis=0), start.std(axis=0) + 1e-6
  return [((each - centre) / spread).astype(np.float32) for each in encoded]


def _passed(rng: np.random.Generator, rows: int, batch_size: int) -> np.ndarray:
  """Rows in a random order, cut into batches; the last one is filled up from the first."""
  steps = -(-rows // batch_size)
  return np.resize(rng.permutation(rows), (steps, batch_size))


def _network(rng: np.random.Generator, width: int, hidden: int, flips: int) -> dict[str, Any]:
  """Two layers, as PyTorch would begin them."""
  net = {}
  for layer, (into, out) in enumerate(((width, hidden), (hidden, flips))):
    bound = into**-0.5
    net[f"w{layer}"] = jnp.asarray(rng.uniform(-bound, bound, (into, out)), jnp.float32)
    net[f"b{layer}"] = jnp.asarray(rng.uniform(-bound, bound, (1, out)), jnp.float32)
  return net


def _forward(net: dict[str, Any], x: Any) -> Any:
  return jax.nn.leaky_relu(x @ net["w0"] + net["b0"]) @ net["w1"] + net["b1"]


def _predicted(net: dict[str, Any], x: np.ndarray) -> np.ndarray:
  """f of states [N, K, D]: [N, K, flips]."""
  flat = _forward(net, jnp.asarray(x.reshape(-1, x.shape[-1])))
  return np.asarray(flat, np.float64).reshape(*x.shape[:-1], -1)


def _fitted(
  net: Any,
  states: np.ndarray,
  flips: int,
  rng: np.random.Generator,
  *,
  hidden: int,
  epochs: int,
  batch_size: int,
  how: tuple[float, float],
) -> Any:
  """The network after the samples of a round, states [N, K, D]; a new one where there is none."""
  x = states.reshape(-1, states.shape[-1])
  net = _network(rng, x.shape[1], hidden, flips) if net is None else net
  targets = rng.choice(np.array([-1, 1], np.float32), (len(x), flips))
  order = np.concatenate([_passed(rng, len(x), batch_size) for _ in range(epochs)])
  return _learnt(net, x, targets, order, jax.random.key(int(rng.integers(2**31))), *how)


@functools.partial(jax.jit, static_argnums=(5, 6))
def _learnt(
  net: Any, x: Any, targets: Any, order: Any, key: Any, learning_rate: float, dropout: float
) -> Any:
  """The network after Adam's steps of order [steps, batch] on the mean squared error."""
  chain = optax.adam(learning_rate)

  def error(net: Any, rows: Any, key: Any) -> Any:
    kept = jax.random.bernoulli(key, 1 - dropout, (len(rows), x.shape[1]))
    return jnp.mean((_forward(net, x[rows] * kept / (1 - dropout)) - targets[rows]) ** 2)

  def step(carry: Any, now: Any) -> Any:
    net, state = carry
    updates, state = chain.update(jax.grad(error)(net, *now), state)
    return (optax.apply_updates(net, updates), state), None

  keys = jax.random.split(key, len(order))
  return jax.lax.scan(step, (net, chain.init(net)), (order, keys))[0][0]
