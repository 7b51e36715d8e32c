r"""Chains of arithmetic, worked from left to right, with a checker of every step.

A prompt `17+5*2-8:` asks for one line a step and then the answer, without precedence:

    17+5=22
    22*2=44
    44-8=36
    =36

Every value on the way is a whole number from 0 to 99, so there is exactly one right solution, and
judging a response needs the prompt's text and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools
import re

import numpy as np
from transformers import PreTrainedTokenizerFast

from larpo_jax.worlds import _splits, _tokenizers
from larpo_jax.worlds._demonstrations import Demonstration

LIMIT = 100  # every value is below this
MAX_STEPS = 16
SPLITS = _splits.SPLITS
ALPHABET = "0123456789+-*=:\n "

_NUMBER = r"(0|[1-9][0-9]{0,5})"  # ASCII digits, no leading zero, too short to be slow
_PROMPT = re.compile(rf"{_NUMBER}((?:[-+*][0-9]){{1,{MAX_STEPS}}}):")
_STEP = re.compile(rf" *{_NUMBER} *([-+*]) *([0-9]) *= *{_NUMBER} *")
_ANSWER = re.compile(rf" *= *{_NUMBER} *")
_SIGN = re.compile(r" *([-+*=]) *")


@dataclasses.dataclass(frozen=True)
class Problem:
  """A start value and what is done to it, in order: ("+", 5), ("*", 2), ..."""

  start: int
  operations: tuple[tuple[str, int], ...]

  @property
  def values(self) -> tuple[int, ...]:
    """The start and the value after each operation."""
    values = [self.start]
    for operator, operand in self.operations:
      values.append(_apply(values[-1], operator, operand))
    return tuple(values)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What the checker says of one response."""

  steps: int  # how many the problem has
  steps_right: int  # how many are right before the first that is not
  first_wrong: int | None  # index of the first step that is wrong or missing
  final_right: bool  # one answer line, and it is the right answer
  well_formed: bool  # as many step lines as the problem has, the answer line, nothing else


def problems(
  count: int, *, seed: int, steps: int | tuple[int, int] = 3, split: str = "train", start: int = 0
) -> list[Problem]:
  """Problems number start to start + count of an endless list that depends on the seed alone.

  steps is how many operations, or the least and the most. No problem is in two splits, whatever
  the seeds and the steps: its own hash says which one it belongs to. Raises ValueError on an
  unknown split, on steps outside 1 to 16, and on a negative seed, count or start.
  """
  _splits.check(seed, count, start, split)
  least, most = (steps, steps) if isinstance(steps, int) else steps
  if not 1 <= least <= most <= MAX_STEPS:
    raise ValueError(f"steps={steps!r} is not a number from 1 to {MAX_STEPS} or a (least, most)")
  return [_problem(seed, index, least, most, split) for index in range(start, start + count)]


def unrelated(
  count: int, *, seed: int, steps: int | tuple[int, int] = 3, split: str = "train", start: int = 0
) -> list[Problem]:
  """`problems` whose answers have another form: of one step fewer than the least of steps.

  Of one more than the most where the least is 1.
  """
  least, most = (steps, steps) if isinstance(steps, int) else steps
  other = least - 1 if least > 1 else most + 1
  return problems(count, seed=seed, steps=other, split=split, start=start)


def split_of(problem: Problem) -> str:
  """The split that a problem belongs to, by its hash."""
  return _splits.split_of(prompt(problem))


def prompt(problem: Problem) -> str:
  """The problem as text."""
  return f"{problem.start}{''.join(f'{sign}{operand}' for sign, operand in problem.operations)}:"


def parse(text: str) -> Problem:
  """The problem that a prompt states; ValueError where the text states none of this world's."""
  match = _PROMPT.fullmatch(text.strip())
  if match is None:
    raise ValueError(f"{text[:80]!r} is no arithmetic problem; write one like '17+5*2-8:'")
  signs, digits = match[2][::2], match[2][1::2]
  problem = Problem(int(match[1]), tuple(zip(signs, map(int, digits))))
  if not all(0 <= value < LIMIT for value in problem.values):
    raise ValueError(f"{text[:80]!r} leaves the numbers from 0 to {LIMIT - 1} on the way")
  return problem


