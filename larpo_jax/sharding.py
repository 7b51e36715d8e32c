"""The mesh, and where each array lives on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any

from flax import nnx
import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # prompts are split over both


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A (data, fsdp, tensor) mesh of the devices; one axis may be -1, which takes what is left.

  Raises ValueError when the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  kinds = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(mesh_sizes(shape, len(devices)), AXES, axis_types=kinds, devices=devices)


def mesh_sizes(shape: Mapping[str, int], count: int) -> tuple[int, ...]:
  """The sizes of the axes for so many devices, -1 filled in; raises as `make_mesh` does."""
  unknown = sorted(set(shape) - set(AXES))
  if unknown:
    raise ValueError(f"no mesh axis {', '.join(unknown)}; the axes are {', '.join(AXES)}")
  sizes = [int(shape.get(axis, 1)) for axis in AXES]
  known = math.prod(size for size in sizes if size != -1)
  if sizes.count(-1) == 1 and known > 0 and count % known == 0:
    sizes = [count // known if size == -1 else size for size in sizes]
  if min(sizes) < 1 or math.prod(sizes) != count:
    asked = ", ".join(f"{axis}={shape.get(axis, 1)}" for axis in AXES)
    raise ValueError(
      f"a mesh of {asked} does not fit {count} device(s): the sizes must multiply to {count}, and "
      "one of them may be -1 to take what is left"
    )
  return tuple(sizes)


def named_shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: Mapping[str, str]) -> Any:
  """A NamedSharding for each leaf, from the `logical_axes` that the parameters carry.

  rules maps a logical axis to a mesh axis; an axis that is not in them, or whose mesh axis does not
  divide it, is replicated. Leaves without logical axes are replicated, and so are those of another
  rank than their parameter, such as the factors of Adafactor. Raises ValueError when two axes of
  one parameter go to the same mesh axis, and when a rule names no mesh axis.
  """
  strangers = sorted({str(axis) for axis in rules.values()} - set(AXES))
  if strangers:
    raise ValueError(
      f"rules name no mesh axis {', '.join(strangers)}; the axes are {', '.join(AXES)}"
    )
  variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731

  def place(leaf: Any) -> Any:
    if not variable(leaf):
      return NamedSharding(mesh, PartitionSpec())
    names, shape = leaf.get_metadata().get("logical_axes", ()), leaf.get_value().shape
    spec = _spec(names, shape, mesh, rules) if len(names) == len(shape) else PartitionSpec()
    return leaf.replace(NamedSharding(mesh, spec))

  return jax.tree.map(place, tree, is_leaf=variable)


def _spec(
  names: tuple[str, ...],
  shape: tuple[int, ...],
  mesh: Mesh | AbstractMesh,
  rules: Mapping[str, str],
) -> PartitionSpec:
  axes: list[str | None] = []
  for name, size in zip(names, shape):
    axis = rules.get(name)
    if axis is not None and size % mesh.shape[axis] == 0 and mesh.shape[axis] > 1:
      if axis in axes:
        raise ValueError(
          f"two axes of a parameter {names} go to the mesh axis {axis!r}; change rules"
        )
      axes.append(axis)
    else:
      axes.append(None)
  return PartitionSpec(*axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Prompts over the data and fsdp axes, all else replicated."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def groups(prompts: int) -> int:
  """How many devices split that many prompts under `jax.set_mesh`; 1 without, or if they cannot."""
  mesh = jax.sharding.get_abstract_mesh()
  count = math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.shape)
  return 1 if prompts % count else count


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def put(batch: Any, mesh: Mesh) -> Any:
  """Global arrays from this process's contiguous rows, [rows, ...] in every leaf.

  Raises ValueError when the devices that share the prompts do not divide their number, and when
  processes would have to hold the same prompts.
  """
  shares = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  processes = jax.process_count()
  here = _shares_here(mesh)
  if here * processes != shares:
    raise ValueError(
      f"data x fsdp is {shares}, and each of {processes} processes holds {here} parts of it: "
      "the tensor axis must not be larger than the devices of one process"
    )
  rows = jax.tree.leaves(batch)[0].shape[0] * processes
  if rows % shares:
    raise ValueError(
      f"a batch of {rows} prompts does not divide over {shares} devices (data x fsdp): make the "
      "batch size a multiple of that"
    )
  target = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(target, np.asarray(x)), batch
  )


@functools.cache
def _shares_here(mesh: Mesh) -> int:
  """How many of the parts that prompts are split into lie on devices of this process."""
  return len({tuple(np.argwhere(mesh.devices == one)[0][:2]) for one in mesh.local_devices})
