"""Which points of a sweep may run side by side in one process."""

from __future__ import annotations

from collections.abc import Sequence
import json

from larpo_jax import config as configs
from larpo_jax import vectorised
from larpo_jax.sweep.points import Point

SMALL = 512  # hidden units of a model from scratch, at most
MOST = 20  # points in a group, where nothing is said


def groups(points: Sequence[Point], most: int = 0) -> list[list[Point]]:
  """The points in groups of at most `most`, in their order; one that fits no other is alone.

  Points fit that differ in nothing but their seed, their learning rate and the numbers of their
  loss, on one device, with a small model from scratch, and without a test split of their own to
  rank, whose reference pass is another run's to wait for. Adapters fit only where most is given: an
  accelerator then holds the activations of all of a group.
  """
  found: dict[str, list[list[Point]]] = {}
  for place, point in enumerate(points):
    alike = found.setdefault(_kind(point, adapters=most > 0) or str(place), [[]])
    if len(alike[-1]) >= (most or MOST):
      alike.append([])
    alike[-1].append(point)
  order = {point.name: place for place, point in enumerate(points)}
  every = [group for alike in found.values() for group in alike]
  return sorted(every, key=lambda group: order[group[0].name])


def _kind(point: Point, adapters: bool) -> str:
  """What points have in common that may share a process; "" where this one may not."""
  config = point.config
  several = any(size > 1 for size in config.mesh.values())
  small = not config.model.path and config.model.shape.get("hidden_size", SMALL) <= SMALL
  light = bool(config.model.lora.rank) and adapters
  if several or config.data.test.path or not (small or light):
    return ""
  tree = configs.plain(config)
  tree["loss"] = vectorised.without_numbers(tree["loss"])
  tree["optimizer"] = {**tree["optimizer"], "learning_rate": None}
  return json.dumps({**tree, "seed": None}, sort_keys=True, default=str)
