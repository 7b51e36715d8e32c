"""Config -> an optax chain and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import inspect
from typing import Any

from flax import nnx
import jax
import optax

OPTIMIZERS = ("adamw", "adafactor", "lion", "rmsprop", "sgd")
SCHEDULES = ("constant", "linear", "cosine")

Schedule = Callable[[Any], Any]


def build(
  spec: Mapping[str, Any], steps: int, params: Any
) -> tuple[optax.GradientTransformation, Schedule]:
  """The chain clip -> optimiser, and its schedule: what step i of `steps` multiplies updates by.

  spec: dict(name="adamw", learning_rate=1e-6, schedule="linear", warmup=0.1, clip=1.0, and what
  optax's function of that name takes). clip=0 or None does not clip. Weight decay is on matrices
  only: norms and biases are left alone, as everywhere. Raises ValueError that lists what there is.
  """
  arguments = dict(spec)
  for key in ("name", "learning_rate"):
    if key not in arguments:
      raise ValueError(f"the optimizer needs a {key}, as in dict(name='adamw', learning_rate=1e-6)")
  name, clip = arguments.pop("name"), arguments.pop("clip", None)
  rate = schedule(
    arguments.pop("schedule", "constant"),
    arguments.pop("learning_rate"),
    steps,
    warmup=arguments.pop("warmup", 0.0),
  )
  if name not in OPTIMIZERS:
    raise ValueError(f"no optimizer {name!r}; there are: {', '.join(OPTIMIZERS)}")
  function = getattr(optax, name)
  accepted = list(inspect.signature(function).parameters)
  for key in arguments:
    if key not in accepted:
      raise ValueError(f"optimizer {name} takes no {key!r}; its arguments: {', '.join(accepted)}")
  for key in ("mask", "weight_decay_mask"):
    if key in accepted:
      arguments[key] = decayed(params)
  optimizer = function(rate, **arguments)
  return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer, rate


def schedule(name: str, peak: float, steps: int, *, warmup: float = 0.0) -> Schedule:
  """The learning rate of step 0, 1, ..., steps - 1.

  warmup is the share of the steps (or, from 1 on, their number) that rise linearly to the peak;
  then constant, or linear or cosine down to 0 at `steps`. Raises ValueError for another name.
  """
  if name not in SCHEDULES:
    raise ValueError(f"no schedule {name!r}; there are: {', '.join(SCHEDULES)}")
  rising = int(warmup if warmup >= 1 else round(warmup * steps))
  falling = max(steps - rising, 1)
  rest = {
    "constant": lambda: optax.constant_schedule(peak),
    "linear": lambda: optax.linear_schedule(peak, 0.0, falling),
    "cosine": lambda: optax.cosine_decay_schedule(peak, falling),
  }[name]()
  if rising == 0:
    return rest
  # From 1/rising on, so that the first step is not wasted on a rate of 0.
  rise = optax.linear_schedule(peak / rising, peak, max(rising - 1, 1))
  return optax.join_schedules([rise, rest], [rising])


def decayed(params: Any) -> Any:
  """Which parameters are matrices, as a tree of bool; their stacking over layers does not count."""
  variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731

  def one(leaf: Any) -> Any:
    if not variable(leaf):
      return leaf.ndim > 1
    axes = [name for name in leaf.get_metadata().get("logical_axes", ()) if name != "layers"]
    return leaf.replace(len(axes) > 1 and bool({"embed", "lora"} & set(axes)))

  return jax.tree.map(one, params, is_leaf=variable)