def solution(problem: Problem | str) -> str:
  """The worked steps, a line each, and the answer; ValueError where a text states no problem."""
  problem = parse(problem) if isinstance(problem, str) else problem
  return _worked(problem, problem.values)


def styled(response: str) -> str:
  """The same in another hand, "17 + 5 = 22" for "17+5=22", which `check` reads alike."""
  return "\n".join(_SIGN.sub(r" \1 ", line).strip(" ") for line in response.split("\n"))


def style(prompts: Iterable[str], responses: Iterable[list[str]]) -> np.ndarray:
  """The share of each response's lines that have a space in them, float32 [B, K]."""
  return np.array(
    [[np.mean([" " in line for line in each.split("\n")]) for each in row] for row in responses],
    np.float32,
  )


def demonstrations(
  count: int,
  *,
  seed: int,
  draw: int = 0,
  slip: float = 0.3,
  hasty: float = 0.0,
  steps: int | tuple[int, int] = 3,
  split: str = "train",
  start: int = 0,
) -> list[Demonstration]:
  """Answers to `problems` of the same arguments; a share `hasty` states the answer at once.

  Those are right, but more than a small model can do in its head. Of the others, which work step by
  step, a share `slip` goes wrong at one step: it is off by 1, 2 or 10, and what follows is worked
  faithfully from there, as a person would. So a model that learns from these has something left to
  gain. Pure in (seed, index), like the problems, and in draw: another one answers them anew.
  """
  for name, share in (("slip", slip), ("hasty", hasty)):
    if not 0 <= share <= 1:
      raise ValueError(f"{name}={share} is not a share from 0 to 1")
  drawn = problems(count, seed=seed, steps=steps, split=split, start=start)
  result = []
  for index, problem in enumerate(drawn, start):
    generator = np.random.default_rng([seed, index, 1 + draw])
    slips = generator.random() < slip
    values = _slipped(problem, generator) if slips else problem.values
    worked = _worked(problem, values)
    at_once = generator.random() < hasty
    response = f"={problem.values[-1]}" if at_once else worked
    result.append(Demonstration(prompt(problem), response))
  return result


def check(problem: Problem | str, response: str) -> Verdict:
  """Judges every step of a response; the text is matched, never evaluated.

  A step is right when its line holds the value reached so far, the operation that the problem asks
  for and the right result; spaces do not matter, anything else does. ValueError where the prompt is
  not a problem; no response raises.
  """
  problem = parse(problem) if isinstance(problem, str) else problem
  values, operations = problem.values, problem.operations
  lines = response.removesuffix("\n").split("\n")
  right = 0
  for line, value, operation, result in zip(lines, values, operations, values[1:]):
    if _step(line) != (value, *operation, result):
      break
    right += 1
  return Verdict(
    steps=len(operations),
    steps_right=right,
    first_wrong=None if right == len(operations) else right,
    final_right=answer(response) == str(values[-1]),
    well_formed=len(lines) == len(operations) + 1
    and all(map(_STEP.fullmatch, lines[:-1]))
    and _ANSWER.fullmatch(lines[-1]) is not None,
  )


def steps(response: str) -> list[str]:
  """The lines of a response; each keeps the end that says that its number is whole."""
  return re.findall(r"[^\n]*\n|[^\n]+", response)


def first_wrong(prompt: str, response: str) -> int | None:
  """The place of the first wrong one of `steps`, the answer among them; None where all is right.

  That of the first that is missing, where those that are there are right. ValueError as `check`.
  """
  problem = parse(prompt)
  verdict = check(problem, response)
  if verdict.first_wrong is not None or (verdict.final_right and verdict.well_formed):
    return verdict.first_wrong
  stated = "".join(steps(response)[verdict.steps : verdict.steps + 1])
  return verdict.steps + (answer(stated) == str(problem.values[-1]))


def answer(response: str) -> str | None:
  """The final answer that a response states; None where it states none, or several."""
  lines = response.removesuffix("\n").split("\n")
  answers = [match[1] for match in map(_ANSWER.fullmatch, lines) if match]
  return answers[0] if len(answers) == 1 else None


