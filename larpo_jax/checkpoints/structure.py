"""A state as a flat table, {"params/layers/query/value": array}: whatever classes it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def flatten(state: Any) -> dict[str, Any]:
  """The arrays of a pytree by the names on their paths; ValueError on a leaf that is no array."""
  flat: dict[str, Any] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    key = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
      raise ValueError(f"{key} of the state is a {type(leaf).__name__}: only arrays can be saved")
    if key in flat:
      raise ValueError(f"two arrays of the state are both called {key}: rename one")
    flat[key] = leaf
  return flat


def describe(flat: Mapping[str, Any]) -> dict[str, str]:
  """{"params/embed/value": "float32[256,64]"}: what must be the same for a restore."""
  return {key: _describe(leaf) for key, leaf in flat.items()}


def _describe(leaf: Any) -> str:
  return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def abstract(leaf: Any) -> Any:
  """What orbax restores into: shape, dtype and sharding, or an array of NumPy."""
  if isinstance(leaf, np.ndarray | np.generic):
    return np.asarray(leaf)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def _sharding(leaf: Any) -> jax.sharding.Sharding:
  """Never None: orbax would take the sharding of the run that saved."""
  sharding = getattr(leaf, "sharding", None)
  return sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def empty(leaf: Any) -> Any:
  """An array without elements like leaf."""
  if isinstance(leaf, np.ndarray):
    return leaf
  return jax.device_put(np.zeros(leaf.shape, leaf.dtype), _sharding(leaf))
