"""Order, resume, shards, padding: batch n is the same batch whoever asks, and nothing is lost."""

from collections import Counter

import numpy as np
import pytest

from larpo_jax.data import batching, schedule
from larpo_jax.data.candidates import Tokens

FIELDS = ("prompt", "prompt_mask", "response", "response_mask", "label", "valid", "weight", "row")


class Rows:
  """Ragged lists in memory; the first token of a prompt says which row it is."""

  pad = 0

  def __init__(self, rng, count, longest=100, width=4):
    self.rows = []
    for index in range(count):
      draw = lambda n: rng.integers(1, 1000, n).astype(np.int32)  # noqa: E731
      responses = [draw(rng.integers(1, longest)) for _ in range(rng.integers(1, width + 1))]
      prompt = np.concatenate([[10_000 + index], draw(rng.integers(0, longest))]).astype(np.int32)
      masks = [rng.random(len(ids)) < 0.8 for ids in responses]
      self.rows.append(Tokens(prompt, responses, masks, list(rng.normal(size=len(responses)))))
    self.candidates = max(len(row.responses) for row in self.rows)
    self.prompt_lengths = np.array([len(row.prompt) for row in self.rows])
    self.response_lengths = np.array([max(map(len, row.responses)) for row in self.rows])
    self.row_lengths = np.array([len(r.prompt) + sum(map(len, r.responses)) for r in self.rows])

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, index):
    return self.rows[index]


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def same(a, b):
  return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


@pytest.fixture
def rng(seed):
  return np.random.default_rng(seed)


@pytest.fixture
def data(rng):
  return Rows(rng, int(rng.integers(20, 60)))


def test_a_batch_holds_what_the_rows_hold(data):
  for batch in batching.batches(data, batch_size=7, shuffle=False, epochs=1):
    assert batch.prompt.shape[1] == 1
    for name in FIELDS:
      assert len(getattr(batch, name)) == 7
    for b, row in enumerate(batch.row):
      assert batch.weight[b] == (row >= 0)
      tokens = data[row] if row >= 0 else Tokens(np.array([]), [], [], [])
      assert batch.prompt[b][batch.prompt_mask[b]].tolist() == tokens.prompt.tolist()
      assert (np.diff(batch.prompt_mask[b, 0].astype(int)) >= 0).all()  # padded on the left
      assert batch.valid[b].sum() == len(tokens.responses)
      for k in range(data.candidates):
        if k >= len(tokens.responses):
          assert not batch.valid[b, k]
          assert not batch.response_mask[b, k].any()
          continue
        ids, mask = tokens.responses[k], tokens.masks[k]
        assert batch.response[b, k, : len(ids)].tolist() == ids.tolist()
        assert batch.response_mask[b, k, : len(ids)].tolist() == mask.tolist()
        assert not batch.response_mask[b, k, len(ids) :].any()
        assert batch.label[b, k] == np.float32(tokens.labels[k])
  assert batch.prompt.dtype == batch.response.dtype == batch.row.dtype == np.int32
  assert batch.response_mask.dtype == batch.label.dtype == batch.weight.dtype == np.float32
  assert batch.prompt_mask.dtype == batch.valid.dtype == bool


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_evaluation_sees_every_row_once(data, size):
  rows = [b.row for b in batching.batches(data, batch_size=size, shuffle=False, epochs=1)]
  seen = np.concatenate(rows)
  assert sorted(seen[seen >= 0]) == list(range(len(data)))


def test_an_epoch_loses_less_than_a_batch_and_other_rows_each_time(data):
  size = 8
  plan = batching.schedule(data, batch_size=size)
  epochs = 6
  iterator = batching.batches(data, batch_size=size, seed=1, epochs=epochs)
  batches = list(iterator)
  assert len(batches) == epochs * plan.per_epoch
  seen = []
  for epoch in range(epochs):
    part = batches[epoch * plan.per_epoch : (epoch + 1) * plan.per_epoch]
    rows = np.concatenate([batch.row for batch in part])
    assert len(set(rows)) == len(rows)
    assert (rows >= 0).all()
    assert len(data) - len(rows) < size
    seen.append(tuple(rows))
  assert len(set(seen)) == epochs
  counts = Counter(row for epoch in seen for row in epoch)
  assert len(data) % size == 0 or set(counts.values()) != {0, epochs}