def gold(prompts: Iterable[str], responses: Iterable[list[str]]) -> np.ndarray:
  """The exact reward of each response, float32 [B, K] in [0, 1]; 1 is the solution itself.

  Half for the answer, 0.3 for the share of right steps before the first wrong one, 0.1 for the
  form, and 0.1 for brevity (the solution's length over the response's) times that same share, so
  that an empty response earns nothing.
  """
  return np.array(
    [[_graded(parse(text), response) for response in row] for text, row in zip(prompts, responses)],
    np.float32,
  )


def accuracy(prompts: Iterable[str], responses: Iterable[list[str]]) -> np.ndarray:
  """1 where the final answer is right, else 0; float32 [B, K]."""
  return np.array(
    [
      [check(parse(text), response).final_right for response in row]
      for text, row in zip(prompts, responses)
    ],
    np.float32,
  )


def progress(prompts: Iterable[str], responses: Iterable[list[str]]) -> np.ndarray:
  """The share of a problem's steps that are right before the first wrong one; float32 [B, K]."""
  return np.array(
    [
      [(found := check(text, response)).steps_right / found.steps for response in row]
      for text, row in zip(prompts, responses)
    ],
    np.float32,
  )


def tokenizer() -> PreTrainedTokenizerFast:
  """One token a character of ALPHABET, with <pad>, <eos> and <unk>; made here, no file needed."""
  return _tokenizers.whole(ALPHABET, r"[\s\S]")


def _apply(value: int, operator: str, operand: int) -> int:
  if operator == "*":
    return value * operand
  return value + operand if operator == "+" else value - operand


@functools.lru_cache(maxsize=4096)  # each evaluation of a run asks for the same ones
def _problem(seed: int, index: int, least: int, most: int, split: str) -> Problem:
  generator = np.random.default_rng([seed, index])
  while True:
    problem = _draw(generator, int(generator.integers(least, most + 1)))
    if split_of(problem) == split:
      return problem


def _draw(generator: np.random.Generator, steps: int) -> Problem:
  """A start below 50, then each operator that has a fitting operand is as likely as the others."""
  start = value = int(generator.integers(1, LIMIT // 2))
  operations = []
  for _ in range(steps):
    fitting = {
      sign: operands
      for sign in "+-*"
      if (operands := [n for n in range(2, 10) if 0 <= _apply(value, sign, n) < LIMIT])
    }
    sign = list(fitting)[generator.integers(len(fitting))]
    operand = fitting[sign][generator.integers(len(fitting[sign]))]
    operations.append((sign, operand))
    value = _apply(value, sign, operand)
  return Problem(start, tuple(operations))


def _slipped(problem: Problem, generator: np.random.Generator) -> tuple[int, ...]:
  """The running values with one step wrong, drawn among those that stay in range."""
  fitting = []
  for place in range(1, len(problem.operations) + 1):
    for off in (-10, -2, -1, 1, 2, 10):
      values = [*problem.values[:place], problem.values[place] + off]
      for operator, operand in problem.operations[place:]:
        values.append(_apply(values[-1], operator, operand))
      if all(0 <= value < LIMIT for value in values):
        fitting.append(tuple(values))
  return fitting[generator.integers(len(fitting))]  # the last step always has one


def _worked(problem: Problem, values: tuple[int, ...]) -> str:
  lines = [
    f"{value}{sign}{operand}={result}"
    for (sign, operand), value, result in zip(problem.operations, values, values[1:])
  ]
  return "\n".join([*lines, f"={values[-1]}"])


def _step(line: str) -> tuple[int, str, int, int] | None:
  match = _STEP.fullmatch(line)
  return match and (int(match[1]), match[2], int(match[3]), int(match[4]))


def _graded(problem: Problem, response: str) -> float:
  verdict = check(problem, response)
  share = verdict.steps_right / verdict.steps
  brevity = min(1.0, len(solution(problem)) / max(len(response), 1))
  return 0.5 * verdict.final_right + 0.3 * share + 0.1 * verdict.well_formed + 0.1 * brevity * share
