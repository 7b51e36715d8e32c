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

A world may have more, which settings of the rounds need.

* gold: solution(prompt), its right answer.
* negatives="unrelated": unrelated(count, *, seed, split, start, ...), problems whose answers have
  another form.
* styled: styled(response), the same in another surface style, and style(prompts, responses), how
  much of each response is in it, [B, K] from 0 to 1.
* steps, of answers that are worked in steps: steps(response), texts that joined are the response;
  first_wrong(prompt, response), the place of the first that is wrong or missing, None where the
  response is right; and progress(prompts, responses), the share of right steps before the first
  wrong one, like gold. chosen="oracle" takes solution and styled.

Where it has modes(prompt), the responses that are worth finding, the best one first, rounds say how
many of them were.
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
  every = (module.name for module in pkgutil.iter_modules(__path__))
  known = sorted(name for name in every if not name.startswith("_"))
  if name not in known:
    raise ValueError(f"no world {name!r}; there are: {', '.join(known)}")
  return importlib.import_module(f"{__name__}.{name}")


def ask(world: Mapping[str, Any], function: str, count: int, **arguments: Any) -> list[Any]:
  """Calls world["name"].function with those of the world's settings that it takes."""
  called = getattr(find(world["name"]), function)
  taken = {key: value for key, value in world.items() if key in lookup.keywords(called)}
  return called(count, **taken, **arguments)
