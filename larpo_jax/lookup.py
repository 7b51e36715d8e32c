"""A name in a config -> a function: the name is a path in the package, so there is no registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import difflib
import functools
import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any


def resolve(spec: Mapping[str, Any], package: str) -> Callable[..., Any]:
  """Turns `dict(name="listwise.listmle", beta=0.1)` into the function with its arguments bound.

  package is where names start, such as "larpo_jax.losses". Raises ValueError that lists the right
  names when the name is wrong, and the accepted arguments when an argument is.
  """
  arguments = dict(spec)
  name = arguments.pop("name", None)
  known = names(package)
  if name not in known:
    raise ValueError(f"no {name!r} in {package}{_nearest(str(name), known)}; there are: {', '.join(known)}")
  module, _, attribute = name.rpartition(".")
  function = getattr(importlib.import_module(f"{package}.{module}"), attribute)
  accepted = keywords(function)
  for key in arguments:
    if key not in accepted:
      listed = ", ".join(accepted) or "none"
      raise ValueError(f"{name} takes no {key!r}{_nearest(key, accepted)}; its arguments: {listed}")
  return functools.wraps(function)(functools.partial(function, **arguments)) if arguments else function


def names(package: str) -> list[str]:
  """Every "module.function" of a package: the public functions of its public modules."""
  root = importlib.import_module(package)
  return sorted(
    f"{module.name}.{attribute}"
    for module in pkgutil.iter_modules(root.__path__)
    if not module.name.startswith("_")
    for attribute in functions(importlib.import_module(f"{package}.{module.name}"))
  )


def functions(module: ModuleType) -> dict[str, Callable[..., Any]]:
  """The public functions that a module itself defines."""
  return {
    name: value
    for name, value in vars(module).items()
    if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
  }


def keywords(function: Callable[..., Any]) -> list[str]:
  """The keyword-only arguments of a function: what a config may set."""
  parameters = inspect.signature(function).parameters.values()
  return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _nearest(word: str, words: list[str]) -> str:
  close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
  return f" (did you mean {close[0]!r}?)" if close else ""
