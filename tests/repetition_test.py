"""Controls of repetition: transformers' own processors, token by token."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_models import VOCABULARY

from larpo_jax import repetition, sampling

QUICK = {"xla_backend_optimization_level": 0}
SMALL = 7  # so few tokens that they come again


def rows(seed, side, B=6, K=3, P=6, R=8):
  """Prompts of 1 to P tokens, padded with a token that is a real one elsewhere; and responses."""
  rng = np.random.default_rng(seed)
  length = rng.integers(1, P + 1, B)
  mask = np.arange(P) < length[:, None]
  mask = (mask[:, ::-1] if side == "left" else mask)[:, None]
  prompt = np.where(mask, rng.integers(0, SMALL, (B, 1, P)), 0)
  return prompt, mask, rng.integers(0, SMALL, (B, K, R))


def real(prompt, mask, response, step, b, k):
  """The ids [1, n] of one response so far, as transformers gets them: no padding."""
  return np.concatenate([prompt[b, 0][mask[b, 0]], response[b, k, :step]])[None]


def wanted(processor, logits, prompt, mask, response, step):
  torch = pytest.importorskip("torch")
  found = np.empty_like(logits)
  for b, k in np.ndindex(logits.shape[:2]):
    ids = torch.tensor(real(prompt, mask, response, step, b, k))
    found[b, k] = processor(ids, torch.tensor(logits[b, k][None]))[0].numpy()
  return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_penalty_is_transformers(seed, side):
  processors = pytest.importorskip("transformers.generation.logits_process")
  data = rows(seed, side)
  logits = np.random.default_rng(seed).normal(size=(6, 3, 2 * SMALL)).astype(np.float32)
  for step in (0, 3, 8):
    for penalty in (1.3, 0.8):
      past = repetition.history(*data, jnp.int32(step))
      found = np.asarray(repetition.penalised(jnp.asarray(logits), past, penalty))
      processor = processors.RepetitionPenaltyLogitsProcessor(penalty)
      np.testing.assert_allclose(found, wanted(processor, logits, *data, step), rtol=1e-6)
      assert np.any(found != logits)
      assert np.any(found == logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_no_repeats_are_transformers(seed, side, size):
  processors = pytest.importorskip("transformers.generation.logits_process")
  data = rows(seed, side, B=20)
  logits = np.random.default_rng(seed).normal(size=(20, 3, 2 * SMALL)).astype(np.float32)
  banned = 0
  for step in range(9):
    past = repetition.history(*data, jnp.int32(step))
    found = np.asarray(repetition.without_repeats(jnp.asarray(logits), past, size))
    processor = processors.NoRepeatNGramLogitsProcessor(size)
    np.testing.assert_array_equal(found, wanted(processor, logits, *data, step))
    banned += np.sum(found != logits)
  assert (banned > 0) == (size < 20)


def test_a_greedy_response_is_transformers(seed):
  torch = pytest.importorskip("torch")
  processors = pytest.importorskip("transformers.generation.logits_process")
  chain = processors.LogitsProcessorList(
    [processors.RepetitionPenaltyLogitsProcessor(1.3), processors.NoRepeatNGramLogitsProcessor(2)]
  )
  model, params, _ = tiny.model(seed, num_hidden_layers=1)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def full(ids):
    net = nnx.merge(model, params)
    positions = jax.lax.broadcasted_iota(jnp.int32, ids.shape, 2)
    return net.logits(net(ids, positions, positions >= 0)[0])[0, 0]

  prompt = np.random.default_rng(seed).integers(0, VOCABULARY, (3, 6))
  mask = np.ones((3, 6), bool)
  mask[1, :4] = mask[2, 3:] = False
  how = dict(candidates=1, max_tokens=12, eos=VOCABULARY, pad=0, temperature=0.0)
  draw = functools.partial(sampling.sample, model, params, prompt, mask, jax.random.key(0), **how)
  found = np.asarray(draw(repetition_penalty=1.3, no_repeat_ngram_size=2).response)[:, 0]
  for row in range(3):
    ids = [*prompt[row][mask[row]].tolist(), *found[row].tolist()]
    logits = np.asarray(full(np.asarray([[ids + [0] * (18 - len(ids))]])))
    for place in range(len(ids) - 12, len(ids)):
      scores = chain(torch.tensor([ids[:place]]), torch.tensor(logits[place - 1][None]))[0].numpy()
      assert scores[ids[place]] > scores.max() - 1e-4  # closer than rounding: either is right
  np.testing.assert_array_equal(draw(repetition_penalty=1.0).response, draw().response)


@pytest.mark.parametrize("how", [dict(repetition_penalty=0.0), dict(no_repeat_ngram_size=-1)])
def test_a_number_out_of_range_is_named(how):
  model, params, _ = tiny.model(0, num_hidden_layers=1)
  prompt = np.ones((1, 2), np.int32)
  fixed = dict(candidates=1, max_tokens=2, eos=0, pad=0)
  with pytest.raises(ValueError, match=next(iter(how))):
    sampling.sample(model, params, prompt, prompt > 0, jax.random.key(0), **fixed, **how)
