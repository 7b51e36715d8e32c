"""How hard the lists of a round are, by one of several measures; and the parts of a curriculum."""

from __future__ import annotations

from typing import Any

import numpy as np

from larpo_jax import lookup, stage
from larpo_jax.data import batching, store
from larpo_jax.data.selection import Selected
from larpo_jax.session import Session


def parts(
  session: Session, number: int, lists: store.TokenizedData, params: Any, start: Any
) -> list[batching.Data]:
  """The lists of a round in the parts that rounds.curriculum says; one part where it is None.

  params are the policy at the start of the round, start that before the first one.
  """
  rounds = session.config.rounds
  if rounds.curriculum is None:
    return [lists]
  order = lookup.resolve(rounds.curriculum, "larpo_jax.data")
  hard = measure(session, lists, rounds.difficulty, params, start)
  drawn = order(hard, np.random.default_rng([session.config.seed, number, 2]))
  return [Selected(lists, rows) for rows in drawn]


def measure(
  session: Session, lists: store.TokenizedData, by: str, params: Any, start: Any
) -> np.ndarray:
  """The difficulty [N] of each list: of its most preferred response against its least preferred.

  label_gap: minus the difference of their labels, as by Curry-DPO. score_gap: of the second
  judge's scores, where labels were drawn from them. logp_gap: of their log-probs under params.
  implicit_gap: of their log-ratios of params to start. place: which of its prompt's lists it is, in
  the order in which the strategy gave them; `lists.best_each` begins with the widest gap. Raises
  ValueError where score_gap finds no scores.
  """
  if by == "place":
    return _places(lists)
  if by in ("logp_gap", "implicit_gap"):
    values = _logps(session, lists, params)
    if by == "implicit_gap":
      values = [ours - theirs for ours, theirs in zip(values, _logps(session, lists, start))]
  else:
    values = [_judged(lists[row], by) for row in range(len(lists))]
  labels = [np.asarray(lists[row].labels) for row in range(len(lists))]
  gaps = [x[np.argmax(label)] - x[np.argmin(label)] for x, label in zip(values, labels)]
  return -np.asarray(gaps, np.float64)


def _judged(row: Any, by: str) -> np.ndarray:
  values = row.labels if by == "label_gap" else row.scores
  if values is None:
    raise ValueError(
      "rounds.difficulty='score_gap' needs scores beside the labels, as rounds.noise leaves them; "
      "use label_gap"
    )
  return np.asarray(values, np.float64)


def _places(lists: store.TokenizedData) -> np.ndarray:
  """0 for the first list of each prompt, 1 for its second, ..."""
  seen: dict[bytes, int] = {}
  found = np.zeros(len(lists))
  for row, prompt in enumerate(lists.prompts):
    found[row] = seen[bytes(prompt)] = seen.get(bytes(prompt), -1) + 1
  return found


def _logps(session: Session, lists: store.TokenizedData, params: Any) -> list[np.ndarray]:
  """The sequence log-prob of every response of every list."""
  feed = dict(batch_size=session.config.data.batch_size, shuffle=False, epochs=1, **session.layout)
  found: list[np.ndarray] = [np.zeros(0)] * len(lists)
  for batch in batching.batches(lists, shard=stage.shard(), **feed):
    session.poll()
    placed = session.put(batch)
    token, rows = stage.gathered((session.score(session.whole(params), placed).token, placed.row))
    for row, values in zip(rows, token.sum(-1, dtype=np.float64)):
      if row >= 0:
        found[row] = values
  return found
