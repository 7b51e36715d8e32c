"""One more response to each prompt, that was written to another: what KTO's baseline is of."""

from __future__ import annotations

import numpy as np

from larpo_jax.data.candidates import Tokens
from larpo_jax.data.store import TokenizedData


class Mismatched(TokenizedData):
  """Rows that end in a mismatched response with label 0; nothing more is stored or tokenised.

  It is the first response of the nearest row before (the last row comes before the first) that has
  another prompt: its ids as they are, put after this row's prompt, whatever the two would have been
  if tokenised together. It stays where it happens to equal one of the row's own responses.
  """

  def __init__(self, data: TokenizedData) -> None:
    """Shares the arrays of data; ValueError where a row has nothing to be given."""
    vars(self).update(vars(data))
    if not data.widths.all():
      raise ValueError(
        f"data.mismatched needs rows with responses, and {data.report.source} has prompts alone"
      )
    self._other = _others(np.asarray(data.prompts))
    first = np.diff(self._starts)[self._rows[:-1] + 1]  # the length of each row's first response
    self.response_lengths = np.maximum(data.response_lengths, first[self._other])
    self.row_lengths = data.row_lengths + first[self._other]
    self.candidates, self.widths = data.candidates + 1, data.widths + 1

  def __getitem__(self, index: int) -> Tokens:
    own, other = super().__getitem__(index), super().__getitem__(int(self._other[index]))
    ids = other.responses[0]
    return Tokens(
      own.prompt,
      [*own.responses, ids],
      [*own.masks, other.masks[0]],
      [*own.labels, 0.0],
      None if own.scores is None else [*own.scores, 0.0],
      None if own.importance is None else [*own.importance, 0.0],
      None if own.spans is None else [*own.spans, np.zeros(len(ids), np.uint16)],
    )


def _others(prompts: np.ndarray) -> np.ndarray:
  """For each row the nearest one before it, round and round, that has another prompt."""
  starts = np.flatnonzero(prompts != np.roll(prompts, 1))  # of the runs of one prompt
  if not len(starts):
    raise ValueError("data.mismatched needs responses to at least two different prompts")
  run = np.searchsorted(starts, np.arange(len(prompts)), side="right") - 1  # -1: the last run
  return (starts[run] - 1) % len(prompts)
