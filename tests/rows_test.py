"""Rows of real tokens: no number changes, whatever room there is; too little is never silent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_models import FAST
import toy

from larpo_jax import micro_batches, sharding
from larpo_jax.data import schedule
from larpo_jax.scorers import tokens

FAMILIES = ("llama3", "mistral", "gemma2", "gemma3")


def needed(batch, groups=1):
  """The real tokens of each group of prompts, but for the last of each response and prompt."""
  reads = np.asarray(batch.response_mask > 0)
  length = np.max(reads * np.arange(1, reads.shape[-1] + 1), axis=-1).sum(-1)
  real = length + np.maximum(np.asarray(batch.prompt_mask).sum((1, 2)) - 1, 0)
  return real.reshape(groups, -1).sum(1)


def scored(model, params, batch):
  def total(params):
    found = tokens.causal(model, params, batch, chunk=16)
    return jnp.sum(jnp.sin(found.token)), found

  return jax.jit(jax.grad(total, has_aux=True), compiler_options=FAST)(params)


@pytest.mark.parametrize("family", FAMILIES)
def test_room_changes_neither_log_probs_nor_gradients(family, seed):
  model, params, _ = tiny.model(seed, family, num_hidden_layers=2)
  batch = tiny.batch(seed, B=4)
  least = int(np.ceil(needed(batch).max() / 4))
  wanted = scored(model, params, batch)
  for room in (least, least + 1, 10_000):
    found = scored(model, params, batch.replace(room=room))
    toy.close(found, wanted)


def test_too_little_room_gives_no_number(seed):
  model, params, _ = tiny.model(seed, "llama2", num_hidden_layers=1)
  batch = tiny.batch(seed, B=4)
  room = int(needed(batch).sum()) // 4 - 1
  found = tokens.causal(model, params, batch.replace(room=room))
  assert np.isnan(np.asarray(found.token)).all()


def test_each_device_has_its_own_rows(seed):
  model, params, _ = tiny.model(seed, "llama2", num_hidden_layers=1)
  batch, mesh = tiny.batch(seed, B=8), sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  room = int(np.ceil(needed(batch, groups=4).max() / 2))
  wanted = tokens.causal(model, params, batch)
  score = jax.jit(functools.partial(tokens.causal, model))
  with jax.set_mesh(mesh):
    found = score(params, sharding.put(batch.replace(room=room), mesh))
    short = score(params, sharding.put(batch.replace(room=room - 1), mesh))
  toy.close(found, wanted)
  assert np.isnan(np.asarray(short.token)).all()


@pytest.fixture
def lengths(seed):
  rng = np.random.default_rng(seed)
  prompts, responses = rng.integers(1, 60, 300), rng.integers(1, 90, (300, 3))
  return prompts, responses.max(1), prompts + responses.sum(1)


def of(lengths, **options):
  defaults = dict(batch_size=24, seed=1, shuffle=True, shapes=3, candidates=3, rooms=2)
  return schedule.Schedule(*lengths, **{**defaults, **options})


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("split", [(1, 1), (4, 1), (1, 3), (4, 2)])
def test_every_part_of_every_batch_fits(lengths, split, shuffle):
  plan, (devices, parts) = of(lengths, split=split, shuffle=shuffle), split
  totals = lengths[2]
  for step in range(2 * plan.per_epoch):
    rows, _, room = plan[step]
    tokens_of = np.where(rows >= 0, totals[rows], 0)
    for part in micro_batches.split(tokens_of, parts):
      for share in np.reshape(part, (devices, -1)):
        assert not room or share.sum() <= room * len(share)


@pytest.mark.parametrize("shuffle", [True, False])
def test_dealing_moves_rows_within_their_batch_only(lengths, shuffle):
  plain, dealt = of(lengths, shuffle=shuffle), of(lengths, shuffle=shuffle, split=(4, 2))
  for step in range(plain.per_epoch):
    assert sorted(plain[step].rows) == sorted(dealt[step].rows)
  worst = [max(plan[step].room for step in range(plain.per_epoch)) for plan in (plain, dealt)]
  assert worst[1] < 1.2 * worst[0]  # eight parts of three rows each would differ by much more


def test_rooms_are_few_and_save_padding(lengths):
  plan = of(lengths)
  planned = [plan[step] for step in range(plan.per_epoch)]
  assert len({(shape, room) for _, shape, room in planned}) <= 2 * len(plan.shapes)
  computed = sum(24 * room for _, _, room in planned)
  real = sum(lengths[2][rows].sum() for rows, _, _ in planned)
  padded = sum(24 * (shape[0] + 3 * shape[1]) for _, shape, _ in planned)
  assert real <= computed < 1.1 * real < 0.9 * padded
  more = of(lengths, rooms=8)
  assert sum(more[step].room for step in range(plan.per_epoch)) <= computed / 24


def test_lengths_alone_give_no_room(lengths):
  assert {of((*lengths[:2], None))[step].room for step in range(5)} == {0}
