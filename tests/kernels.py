"""Every kernel there is, found by itself, and every wrapper around one: what tests run over."""

import functools
import inspect

from larpo_jax import lookup

PACKAGE = "larpo_jax.losses"
NAMES = lookup.names(PACKAGE)
WRAPPERS = [name for name in NAMES if lookup.wraps(lookup.find(name, PACKAGE))]
KERNELS = [name for name in NAMES if name not in WRAPPERS]
WRAPPED = {f"{name}({inner})": (name, inner) for name in WRAPPERS for inner in ("pairwise.dpo",)}
WRAPPED |= {f"wrappers.robust({inner})": ("wrappers.robust", inner) for inner in ("pairwise.ipo",)}
SUBJECTS = [*KERNELS, *WRAPPED]


def family(name):
  """The module of a kernel, or of the kernel that is wrapped."""
  return WRAPPED.get(name, ("", name))[1].partition(".")[0]


@functools.cache
def kernel(name):
  """The function that a name of SUBJECTS stands for."""
  if name not in WRAPPED:
    return lookup.resolve({"name": name}, PACKAGE)
  wrapper, inner = WRAPPED[name]
  return lookup.resolve({"name": wrapper, "kernel": {"name": inner}}, PACKAGE)


def attribute(name, which, default=()):
  return getattr(kernel(name), which, default)


def evaluate(name, policy, reference, batch, **hyper_parameters):
  """Loss and metrics before the first step, whatever the kernel carries."""
  loss, metrics, *_ = kernel(name)(policy, reference, batch, **hyper_parameters)
  return loss, metrics


def positional(function):
  """The names of the arguments that are not hyper-parameters."""
  parameters = inspect.signature(function).parameters.values()
  return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
