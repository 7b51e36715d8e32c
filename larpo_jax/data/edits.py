"""Which tokens of a response are an edit of the best one, as RRPO marks them.

https://arxiv.org/abs/2504.12083: `difflib` aligns two sequences of token ids, and what stands in
one in the place of something else in the other is a span. What is only inserted or only deleted is
none: it has no counterpart to be better or worse than.
"""

from __future__ import annotations

import difflib

import numpy as np

from larpo_jax.data.candidates import Tokens

# difflib's own rule would drop frequent tokens from long sequences ("autojunk"): here all count.


def mark(tokens: Tokens) -> Tokens:
  """The row with its spans: 0 is shared, i > 0 the i-th span of an alignment with the best.

  Every response is aligned with the first of the best labelled ones, and the best takes the spans
  of its alignment with the last of the worst labelled ones: those two are numbered alike.
  """
  if not tokens.responses:
    return tokens._replace(spans=[])
  labels = np.asarray(tokens.labels)
  best = int(np.argmax(labels))
  worst = len(labels) - 1 - int(np.argmin(labels[::-1]))
  whole = tokens.responses[best]
  pairs = [align(whole, ids) for ids in tokens.responses]
  spans = [theirs for _, theirs in pairs]
  spans[best] = pairs[worst][0]
  return tokens._replace(spans=spans)


def align(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The number of the span that each id of a, and of b, stands in; 0 where in none."""
  spans = np.zeros(len(a), np.uint16), np.zeros(len(b), np.uint16)
  matcher = difflib.SequenceMatcher(None, a.tolist(), b.tolist(), autojunk=False)
  replaced = (code for code in matcher.get_opcodes() if code[0] == "replace")
  for number, (_, a_from, a_to, b_from, b_to) in enumerate(replaced, 1):
    spans[0][a_from:a_to] = number
    spans[1][b_from:b_to] = number
  return spans
