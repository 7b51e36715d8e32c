"""What the rounds of a run hold on a device beside a step: other models, and what is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from larpo_jax import estimate, sharding
from larpo_jax.estimate import Choices, Work
from larpo_jax.models import config as config_lib
from larpo_jax.models import heads, transformer


def others(config: Any) -> Iterator[str]:
  """The checkpoints that the rounds read: that of the reward, and those of the teachers."""
  if config.rounds is None:
    return
  yield from [config.reward.path] if "path" in config.reward else []
  yield from config.rounds.teacher.paths if config.rounds.teacher is not None else []


def absent(config: Any) -> list[str]:
  """Those of them that are not there yet, and count for nothing."""
  return [path for path in others(config) if not _there(path)]


def reward_model(config: Any) -> float:
  """Bytes of a reward model, which lies whole on a device of each process; 0 without one."""
  if config.rounds is None or "path" not in config.reward or not _there(config.reward.path):
    return 0.0
  return float(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_model(config.reward.path))))


def sampling(
  config: Any, architecture: config_lib.Config, held: Mapping[str, float], mesh: Mapping[str, int],
  work: Work,
) -> dict[str, float]:  # fmt: skip
  """Bytes a device while a round samples; {} without rounds.

  held is what `plan.held` gives: there is no optimizer meanwhile, but one teacher after the other,
  and what is returned is of who needs most, the policy or a teacher.
  """
  rounds = config.rounds
  if rounds is None:
    return {}
  each = math.ceil(rounds.batch_size / math.prod(mesh[axis] for axis in sharding.BATCH_AXES))
  how = Choices(jnp.dtype(config.model.dtype).itemsize)
  state = {name: size for name, size in held.items() if name != "optimizer"}
  drawn = [rounds.candidates] + ([rounds.steps.continuations] if rounds.steps is not None else [])
  work = work._replace(prompts=each, responses=max(drawn))
  found = [state | estimate.sampling(architecture, work, how, mesh)]
  on = AbstractMesh(tuple(mesh.values()), tuple(mesh))
  for path in rounds.teacher.paths if rounds.teacher is not None else ():
    if _there(path):
      params = _model(path)
      placed = sharding.named_shardings(params, on, config.rules)
      other = {"a teacher": float(estimate.state_bytes(params, placed))}
      taught = work._replace(responses=rounds.teacher.candidates)
      other |= estimate.sampling(_architecture(path), taught, how, mesh)
      found.append(state | other)
  return max(found, key=lambda each: sum(each.values()))


def _there(path: str) -> bool:
  return (pathlib.Path(path).expanduser() / "config.json").exists()


def _architecture(path: str) -> config_lib.Config:
  return config_lib.read(pathlib.Path(path).expanduser())


def _model(path: str) -> Any:
  """The parameters of a checkpoint without their numbers."""
  architecture = _architecture(path)
  kind = transformer if architecture.num_labels is None else heads
  return kind.abstract(architecture)[1]
