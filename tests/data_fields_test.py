"""Scores, importance and spans: each with its own response, or not there."""

import difflib
import functools
import io

import numpy as np
import pytest
from rich.console import Console
from tiny_rows import BESIDE, LISTS, built, draw, feed
from tiny_tokenizers import make

from larpo_jax import inspect
from larpo_jax.data import edits, readers, store
from larpo_jax.data.candidates import Tokens
from larpo_jax.data.problems import BadRow

FIELDS = ("score", "importance", "span")


@pytest.fixture(scope="module")
def tokenizer():
  return make()


@pytest.fixture
def build(tokenizer, tmp_path):
  return functools.partial(built, tmp_path, tokenizer)


@pytest.mark.parametrize("policy", [{}, dict(candidates=3), dict(max_response=2)], ids=str)
def test_what_is_known_of_a_response_stays_with_it(policy, build, tokenizer, seed):
  rows = draw(np.random.default_rng(seed), 60)
  data = build(rows, **policy)
  assert len(data) > 10
  notes = data.report.notes
  lost = {"candidates": "candidates_thinned", "max_response": "candidates_lost"}
  assert all(notes[lost.get(name, "duplicate_candidates")] for name in policy or [""])
  for index in range(len(data)):
    row, tokens = rows[int(data.sources[index])], data[index]
    for k, ids in enumerate(tokens.responses):
      place = row["second"].index(tokens.scores[k])
      assert tokens.importance[k] == row["counts"][place]
      assert tokens.labels[k] == row["s"][place]
      text = tokenizer.decode(ids).removesuffix("<eos>")
      assert row["r"][place].startswith(text)
      whole = "max_response" not in policy
      same = [i for i, r in enumerate(row["r"]) if (r if whole else r[: len(text)]) == text]
      best = max(same, key=lambda i: row["s"][i])  # the first of the best
      assert row["s"][place] == row["s"][best]
      assert place == best or not whole


@pytest.mark.parametrize("spans", [False, True])
def test_batches_hold_what_the_rows_hold_and_0_elsewhere(spans, build, seed):
  rows = draw(np.random.default_rng(seed), 30)
  data = build(rows, spans=spans)
  batches = list(feed(data, candidates=9))
  assert any((batch.row < 0).any() for batch in batches) or len(data) % 4 == 0
  for batch in batches:
    assert batch.score.dtype == batch.importance.dtype == np.float32
    assert batch.score.shape == batch.importance.shape == batch.label.shape
    assert (batch.span is None) == (not spans)
    if spans:
      assert (batch.span.dtype, batch.span.shape) == (np.int32, batch.response.shape)
    for b, row in enumerate(batch.row):
      tokens = data[row] if row >= 0 else Tokens(np.array([]), [], [], [], [], [], [])
      K = len(tokens.responses)
      assert batch.score[b].tolist() == tokens.scores + [0.0] * (9 - K)
      assert batch.importance[b].tolist() == tokens.importance + [0.0] * (9 - K)
      if spans:
        wide = np.zeros(batch.response.shape[1:], np.int32)
        for k, span in enumerate(tokens.spans):
          wide[k, : len(span)] = span
        assert batch.span[b].tolist() == wide.tolist()


def test_what_is_not_asked_for_is_not_there(build, seed):
  rows = draw(np.random.default_rng(seed), 20)
  data = build(rows, reader=LISTS)
  assert not {path.stem for path in data.directory.iterdir()} & store.OPTIONAL.keys()
  assert data[0][4:] == (None, None, None)
  assert all(getattr(batch, name) is None for batch in feed(data) for name in FIELDS)
  one = build(rows, reader=LISTS | dict(importance="counts"))
  batch = next(feed(one))
  assert (batch.score, batch.span) == (None, None)
  assert batch.importance.any()


