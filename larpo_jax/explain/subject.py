"""A loss that is explained: a kernel, or a wrapper around one, with all its hyper-parameters.

What is known of it is read from its functions: docstrings, signatures and attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import importlib
import inspect
import math
import re
from typing import Any

from larpo_jax import lookup, objective
from larpo_jax.types import Kernel

PACKAGE = objective.PACKAGE
INSIDE = "pairwise.dpo"  # what a wrapper is shown around where no kernel is named
SECTIONS = ("Formula", "Source", "Defaults", "Traps")

NEEDS = {  # types.Kernel's `needs`: fields of the policy's log-probs
  "kl": "KL(reference || policy) over the vocabulary at every token: the reference runs at every "
  "step, its cached log-probs do not serve",
  "collision": "log sum of p^2 over the vocabulary at every token",
}
READS = {  # types.Kernel's `reads`: fields of the batch, and the settings that bring them
  "score": (
    "a second judge's scores; the labels where the data has none",
    "readers.pairs(chosen_score=..., rejected_score=...) or readers.lists(second_scores=...)",
  ),
  "importance": (
    "what each response counts; alike where the data does not say",
    "readers.pairs(chosen_importance=..., rejected_importance=...), "
    "readers.lists(importance=...) or readers.unpaired(importance=...); of rounds, rounds.novelty",
  ),
  "span": ("the edited spans of responses", "data.spans=True"),
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """A kernel or a wrapper, by its name in a config; inner is what a wrapper is around."""

  name: str  # "pairwise.dpo", "wrappers.robust"
  arguments: Mapping[str, Any]  # as given; the others have their defaults
  inner: Subject | None = None

  @property
  def title(self) -> str:
    """How it is written on the command line: "wrappers.robust(pairwise.ipo)"."""
    return f"{self.name}({self.inner.title})" if self.inner else self.name

  @property
  def function(self) -> Callable[..., Any]:
    """The function in losses/, as it was written."""
    return lookup.find(self.name, PACKAGE)

  @property
  def summary(self) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(self.function) or "").partition("\n")[0]

  @property
  def values(self) -> dict[str, Any]:
    """Every hyper-parameter."""
    return {**lookup.keywords(self.function), **self.arguments}

  @functools.cached_property
  def kernel(self) -> Kernel:
    """The kernel, its hyper-parameters bound; raises ValueError where they are wrong."""
    return lookup.resolve(self._spec(), PACKAGE)

  def _spec(self) -> dict[str, Any]:
    spec = {"name": self.name, **self.arguments}
    return {**spec, "kernel": self.inner._spec()} if self.inner else spec

  def section(self, title: str) -> str:
    """One of SECTIONS; "" where the docstring has none."""
    return objective.section(self.function, title)

  def attribute(self, name: str, default: Any) -> Any:
    """One of types.Kernel's attributes."""
    return getattr(self.kernel, name, default)

  def node(self) -> str:
    """The spec node to paste into a config."""
    parts = [f'name="{self.name}"', *(f"{k}={shown(v)}" for k, v in self.values.items())]
    parts += [f"kernel={self.inner.node()}"] if self.inner else []
    return f"dict({', '.join(parts)})"

  def settings(self) -> Iterator[tuple[str, str]]:
    """Settings beside the loss that it needs or can use, and what for."""
    required = self.attribute("requires", {})
    for setting, why in required.items():
      yield f"config.{setting} = True", f"needed: {why}"
    for field in self.attribute("reads", ()):
      why, setting = READS[field]
      if setting.partition("=")[0] not in required:
        yield f"config.{setting.replace('=', ' = ')}" if "(" not in setting else setting, why

  def needs(self) -> Iterator[str]:
    """What it needs to be computed, a sentence each."""
    yield "a reference" if self.attribute("needs_reference", True) else "no reference"
    lists = "at least two responses a prompt, of different labels"
    yield lists if self.attribute("compares", True) else "single responses will do"
    yield from (NEEDS[field] for field in self.attribute("needs", ()))
    if self.attribute("couples_prompts", False):
      yield "reads the whole batch: with accumulation two passes"
    if self.attribute("statistics", None):
      yield "carries statistics from step to step, in the checkpoint"


def shown(value: Any) -> str:
  """A hyper-parameter as it is written in a config."""
  if isinstance(value, str):
    return f'"{value}"'
  return (
    f'float("{value}")' if isinstance(value, float) and not math.isfinite(value) else f"{value}"
  )


def parse(text: str) -> Subject:
  """The subject that "pairwise.ipo" or "wrappers.robust(pairwise.ipo)" names.

  Raises ValueError that lists the right names.
  """
  found = re.fullmatch(r"\s*([^()\s]+)\s*(?:\((.*)\))?\s*", text)
  if not found:
    raise ValueError(f"{text!r} is neither a name nor WRAPPER(NAME); see the list without names")
  name, inside = found.groups()
  if lookup.wraps(lookup.find(name, PACKAGE)):
    return Subject(name, {}, parse(inside or INSIDE))
  if inside is not None:
    raise ValueError(f"{name} is a kernel and wraps nothing: {inside!r} can not stand in it")
  return Subject(name, {})


def given(subject: Subject, settings: Mapping[str, Any]) -> Subject:
  """With those hyper-parameters that it takes: the outermost function that has the name.

  "kernel.beta" is the beta of what is wrapped, as in an override on a command line.
  """
  own, rest = {}, {}
  for key, value in settings.items():
    inside = key.removeprefix("kernel.")
    if key == inside and key in lookup.keywords(subject.function):
      own[key] = value
    else:
      rest[inside] = value
  inner = given(subject.inner, rest) if subject.inner else None
  return dataclasses.replace(subject, arguments={**subject.arguments, **own}, inner=inner)


def accepted(subject: Subject) -> list[str]:
  """The names that `given` knows."""
  inside = accepted(subject.inner) if subject.inner else []
  return [*lookup.keywords(subject.function), *inside, *(f"kernel.{key}" for key in inside)]


def families() -> dict[str, list[str]]:
  """{"pairwise": ["pairwise.apo_down", ...], ...}, wrappers last."""
  found: dict[str, list[str]] = {}
  names = lookup.names(PACKAGE)
  for name in sorted(names, key=lambda name: lookup.wraps(lookup.find(name, PACKAGE))):
    found.setdefault(name.partition(".")[0], []).append(name)
  return found


def about(family: str) -> tuple[str, str]:
  """What a family's module says of itself: its first line, and the rest, such as its letters."""
  module = importlib.import_module(f"{PACKAGE}.{family}")
  first, _, rest = (inspect.getdoc(module) or "").partition("\n")
  return first, "\n\n".join(" ".join(part.split()) for part in rest.split("\n\n") if part.strip())
