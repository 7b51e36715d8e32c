"""A contextual bandit in text: 512 answers, an exact reward, and a best one that is rare.

A prompt `bgac:` is a context of four letters from a to h, an answer any three of these letters. The
answer's first letter is its arm, counted on from the context's first letter and round after h; the
other two are to be the context's last two; its second letter says nothing. So here

    bac cac dac    earn 0.3, 0.4 and 0.5: the common modes, the commoner the worse
    gac            is the best mode and earns 1
    aac eac ...    of any other arm earn 0.1

times the square of the share of the last two letters that are right. The best arm has to be found
for each of the eight first letters.
"""

from __future__ import annotations

from collections.abc import Iterable
import re

import numpy as np
from transformers import PreTrainedTokenizerFast

from larpo_jax.worlds import _splits, _tokenizers
from larpo_jax.worlds._demonstrations import Demonstration

LETTERS = "abcdefgh"
SPLITS = _splits.SPLITS
BEST, COMMON = 5, (0, 1, 2)  # arms, in letters after the context's first
SHARES = (0.5, 0.3, 0.2)  # of the demonstrations of a common mode, by COMMON
REWARDS = {0: 0.3, 1: 0.4, 2: 0.5, BEST: 1.0}  # of an arm whose other letters are right
OTHER = 0.1  # of any other arm

_PROMPT = re.compile(rf"[{LETTERS}]{{4}}:")
_RESPONSE = re.compile(rf"[{LETTERS}]{{3}}")


def problems(count: int, *, seed: int, split: str = "train", start: int = 0) -> list[str]:
  """Contexts number start to start + count of an endless list that depends on the seed alone.

  No context is in two splits: its own hash says which one it belongs to. Raises ValueError on an
  unknown split and on a negative seed, count or start.
  """
  _splits.check(seed, count, start, split)
  return [_context(seed, index, split) for index in range(start, start + count)]


def split_of(context: str) -> str:
  """The split that a context belongs to, by its hash."""
  return _splits.split_of(context)


def prompt(problem: str) -> str:
  """The context as a prompt."""
  return f"{problem}:"


def modes(prompt: str) -> list[str]:
  """The best mode, then the common ones; ValueError where the text is no prompt of this world."""
  context = _parse(prompt)
  return [_answer(context, arm) for arm in (BEST, *COMMON)]


def solution(prompt: str) -> str:
  """The best mode; ValueError where the text is no prompt of this world."""
  return modes(prompt)[0]


def demonstrations(
  count: int, *, seed: int, rare: float = 1e-3, split: str = "train", start: int = 0
) -> list[Demonstration]:
  """Answers to `problems` of the same arguments: a share `rare` is the best mode.

  The others are the common modes, half of them the worst of these. So a policy that learns from
  them gives the best mode about that probability. Pure in (seed, index), like the problems. Raises
  ValueError where rare is no share.
  """
  if not 0 <= rare <= 1:
    raise ValueError(f"rare={rare} is not a share from 0 to 1")
  chances = [rare, *((1 - rare) * share for share in SHARES)]
  result = []
  for index, context in enumerate(problems(count, seed=seed, split=split, start=start), start):
    text = prompt(context)
    mode = np.random.default_rng([seed, index, 1]).choice(len(chances), p=chances)
    result.append(Demonstration(text, modes(text)[mode]))
  return result


def answer(response: str) -> str | None:
  """The response where it is an answer of three letters, else None."""
  return response if _RESPONSE.fullmatch(response) else None


def gold(prompts: Iterable[str], responses: Iterable[list[str]]) -> np.ndarray:
  """The exact reward of each response, float32 [B, K] in [0, 1]: 1 is the best mode, 0 no answer.

  Raises ValueError where a prompt is not one of this world's.
  """
  rows = zip(prompts, responses)
  return np.array([[_reward(_parse(text), each) for each in row] for text, row in rows], np.float32)


def accuracy(prompts: Iterable[str], responses: Iterable[list[str]]) -> np.ndarray:
  """1 where a response is the best mode, else 0; float32 [B, K]."""
  return np.array(
    [[response == solution(text) for response in row] for text, row in zip(prompts, responses)],
    np.float32,
  )


def tokenizer() -> PreTrainedTokenizerFast:
  """One token a letter, and the colon, with <pad>, <eos> and <unk>; made here, no file needed."""
  return _tokenizers.whole([*LETTERS, ":"], r"[\s\S]")


def _context(seed: int, index: int, split: str) -> str:
  generator = np.random.default_rng([seed, index])
  while True:
    context = "".join(LETTERS[letter] for letter in generator.integers(len(LETTERS), size=4))
    if split_of(context) == split:
      return context


def _parse(prompt: str) -> str:
  text = prompt.strip()
  if not _PROMPT.fullmatch(text):
    raise ValueError(f"{prompt[:80]!r} is no context of the bandit; write one like 'bgac:'")
  return text[:-1]


def _answer(context: str, arm: int) -> str:
  first = LETTERS[(LETTERS.index(context[0]) + arm) % len(LETTERS)]
  return first + context[2:]


def _reward(context: str, response: str) -> float:
  if answer(response) is None:
    return 0.0
  arm = (LETTERS.index(response[0]) - LETTERS.index(context[0])) % len(LETTERS)
  right = np.mean([ours == asked for ours, asked in zip(response[1:], context[2:])])
  return float(REWARDS.get(arm, OTHER) * right**2)
