"""Worlds: small tasks with exact checkers. A world is a module that holds these functions.

tokenizer() · problems(count, *, seed, split, start, ...) · prompt(problem) ·
demonstrations(count, *, seed, split, start, draw, ...) · gold(prompts, responses) ·
accuracy(prompts, responses) · answer(response)

gold is the reward of each response, accuracy 1 where its final answer is right, else 0, float32
[B, K] of prompts [B] and responses [B][K]. answer is that final answer as text, by which responses
are counted in a majority vote: None where there is none. Responses to a prompt with one answer have
one accuracy.

Demonstrations number start to start + count are answers to the problems of the same arguments;
another `draw`, 0 by default, gives other answers to them.

A world may have more, which settings of the rounds need. gold: solution(prompt), its right answer.
negatives="unrelated": unrelated(count, *, seed, split, start, ...), problems whose answers have
another form. styled: styled(response), the same in another surface style, and style(prompts,
responses), how much of each response is in it, [B, K] from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
import importlib
import pkgutil
from types import ModuleType
from typing import Any

from larpo_jax import lookup


def find(name: str) -> ModuleType:
  """The module of a world; ValueError that lists the worlds for another name."""
  known = sorted(module.name for module in pkgutil.iter_modules(__path__))
  if name not in known:
    raise ValueError(f"no world {name!r}; there are: {', '.join(known)}")
  return importlib.import_module(f"{__name__}.{name}")


def ask(world: Mapping[str, Any], function: str, count: int, **arguments: Any) -> list[Any]:
  """Calls world["name"].function with those of the world's settings that it takes."""
  called = getattr(find(world["name"]), function)
  taken = {key: value for key, value in world.items() if key in lookup.keywords(called)}
  return called(count, **taken, **arguments)
