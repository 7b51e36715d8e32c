"""A name in a config -> a function: the name is a path in the package, so there is no registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import difflib
import functools
import importlib
import importlib.util
import inspect
import pkgutil
from types import ModuleType
from typing import Any


def resolve(spec: Mapping[str, Any], package: str) -> Callable[..., Any]:
  """Turns `dict(name="listwise.listmle", beta=0.1)` into the function with its arguments bound.

  package is where names start, such as "larpo_jax.losses". A wrapper, a function whose first
  argument is `kernel`, makes a function from a function: its spec holds another one, as in
  `dict(name="wrappers.robust", epsilon=0.1, kernel=dict(name="pairwise.ipo"))`.
  Raises ValueError that lists the right names when the name is wrong, the accepted arguments when
  an argument is, and the missing ones when an argument without a default is not given. Attributes
  of the function are kept.
  """
  arguments = dict(spec)
  name = arguments.pop("name", None)
  if not isinstance(name, str) or not name:
    raise ValueError(f"a spec needs a name from {package}, such as {_example(package)}; got {spec}")
  function = find(name, package)
  accepted = keywords(function)
  inner: Any = arguments.pop("kernel", None) if wraps(function) else None
  for key in arguments:
    if key not in accepted:
      listed = ", ".join(accepted) or "none"
      raise ValueError(f"{name} takes no {key!r}{_nearest(key, accepted)}; its arguments: {listed}")
  missing = [key for key, default in accepted.items() if default is _NONE and key not in arguments]
  if missing:
    raise ValueError(f"{name} needs {', '.join(missing)}; give it in the spec beside the name")
  if wraps(function):
    if not hasattr(inner, "keys"):
      raise ValueError(f"{name} wraps another function: give its spec, kernel=dict(name=...)")
    return function(resolve(inner, package), **arguments)
  if not arguments:
    return function
  return functools.wraps(function)(functools.partial(function, **arguments))


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
    if inspect.isfunction(value)
    and value.__module__ == module.__name__
    and not name.startswith("_")
  }


def keywords(function: Callable[..., Any]) -> dict[str, Any]:
  """The keyword-only arguments of a function, what a config may set, with their defaults."""
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def wraps(function: Callable[..., Any]) -> bool:
  """Whether a function makes a kernel from a kernel: its first argument is called that."""
  return next(iter(inspect.signature(function).parameters), "") == "kernel"


_NONE = inspect.Parameter.empty


def find(name: str, package: str) -> Callable[..., Any]:
  """The function that is named; raises ValueError that lists the right names.

  Imports the one module that is named, the others only to say what there is.
  """
  module, _, attribute = name.rpartition(".")
  path = f"{package}.{module}"
  hidden = any(not part.isidentifier() or part.startswith("_") for part in name.split("."))
  if not hidden and module and "." not in module and importlib.util.find_spec(path):
    found = functions(importlib.import_module(path)).get(attribute)
    if found is not None:
      return found
  known = names(package)
  raise ValueError(
    f"no {name!r} in {package}{_nearest(name, known)}; there are: {', '.join(known)}"
  )


def _example(package: str) -> str:
  return next(iter(names(package)), "module.function")


def _nearest(word: str, words: Mapping[str, Any] | list[str]) -> str:
  close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
  return f" (did you mean {close[0]!r}?)" if close else ""
