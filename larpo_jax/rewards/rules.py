"""Rewards by rule: strings in, float32 [B, K] out, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
import re

import numpy as np

# 1,234.5 and 1234.5 and .5 and 3/4, a sign in front; ASCII digits, short enough to be exact fast
_NUMBER = re.compile(
  r"(?<![0-9.])[-+]?"
  r"(?:(?:[0-9]{1,3}(?:,[0-9]{3}){1,10}|[0-9]{1,40})(?:\.[0-9]{1,40})?|\.[0-9]{1,40})"
  r"(?:/[0-9]{1,40})?(?![0-9])"
)


def brevity(
  prompts: list[str], responses: list[list[str]], *, characters: int = 0, per: int = 100
) -> np.ndarray:
  """Minus the length beyond `characters`, in units of `per` characters: float32 [B, K], at most 0.

  Raises ValueError where per is not above 0.
  """
  if per <= 0:
    raise ValueError(f"per={per} must be above 0: it is the characters that cost 1")
  return _each(prompts, responses, lambda _, text: -max(0, len(text) - characters) / per)


def matches(
  prompts: list[str], responses: list[list[str]], *, pattern: str, whole: bool = False
) -> np.ndarray:
  """1 where the regular expression is found in the response (whole: is all of it), else 0.

  float32 [B, K]; `.` matches a line end too. Raises ValueError on a malformed pattern.
  """
  try:
    compiled = re.compile(pattern, re.DOTALL)
  except re.error as error:
    raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from error
  found = compiled.fullmatch if whole else compiled.search
  return _each(prompts, responses, lambda _, text: found(text) is not None)


def exact(
  prompts: list[str], responses: list[list[str]], *, answers: Mapping[str, str]
) -> np.ndarray:
  """1 where the response is the prompt's answer but for case and white space, else 0.

  answers maps each prompt to its answer. float32 [B, K]; ValueError where a prompt has none.
  """

  def right(prompt: str, text: str) -> bool:
    return _plain(text) == _plain(_answer(answers, prompt))

  return _each(prompts, responses, right)


def number(
  prompts: list[str], responses: list[list[str]], *, answers: Mapping[str, str]
) -> np.ndarray:
  r"""1 where the response's final number equals the answer's, else 0; compared as exact fractions.

  The final number is the one after the last `####`, or in the last `\boxed{}`, or else the last in
  the text; `1,234.50`, `1234.5` and `2469/2` are the same. answers maps each prompt to a text whose
  final number is right. float32 [B, K]; ValueError where a prompt has no answer or it no number.
  """

  def right(prompt: str, text: str) -> bool:
    wanted = _final_number(_answer(answers, prompt))
    if wanted is None:
      raise ValueError(f"the answer {answers[prompt][:80]!r} holds no number; use rules.exact")
    return _final_number(text) == wanted

  return _each(prompts, responses, right)


def _each(
  prompts: list[str], responses: list[list[str]], reward: Callable[[str, str], float]
) -> np.ndarray:
  if len(prompts) != len(responses):
    raise ValueError(f"{len(prompts)} prompts but {len(responses)} lists of responses")
  return np.array(
    [[reward(prompt, text) for text in row] for prompt, row in zip(prompts, responses)], np.float32
  )


def _answer(answers: Mapping[str, str], prompt: str) -> str:
  if prompt not in answers:
    raise ValueError(f"no answer to the prompt {prompt[:80]!r}; every prompt needs one")
  return answers[prompt]


def _plain(text: str) -> str:
  return " ".join(text.casefold().split())


def _final_number(text: str) -> Fraction | None:
  for marker in ("####", r"\boxed{"):
    if marker in text:
      first = _NUMBER.search(text.rpartition(marker)[2])
      return _fraction(first[0]) if first else None
  every = _NUMBER.findall(text)
  return _fraction(every[-1]) if every else None


def _fraction(text: str) -> Fraction | None:
  """None for a division by zero."""
  above, _, below = text.replace(",", "").partition("/")
  return Fraction(above) / Fraction(below or 1) if not below or int(below) else None
