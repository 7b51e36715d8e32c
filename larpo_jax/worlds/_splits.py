"""Train, validation and test: which one a problem is in, its own text says."""

from __future__ import annotations

import hashlib

SPLITS = ("test", "validation", "train")  # a tenth, a tenth, and the rest


def split_of(text: str) -> str:
  """The split that a prompt belongs to, by its hash."""
  digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
  return SPLITS[min(int.from_bytes(digest) % 10, 2)]


def check(seed: int, count: int, start: int, split: str) -> None:
  """Raises ValueError on an unknown split, and on a negative seed, count or start."""
  if split not in SPLITS:
    raise ValueError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
  if min(seed, count, start) < 0:
    raise ValueError(f"seed={seed}, count={count}, start={start}: none of them can be negative")
