"""What a supervised stage imitates."""

from __future__ import annotations

from typing import NamedTuple


class Demonstration(NamedTuple):
  """A prompt and an answer to learn from."""

  prompt: str
  response: str
