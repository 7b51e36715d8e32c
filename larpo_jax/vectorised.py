"""The train step of several runs in one program, over their parameters and hyper-parameters.

What the runs have in common is compiled once; their numbers are arguments. Batches are padded to
common shapes, which changes nothing that a step computes. An accelerator takes the steps of all
runs at once (`vmap`); a CPU, which one run fills, one after the other by the same program: there
vmap was measured to take 1.4 to 2 times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax import compiler, objective, optimizers, train_step
from larpo_jax.lanes import Lanes
from larpo_jax.types import Batch, LogProbs

RATE = "optimizer.learning_rate"
Numbers = dict[str, float]


ROOM = 16  # rooms are multiples of this, so that other rounds need no other program


def at_once() -> bool:
  """Whether the steps of several runs are taken at once, here."""
  return jax.default_backend() != "cpu"


def numbers(loss: Any, optimizer: Mapping[str, Any]) -> Numbers:
  """The hyper-parameters that runs of one program may differ in, by dotted path.

  Those are the learning rate and every float of a loss but the weights of a sum.
  """
  found: Numbers = {RATE: float(optimizer["learning_rate"])}
  _replaced(loss, lambda path, value: found.setdefault(path, value))
  return found


def without_numbers(loss: Any) -> Any:
  """A spec of a loss with None in the place of its `numbers`."""
  return _replaced(loss, lambda path, value: None)


def step(
  lanes: Lanes,
  *,
  loss: Any,
  optimizer: Mapping[str, Any],
  steps: int,
  model: Any,
  scorer: Any,
  mesh: jax.sharding.Mesh,
  accumulation: int,
  sync: train_step.Sync | None = None,
) -> Callable[..., Any]:
  """step(state, reference, batch, frozen) of one lane, as `train_step.make_train_step`'s.

  Lanes whose specs of loss and optimiser are the same but for their `numbers` take it together, in
  whatever stage they are; model and scorer are the same in all. frozen are those of the first lane.
  """
  common = [without_numbers(loss), {**optimizer, "learning_rate": None}, steps, accumulation, sync]
  what = ("step", json.dumps(common, sort_keys=True))
  parts = dict(model=model, scorer=scorer, accumulation=accumulation, sync=sync)

  def one(state: Any, reference: Any, batch: Batch, frozen: Any, given: Numbers) -> Any:
    kernels = objective.resolve(_replaced(loss, lambda path, value: given[path]))
    chain, _ = optimizers.build({**optimizer, "learning_rate": given[RATE]}, steps, state.params)
    taken = train_step.make_step(loss=kernels, optimizer=chain, **parts)
    return taken(state, reference, batch, frozen)

  def several(states: Any, references: Any, batches: Any, frozen: Any, given: Any) -> Any:
    state, reference, batch, own = map(_stacked, (states, references, batches, given))
    found = jax.vmap(one, in_axes=(0, 0, 0, None, 0))(state, reference, batch, frozen, own)
    return [jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(states))]

  told = compiler.large_products(jax.default_backend())
  program: Callable[..., Any] = several if at_once() else one
  make = lambda: jax.jit(program, donate_argnums=0, compiler_options=told)  # noqa: E731
  jitted = lanes.once(what, make)
  mine = numbers(loss, optimizer)

  def together(arguments: list[Any]) -> Sequence[Any]:
    states, references, batches, frozen, given = zip(*arguments, strict=True)
    batches = tuple(alike(batches))
    with jax.set_mesh(mesh):
      if at_once():
        return jitted(states, references, batches, frozen[0], given)
      every = zip(states, references, batches, given, strict=True)
      return [jitted(*three, frozen[0], last) for *three, last in every]

  def run(state: Any, reference: Any, batch: Batch, frozen: Any = None) -> Any:
    return lanes.together(what, together, (state, reference, batch, frozen, mine))

  return run


def score(lanes: Lanes, function: Callable[[Any, Batch], LogProbs]) -> Callable[..., LogProbs]:
  """A score step whose batches have the shapes of all lanes', so that it is compiled once."""

  def together(arguments: list[Any]) -> list[LogProbs]:
    params, batches = zip(*arguments, strict=True)
    return [function(each, batch) for each, batch in zip(params, alike(batches), strict=True)]

  def run(params: Any, batch: Batch) -> LogProbs:
    found = lanes.together("score", together, (params, batch))
    return jax.tree.map(lambda x: x[..., : batch.response.shape[-1]], found)

  return run


def alike(batches: Sequence[Batch]) -> list[Batch]:
  """Batches padded to one shape, on the host, and given one room."""
  prompt, response = (max(getattr(b, name).shape[-1] for b in batches) for name in _WIDTHS)
  room = 0 if any(b.room == 0 for b in batches) else max(b.room for b in batches)
  room = -(-room // ROOM) * ROOM
  return [_padded(batch, prompt, response, room) for batch in batches]


_WIDTHS = ("prompt", "response")
_OF_PROMPT = ("prompt", "prompt_mask")
_OF_RESPONSE = ("response", "response_mask", "span", "reference")


def _padded(batch: Batch, prompt: int, response: int, room: int) -> Batch:
  changed: dict[str, Any] = {"room": room}
  for width, names in ((prompt, _OF_PROMPT), (response, _OF_RESPONSE)):
    for name in names:
      array = getattr(batch, name)
      if array is not None:
        array = np.asarray(array)
        wide = [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])]
        changed[name] = np.pad(array, wide)
  return dataclasses.replace(batch, **changed)


def _stacked(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _replaced(spec: Any, number: Callable[[str, float], Any], path: str = "loss") -> Any:
  """A spec with number(path, value) in the place of every float but weights, as plain Python."""
  if hasattr(spec, "items"):
    return {
      key: value if key == "weight" else _replaced(value, number, f"{path}.{key}")
      for key, value in spec.items()
    }
  if isinstance(spec, list | tuple):
    return [_replaced(each, number, f"{path}.{i}") for i, each in enumerate(spec)]
  return number(path, spec) if isinstance(spec, float) else spec