@pytest.mark.parametrize("mismatched", [False, True])
def test_processes_share_the_fields_too(mismatched, build, seed):
  data = build(draw(np.random.default_rng(seed), 30), spans=True, mismatched=mismatched)
  whole = list(feed(data, batch_size=8))
  shards = [list(feed(data, batch_size=8, shard=(index, 4))) for index in range(4)]
  for step, batch in enumerate(whole):
    for name in (*FIELDS, "response", "label", "row"):
      joined = np.concatenate([getattr(shard[step], name) for shard in shards])
      assert np.array_equal(joined, getattr(batch, name)), name


def by_blocks(a, b):
  """RRPO's own way: what stands between matching blocks, where both sides have some."""
  matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
  spans, number, i, j = ([0] * len(a), [0] * len(b)), 0, 0, 0
  for block in matcher.get_matching_blocks():
    if i < block.a and j < block.b:
      number += 1
      spans[0][i : block.a] = [number] * (block.a - i)
      spans[1][j : block.b] = [number] * (block.b - j)
    i, j = block.a + block.size, block.b + block.size
  return spans


@pytest.mark.parametrize("length", [3, 30, 400])  # difflib's junk rule would act from 200 on
def test_spans_are_those_of_difflib(length, seed):
  rng = np.random.default_rng(seed)
  for K in (1, 2, 3, 5):
    ids = [rng.integers(0, 9, rng.integers(1, length + 1)).astype(np.int32) for _ in range(K)]
    labels = [float(x) for x in rng.integers(0, 3, K)]
    spans = edits.mark(Tokens(ids[0], ids, [i > 0 for i in ids], labels)).spans
    best = labels.index(max(labels))
    worst = max(k for k in range(K) if labels[k] == min(labels))
    for k in range(K):
      other = worst if k == best else k
      pair = by_blocks(ids[best].tolist(), ids[other].tolist())
      assert spans[k].tolist() == pair[k != best], (k, best, worst)
      assert spans[k].dtype == np.uint16


def test_spans_are_numbered_and_what_is_only_added_is_none():
  ids = [np.array([1, 2, 3, 4, 5, 6]), np.array([1, 9, 9, 3, 7, 4, 8, 6])]  # 2: 99, +7, 5: 8
  spans = edits.mark(Tokens(ids[0], ids, [i > 0 for i in ids], [1.0, 0.0])).spans
  assert [span.tolist() for span in spans] == [[0, 1, 0, 0, 2, 0], [0, 1, 1, 0, 0, 0, 2, 0]]


def test_stored_spans_are_of_what_truncation_leaves(build, seed):
  data = build(draw(np.random.default_rng(seed), 30), reader=LISTS, spans=True, max_response=3)
  marked = 0
  for index in range(len(data)):
    tokens = data[index]
    again = edits.mark(tokens._replace(spans=None)).spans
    assert [span.tolist() for span in tokens.spans] == [span.tolist() for span in again]
    marked += sum(int(span.any()) for span in tokens.spans)
  assert marked > 10


def test_the_cache_tells_the_settings_apart(build, seed):
  rows = draw(np.random.default_rng(seed), 10)
  columns = dict(second_scores="second", importance="counts")
  named = ({}, columns, *({name: column} for name, column in columns.items()))
  found = [build(rows, LISTS | each, spans=spans) for each in named for spans in (False, True)]
  assert len({data.directory for data in found}) == len(found)
  # What is stored does not depend on it, so it is stored once.
  assert build(rows, mismatched=True).directory == build(rows).directory


@pytest.mark.parametrize("name", store.OPTIONAL)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_fields_are_made_again(name, damage, build, seed):
  rng = np.random.default_rng(seed)
  rows = draw(rng, 10)
  first = build(rows, spans=True)
  before = [repr(first[index]) for index in range(len(first))]
  victim = first.directory / f"{name}.bin"
  content = bytearray(victim.read_bytes())
  content[rng.integers(len(content))] ^= 1
  victim.unlink()
  if damage != "gone":
    victim.write_bytes(content if damage == "flip" else content[:-1])
  again = build(rows, spans=True)
  assert [repr(again[index]) for index in range(len(again))] == before
  assert list(first.directory.parent.glob("*.corrupt"))


