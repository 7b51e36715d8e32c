"""Some rows of a data set, as data to batch."""

from __future__ import annotations

import numpy as np

from larpo_jax.data.batching import Data
from larpo_jax.data.candidates import Tokens


class Selected:
  """The rows of data with these indices [N], in that order; read as they are asked for."""

  def __init__(self, data: Data, rows: np.ndarray) -> None:
    self.rows = rows
    self.prompt_lengths = data.prompt_lengths[rows]
    self.response_lengths = data.response_lengths[rows]
    self.row_lengths = data.row_lengths[rows]
    self.pad, self.candidates = data.pad, data.candidates
    self._data = data

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Tokens:
    return self._data[int(self.rows[index])]
