"""Which points of a sweep may run side by side in one process."""

from __future__ import annotations

from collections.abc import Sequence
import json

from larpo_jax import config as configs
from larpo_jax import vectorised
from larpo_jax.sweep.points import Point

SMALL = 1024  # hidden units of a model from scratch, at most


def groups(points: Sequence[Point], most: int) -> list[list[Point]]:
  """The points in groups of at most `most`, in their order; one that fits no other is alone.

  Points fit that differ in nothing but their seed, their learning rate and the numbers of their
  loss, on one device, with a small model or adapters, and without a test split of their own to
  rank, whose reference pass is another run's to wait for.
  """
  found: dict[str, list[list[Point]]] = {}
  for place, point in enumerate(points):
    alike = found.setdefault(_kind(point) or str(place), [[]])
    if len(alike[-1]) >= max(most, 1):
      alike.append([])
    alike[-1].append(point)
  order = {point.name: place for place, point in enumerate(points)}
  every = [group for alike in found.values() for group in alike]
  return sorted(every, key=lambda group: order[group[0].name])


def _kind(point: Point) -> str:
  """What points have in common that may share a process; "" where this one may not."""
  config = point.config
  several = any(size > 1 for size in config.mesh.values())
  small = not config.model.path and config.model.shape.get("hidden_size", SMALL) <= SMALL
  if several or config.data.test.path or not (small or config.model.lora.rank):
    return ""
  tree = configs.plain(config)
  tree["loss"] = vectorised.without_numbers(tree["loss"])
  tree["optimizer"] = {**tree["optimizer"], "learning_rate": None}
  return json.dumps({**tree, "seed": None}, sort_keys=True, default=str)