def test_rows_that_bring_different_fields_are_refused(build):
  def reader(row):
    scores = row["second"] if row["p"] == "0\n" else None
    return readers.Example(row["p"], row["r"], row["s"], scores=scores)

  rows = [dict(p=f"{i}\n", r=["a", "b"], s=[1.0, 0.0], second=[1.0, 2.0]) for i in range(3)]
  with pytest.raises(ValueError, match=r"some rows have \['scores'\], others \[\]"):
    build(rows, reader=reader)


PAIR = dict(prompt="q\n", chosen="a", rejected="b", cs=0.5, rs=2, ci=3, ri=-4.5)
PAIRED = dict(chosen_score="cs", rejected_score="rs", chosen_importance="ci")
LIST = dict(p="q\n", r=["a", "b"], s=[1, 0], second=[3, 4], counts=[5, 6])
VOTE = dict(prompt="q\n", completion="a", label=False, counts=2)


def test_readers_bring_the_numbers():
  pair = readers.pairs(PAIR, **PAIRED, rejected_importance="ri")
  assert (pair.labels, pair.scores, pair.importance) == ([1.0, 0.0], [0.5, 2.0], [3.0, -4.5])
  assert (readers.pairs(PAIR).scores, readers.pairs(PAIR).importance) == (None, None)
  found = readers.lists(LIST, **{k: v for k, v in BESIDE.items() if k != "name"})
  assert (found.scores, found.importance) == ([3.0, 4.0], [5.0, 6.0])
  assert readers.unpaired(VOTE, importance="counts").importance == [2.0]
  assert readers.unpaired(VOTE).importance is None
  for half in (PAIRED, dict(rejected_score="rs")):
    with pytest.raises(ValueError, match="name both"):
      readers.pairs(PAIR, **half)


@pytest.mark.parametrize(
  ("kind", "value"),
  [
    ("null", None),
    ("missing", ...),
    ("type", "1"),
    ("type", True),
    ("not_finite", float("nan")),
    ("not_finite", 10**400),
  ],
)
def test_numbers_that_are_none_are_bad_rows(kind, value):
  def check(read, row, column, put):
    changed = {k: v for k, v in row.items() if k != column}
    if value is not ...:
      changed[column] = put(value)
    with pytest.raises(BadRow) as error:
      read(changed)
    assert error.value.kind == f"{kind}:{column}"

  arguments = {k: v for k, v in BESIDE.items() if k != "name"}
  for column in ("second", "counts"):
    check(lambda row: readers.lists(row, **arguments), LIST, column, lambda v: [1, v])
  whole = PAIRED | dict(rejected_importance="ri")
  for column in ("cs", "rs", "ci", "ri"):
    check(lambda row: readers.pairs(row, **whole), PAIR, column, lambda v: v)
  check(lambda row: readers.unpaired(row, importance="counts"), VOTE, "counts", lambda v: v)
  with pytest.raises(BadRow, match="unequal_lengths"):
    readers.lists(LIST | dict(second=[1]), **arguments)


def test_inspect_says_what_is_there(build, tokenizer):
  rows = [dict(p="q\n", r=["a b c", "a x c"], s=[1, 0], second=[7.5, 2], counts=[3, 4])]
  text = {}
  for reader, spans in ((BESIDE, True), (LISTS, False)):
    out = io.StringIO()
    data = build(rows, reader, spans=spans)
    inspect.show_row(data, 0, tokenizer, Console(file=out, width=200))
    text[spans] = out.getvalue()
  for known in ("score 7.5, importance 3", "score 2, importance 4"):
    assert f"tokens trained on, {known}, 1 edited spans of 1 tokens\n" in text[True]
  assert not any(word in text[False] for word in ("score", "importance", "span"))
