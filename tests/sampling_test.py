"""Sampling: greedy is the full forward's, frequencies are the softmax's, log-probs the scorer's."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import tiny
from tiny_models import VOCABULARY

from larpo_jax import sampling, sharding
from larpo_jax.scorers import tokens

FIXED = dict(candidates=3, max_tokens=7, eos=VOCABULARY, pad=0)  # an end that is never reached
QUICK = {"xla_backend_optimization_level": 0}


def sample(model, params, prompt, mask, key, rows=None, **options):
  """The same, compiled in a tenth of the time."""
  run = lambda *arrays, rows: sampling.sample(model, *arrays, rows=rows, **FIXED | options)  # noqa: E731
  rows = np.arange(len(prompt)) if rows is None else rows
  return jax.jit(run, compiler_options=QUICK)(params, prompt, mask, jax.random.key(key), rows=rows)


def prompts(seed, B=4, P=6):
  batch = tiny.batch(seed, B=B, P=P)
  return batch.prompt[:, 0], batch.prompt_mask[:, 0]


def full_logits(model, params, prompt, mask, response):
  """Logits [B, K, R, V] that predict a response, from a full forward over rows without padding."""
  B, K, R = response.shape
  rows = np.zeros((B, K, prompt.shape[-1] + R), np.int32)
  start = mask.sum(-1)
  for b, k in np.ndindex(B, K):
    row = np.concatenate([prompt[b][mask[b]], response[b, k]])
    rows[b, k, : len(row)] = row

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(params, rows):
    net = nnx.merge(model, params)
    positions = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 2)
    return net.logits(net(rows, positions, jnp.ones(rows.shape, bool))[0])

  logits = np.asarray(run(params, rows), np.float64)
  at = start[:, None, None, None] - 1 + np.arange(R)[:, None]
  return np.take_along_axis(logits, at, 2)


def softmax(x):
  exp = np.exp(x - x.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


@pytest.mark.parametrize("family", ["llama3", "mistral", "gemma2", "gemma3"])
def test_greedy_takes_what_the_full_forward_finds_likeliest(seed, family):
  model, params, _ = tiny.model(seed, family, num_hidden_layers=2, tie_word_embeddings=False)
  prompt, mask = prompts(seed)
  samples = sample(model, params, prompt, mask, seed, temperature=0, max_tokens=12)
  response = np.asarray(samples.response)
  logits = full_logits(model, params, prompt, mask, response)
  chosen = np.take_along_axis(logits, response[..., None], -1)[..., 0]
  first, second = np.moveaxis(np.sort(logits, -1)[..., -2:][..., ::-1], -1, 0)
  tie = first - second < 2e-5  # closer than rounding: either is right
  np.testing.assert_array_equal(response[~tie], logits.argmax(-1)[~tie])
  np.testing.assert_allclose(chosen, first, atol=2e-5)
  assert np.all(samples.mask == 1)
  assert not np.any(samples.finished)
  assert np.ptp(response, axis=1).max() == 0
  assert len(np.unique(response)) > 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_logprobs_are_the_scorers(seed, side):
  model, params, _ = tiny.model(seed, "gemma2", num_hidden_layers=2)
  batch = tiny.batch(seed, side=side)
  options = dict(temperature=1.7, top_k=30, eos=[5, 6, 7, 8, 9, 10, 11, 12], max_tokens=6)
  samples = sample(model, params, batch.prompt, batch.prompt_mask, seed, **options)
  assert 0 < np.mean(samples.mask) < 1
  batch = batch.replace(response=samples.response, response_mask=samples.mask)
  run = lambda params, batch: tokens.causal(model, params, batch)  # noqa: E731
  scored = jax.jit(run, compiler_options=QUICK)(params, batch)
  np.testing.assert_allclose(samples.logprob, scored.token, atol=1e-4)


def test_a_response_ends_with_its_end_of_sequence(seed):
  model, params, _ = tiny.model(seed)
  ends = [3, 4, *range(20, 30)]
  options = dict(eos=ends, pad=1, candidates=8, max_tokens=10)
  samples = jax.tree.map(np.asarray, sample(model, params, *prompts(seed), seed, **options))
  for response, mask, finished in zip(
    *(x.reshape(-1, *x.shape[2:]) for x in (samples.response, samples.mask, samples.finished))
  ):
    length = int(mask.sum())
    assert np.all(mask == (np.arange(10) < length))
    assert np.all(response[length:] == 1)
    assert not set(response[: length - 1]) & set(ends)
    assert finished == (response[length - 1] in ends)
    assert finished or length == 10
  assert samples.finished.any()


def allowed(probability, top_k, top_p):
  """The distribution that remains, one token at a time from the likeliest."""
  kept, total = np.zeros_like(probability), 0.0
  order = np.argsort(-probability)[: top_k or None]
  mass = probability[order].sum()
  for token in order:
    if total >= top_p:
      break
    kept[token] = probability[token]
    total += probability[token] / mass
  return kept / kept.sum()


@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p"),
  [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.5, 9, 1.0), (1.0, 0, 0.7), (0.8, 20, 0.8)],
)
def test_frequencies_are_the_probabilities(seed, temperature, top_k, top_p):
  model, params, _ = tiny.model(seed, num_hidden_layers=1)
  prompt, mask = prompts(seed, B=2)
  count = 4000
  options = dict(temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=1, candidates=count)
  samples = sample(model, params, prompt, mask, seed, **options)
  drawn = np.asarray(samples.response)[..., 0]
  logits = full_logits(model, params, prompt, mask, drawn[:, :1, None])[:, 0, 0]
  for b in range(2):
    wanted = count * allowed(softmax(logits[b] / temperature), top_k, top_p)
    found = np.bincount(drawn[b], minlength=VOCABULARY)
    assert not np.any(found[wanted == 0])
    often = wanted >= 5
    cells = [np.append(x[often], x[~often].sum()) for x in (found, wanted)]
    chi2 = np.sum(np.square(cells[0] - cells[1]) / np.maximum(cells[1], 1))
    freedom = max(often.sum(), 1)
    assert chi2 < freedom + 6 * np.sqrt(2 * freedom) + 6
    log_softmax = np.log(softmax(logits[b]))
    np.testing.assert_allclose(samples.logprob[b, :, 0], log_softmax[drawn[b]], atol=1e-4)


def test_tokens_of_a_response_are_drawn_independently(seed):
  """A model that always says the same distribution: no two positions or candidates agree by key."""
  model, params, _ = tiny.model(seed, num_hidden_layers=1)
  params = jax.tree.map(jnp.zeros_like, params)
  options = dict(candidates=64, max_tokens=16)
  drawn = np.asarray(sample(model, params, *prompts(seed), seed, **options).response)
  for axis in range(3):
    same = np.mean(np.diff(drawn, axis=axis) == 0)
    assert abs(same - 1 / VOCABULARY) < 6 / np.sqrt(drawn.size * VOCABULARY)
  assert len(np.unique(drawn)) == VOCABULARY


def test_a_prompt_gets_the_same_responses_in_any_batch(seed):
  model, params, _ = tiny.model(seed, "mistral", num_hidden_layers=2)
  prompt, mask = prompts(seed, B=5)
  wanted = np.asarray(sample(model, params, prompt, mask, seed).response)
  assert len(np.unique(wanted.reshape(-1, 7), axis=0)) > 10
  order = np.array([3, 0, 4])
  wide = [np.pad(x, ((0, 0), (3, 2)))[order] for x in (prompt, mask)]
  mixed = sample(model, params, *wide, seed, rows=order)
  np.testing.assert_array_equal(mixed.response, wanted[order])
  more = sample(model, params, prompt, mask, seed, candidates=5, max_tokens=9)
  np.testing.assert_array_equal(more.response[:, :3, :7], wanted)
  repeated = [np.repeat(x[:, None], 3, 1) for x in (prompt, mask)]
  np.testing.assert_array_equal(sample(model, params, *repeated, seed).response, wanted)
  assert np.any(sample(model, params, prompt, mask, seed + 1).response != wanted)
  later = sample(model, params, prompt, mask, seed, candidates=2, first=1)
  np.testing.assert_array_equal(later.response, wanted[:, 1:])


def test_one_program_serves_every_temperature_and_every_part_of_a_list(seed):
  model, params, _ = tiny.model(seed, num_hidden_layers=1)
  prompt, mask = prompts(seed)
  before = sampling._sample._cache_size()
  drawn = [
    sampling.sample(model, params, prompt, mask, jax.random.key(0), **FIXED, **how).response
    for how in (dict(), dict(temperature=0.2), dict(temperature=9.0), dict(first=3))
  ]
  assert sampling._sample._cache_size() == before + 1
  assert all(np.any(drawn[0] != each) for each in drawn[1:])


def test_eight_devices_draw_the_same(seed):
  model, params, _ = tiny.model(seed, "mistral", num_hidden_layers=1)
  prompt, mask = prompts(seed, B=8)
  wanted = sample(model, params, prompt, mask, seed, eos=[3, 4, 5, 6])
  mesh = sharding.make_mesh({"data": 4, "fsdp": 2})
  split = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
  with jax.set_mesh(mesh):
    arrays = (jax.device_put(x, split) for x in (prompt, mask))
    found = sample(model, params, *arrays, seed, eos=[3, 4, 5, 6])
  np.testing.assert_array_equal(found.response, wanted.response)
  np.testing.assert_allclose(found.logprob, wanted.logprob, atol=1e-5)
  assert {shard.data.shape[0] for shard in found.response.addressable_shards} == {1}


def test_arguments_out_of_range_say_so(seed):
  model, params, _ = tiny.model(seed)
  prompt, mask = prompts(seed)
  mask[2] = False
  for message, options in {
    "prompt 2 has no token": {},
    "candidates=0": dict(candidates=0),
    "temperature=-1": dict(temperature=-1),
    "top_p=0": dict(top_p=0.0),
    "first=-1": dict(first=-1),
    "temperature=nan": dict(temperature=float("nan")),
  }.items():
    with pytest.raises(ValueError, match=message):
      sampling.sample(model, params, prompt, mask, jax.random.key(0), **FIXED | options)
