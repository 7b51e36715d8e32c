"""A mismatched response: another prompt's, label 0, and nothing of the row's own has changed."""

import functools

import numpy as np
import pytest
from tiny_rows import UNPAIRED, built, draw, feed, votes
from tiny_tokenizers import make

from larpo_jax.data import dataset, reference
from larpo_jax.types import LogProbs


@pytest.fixture(scope="module")
def tokenizer():
  return make()


@pytest.fixture
def build(tokenizer, tmp_path):
  return functools.partial(built, tmp_path, tokenizer)


def test_a_mismatched_response_is_another_prompts_and_label_0(build, seed):
  rows = votes(np.random.default_rng(seed), 40)
  plain, data = build(rows, UNPAIRED), build(rows, UNPAIRED, mismatched=True)
  N = len(plain)
  assert (len(data), plain.candidates, data.candidates) == (N, 1, 2)
  same = 0
  for index in range(N):
    own, tokens = plain[index], data[index]
    other = (index - 1) % N
    while plain[other].prompt.tolist() == own.prompt.tolist():
      other, same = (other - 1) % N, same + 1
    assert tokens.prompt.tolist() == own.prompt.tolist()
    assert [r.tolist() for r in tokens.responses] == [
      own.responses[0].tolist(),
      plain[other].responses[0].tolist(),
    ]
    assert tokens.masks[1].tolist() == plain[other].masks[0].tolist()
    assert tokens.labels == [*own.labels, 0.0]
    assert tokens.importance == [*own.importance, 0.0]
    assert data.response_lengths[index] == max(map(len, tokens.responses))
    assert data.prompt_lengths[index] == len(tokens.prompt)
  assert same  # some rows follow one of their own prompt
  for batch in feed(data):
    real = batch.row >= 0
    assert batch.valid[real].all()
    assert (batch.label[real, 1] == 0).all()
    assert (np.abs(batch.label[real, 0]) == 1).all()


def test_a_mismatched_response_joins_lists_and_their_fields(build, seed):
  rows = draw(np.random.default_rng(seed), 20)
  plain, data = build(rows, spans=True), build(rows, spans=True, mismatched=True)
  for index in range(len(data)):
    own, tokens = plain[index], data[index]
    for name, values in own._asdict().items():
      if name != "prompt":
        assert repr(getattr(tokens, name)[:-1]) == repr(values), name
    assert (tokens.labels[-1], tokens.scores[-1], tokens.importance[-1]) == (0.0, 0.0, 0.0)
    assert tokens.spans[-1].tolist() == [0] * len(tokens.responses[-1])


def test_an_equal_mismatched_response_stays(build):
  rows = [dict(prompt=f"{i}\n", completion="yes", label=True, counts=1) for i in range(3)]
  data = build(rows, UNPAIRED, mismatched=True)
  assert data[1].labels == [1.0, 0.0]
  assert data[1].responses[0].tolist() == data[1].responses[1].tolist()


def test_where_nothing_can_be_mismatched_it_is_said(build):
  rows = [dict(prompt="q\n", completion=c, label=True, counts=1) for c in "abc"]
  with pytest.raises(ValueError, match="two different prompts"):
    build(rows, UNPAIRED, mismatched=True)
  with pytest.raises(ValueError, match="prompts alone"):
    build(rows, dict(name="readers.prompts"), mismatched=True)


def test_only_the_preference_data_is_marked_and_mismatched(build, tokenizer, tmp_path, seed):
  path = str(build(votes(np.random.default_rng(seed), 12), UNPAIRED).report.source)
  node = dict(
    train=dict(path=path), test=dict(path=path), reader=UNPAIRED, spans=True, mismatched=True,
    max_prompt=64, max_response=64, cache=tmp_path / "cache",
  )  # fmt: skip
  own = dict(name="readers.supervised", response="completion")
  train, test = (dataset.from_node(node, tokenizer, which) for which in ("train", "test"))
  shown = dataset.from_node(node | dict(train=dict(path=path, reader=own)), tokenizer)
  assert (train.candidates, test.candidates, shown.candidates) == (2, 1, 1)
  assert train[0].spans is not None
  assert test[0].spans is not None
  assert shown[0].spans is None
  assert dataset.from_node(node | dict(mismatched=False), tokenizer).candidates == 1


def test_the_reference_cache_knows_mismatched_responses(build, tmp_path, seed):
  data = build(votes(np.random.default_rng(seed), 14), UNPAIRED, mismatched=True)

  def score(batch):
    prompt = (batch.prompt * batch.prompt_mask).sum(-1)[..., None]  # [B, 1, 1]
    token = -np.log1p(prompt + np.cumsum(batch.response, -1)) * batch.response_mask
    return LogProbs(token=token.astype(np.float32), mask=batch.response_mask)

  cache = reference.Cache(tmp_path / "reference", "a" * 32, "float32")
  reference.fill(feed(data), score, cache)
  assert reference.fill(feed(data), score, cache) == 0
  for batch in feed(data, batch_size=3, shuffle=True, attach=reference.attach(cache)):
    there = batch.valid[..., None] & (batch.weight > 0)[:, None, None]
    np.testing.assert_array_equal(batch.reference, score(batch).token * there)
    assert batch.reference[:, 1].any(-1)[batch.weight > 0].all()