def test_fewer_rows_than_a_batch_are_padded(rng):
  small = Rows(rng, 3)
  for shuffle in (True, False):
    batch = next(batching.batches(small, batch_size=8, shuffle=shuffle))
    assert sorted(batch.row) == [-1] * 5 + [0, 1, 2]
    assert batch.weight.sum() == 3


def test_the_order_is_a_function_of_the_seed(data):
  first, again, other = (take(batching.batches(data, batch_size=5, seed=s), 12) for s in (3, 3, 4))
  assert all(same(a, b) for a, b in zip(first, again))
  assert not all(np.array_equal(a.row, b.row) for a, b in zip(first, other))


def test_a_run_resumes_at_any_step(data, rng):
  whole = take(batching.batches(data, batch_size=6, seed=5), 25)
  for _ in range(5):
    stop = int(rng.integers(0, 20))
    killed = batching.batches(data, batch_size=6, seed=5)
    take(killed, stop)
    state = killed.get_state()
    assert state == {"next_index": stop}
    resumed = batching.batches(data, batch_size=6, seed=5)
    resumed.set_state(state)
    started = batching.batches(data, batch_size=6, seed=5, start=stop)
    for place in range(stop, 25):
      assert same(next(resumed), whole[place])
      assert same(next(started), whole[place])


def test_resume_reads_only_what_it_returns(data):
  read = []

  class Watched:
    pad, candidates = data.pad, data.candidates
    prompt_lengths, response_lengths = data.prompt_lengths, data.response_lengths

    def __len__(self):
      return len(data)

    def __getitem__(self, index):
      read.append(index)
      return data[index]

  next(batching.batches(Watched(), batch_size=4, start=10_000_000))
  assert len(read) <= 4 * 8  # one batch, and what was read ahead


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_one_order(data, count):
  whole = take(batching.batches(data, batch_size=8, seed=2), 15)
  shards = [
    take(batching.batches(data, batch_size=8, seed=2, shard=(i, count)), 15) for i in range(count)
  ]
  for step, batch in enumerate(whole):
    parts = [shard[step] for shard in shards]
    for name in FIELDS:
      joined = np.concatenate([getattr(part, name) for part in parts])
      assert np.array_equal(joined, getattr(batch, name)), name


def test_shapes_are_few_and_save_padding(data):
  plan = batching.schedule(data, batch_size=4, shapes=4)
  assert len(plan.shapes) <= 5
  batches = take(batching.batches(data, batch_size=4, shapes=4), 3 * plan.per_epoch)
  found = {(b.prompt.shape[-1], b.response.shape[-1]) for b in batches}
  assert found <= set(plan.shapes)
  one = take(batching.batches(data, batch_size=4, shapes=1), 3 * plan.per_epoch)
  assert len({b.response.shape for b in one}) == 1
  assert sum(b.response.size for b in batches) < sum(b.response.size for b in one)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 64, 65, 100, 129, 1000, 4097])
def test_sizes_hold_the_length_and_waste_little(length):
  size = schedule._round(length)
  assert length <= size <= max(length * 1.25, length + 7)
  assert size % 8 == 0


def test_wider_batches_and_hooks(data):
  batch = next(
    batching.batches(data, batch_size=4, candidates=9, attach=lambda b: b.replace(cond=1))
  )
  assert batch.response.shape[1] == 9
  assert not batch.valid[:, data.candidates :].any()
  assert batch.cond == 1


def test_what_does_not_fit_is_said(data):
  with pytest.raises(ValueError, match="8 does not divide among 3"):
    batching.batches(data, batch_size=8, shard=(0, 3))
  with pytest.raises(ValueError, match=f"lists of {data.candidates}: candidates=1"):
    batching.batches(data, batch_size=8, candidates=1)
  with pytest.raises(ValueError, match="no batches of 0"):
    batching.batches(data, batch_size=0)


def test_prompts_alone(data):
  seen = []
  for batch in batching.prompt_batches(data, batch_size=5, shuffle=False, epochs=1):
    for b, row in enumerate(batch.row):
      if row >= 0:
        assert batch.prompt[b][batch.prompt_mask[b]].tolist() == data[row].prompt.tolist()
        seen.append(row)
      assert batch.weight[b] == (row >= 0)
  assert sorted(seen) == list(range(len(data)))
  a, b = (take(batching.prompt_batches(data, batch_size=5, seed=1, start=s), 3) for s in (0, 1))
  assert all(np.array_equal(x.row, y.row) for x, y in zip(a[1:], b))
