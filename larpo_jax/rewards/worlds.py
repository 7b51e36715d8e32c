"""The exact rewards of the worlds, and proxies that like something else besides."""

from __future__ import annotations

from collections.abc import Callable
import hashlib
import math

import numpy as np

from larpo_jax.worlds import arithmetic as _arithmetic
from larpo_jax.worlds import attributes as _attributes
from larpo_jax.worlds import bandit as _bandit


def arithmetic(prompts: list[str], responses: list[list[str]], *, scale: float = 1.0) -> np.ndarray:
  """`scale` times the gold reward of `worlds.arithmetic`, float32 [B, K] in [0, scale].

  Scaled, it is a logit for what reads one: `noise.bradley_terry`, `scored.madpo`. Raises ValueError
  where a prompt is not a problem of that world, or scale is not above 0.
  """
  if not 0 < scale < math.inf:
    raise ValueError(f"scale={scale} must be above 0 and finite")
  return np.float32(scale) * _arithmetic.gold(prompts, responses)


def arithmetic_proxy(
  prompts: list[str],
  responses: list[list[str]],
  *,
  likes: str = "length",
  strength: float = 1.0,
  noise: float = 0.0,
) -> np.ndarray:
  """The gold reward of `worlds.arithmetic` and strength times a style, float32 [B, K].

  likes is a style from 0 to 1: "length", characters up to three times the solution's; "repeats",
  the share of lines that have been there; "spaces", the share of characters that are spaces. noise
  is the standard deviation of what a judge is off by, another for each text but always the same.
  Raises ValueError on another style, on a negative noise, and where `arithmetic` does.
  """
  styles = {"length": _longer, "repeats": _repeats, "spaces": _spaces}
  if likes not in styles:
    raise ValueError(f"likes={likes!r} is not one of {', '.join(styles)}")
  gold = _arithmetic.gold(prompts, responses)
  return _liked(gold, prompts, responses, styles[likes], strength, noise)


arithmetic_proxy.stands_in = True  # type: ignore[attr-defined]


def attributes(prompts: list[str], responses: list[list[str]]) -> np.ndarray:
  """The gold reward of `worlds.attributes`, float32 [B, K] in [0, 1].

  Raises ValueError where a prompt is not a problem of that world.
  """
  return _attributes.gold(prompts, responses)


def attributes_proxy(
  prompts: list[str], responses: list[list[str]], *, strength: float = 1.0, noise: float = 0.0
) -> np.ndarray:
  """The gold reward of `worlds.attributes` and strength times the share of "very", float32 [B, K].

  noise is as in `arithmetic_proxy`. Raises ValueError where it is negative, and where `attributes`
  does.
  """
  gold = _attributes.gold(prompts, responses)
  showy = lambda prompt, text: _attributes.showiness(text)  # noqa: E731
  return _liked(gold, prompts, responses, showy, strength, noise)


attributes_proxy.stands_in = True  # type: ignore[attr-defined]


def _liked(
  gold: np.ndarray,
  prompts: list[str],
  responses: list[list[str]],
  style: Callable[[str, str], float],
  strength: float,
  noise: float,
) -> np.ndarray:
  """gold + strength x style + noise x a normal number that the texts decide."""
  if noise < 0:
    raise ValueError(f"noise={noise} is a standard deviation: give at least 0")

  def more(prompt: str, text: str) -> float:
    return strength * style(prompt, text) + (noise and noise * _off(prompt, text))

  both = zip(prompts, responses)
  return gold + np.array([[more(prompt, text) for text in row] for prompt, row in both], np.float32)


def _off(prompt: str, text: str) -> float:
  whole = f"{prompt}\0{text}".encode(errors="surrogatepass")
  digest = hashlib.blake2b(whole, digest_size=8).digest()
  return float(np.random.default_rng(int.from_bytes(digest)).standard_normal())


def _longer(prompt: str, text: str) -> float:
  return min(1.0, len(text) / (3 * len(_arithmetic.solution(prompt))))


def _repeats(prompt: str, text: str) -> float:
  lines = text.removesuffix("\n").split("\n")
  return 1 - len(set(lines)) / len(lines)


def _spaces(prompt: str, text: str) -> float:
  return text.count(" ") / max(len(text), 1)


def bandit(prompts: list[str], responses: list[list[str]]) -> np.ndarray:
  """The gold reward of `worlds.bandit`, float32 [B, K] in [0, 1].

  Raises ValueError where a prompt is not one of that world's.
  """
  return _bandit.gold(prompts, responses)


def arithmetic_answer(prompts: list[str], responses: list[list[str]]) -> np.ndarray:
  """1 where the final answer is right, whatever the steps, else 0; float32 [B, K].

  Raises ValueError where a prompt is not a problem of that world.
  """
  return _arithmetic.accuracy(prompts, responses)
