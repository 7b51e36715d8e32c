"""A reward model's scores of lists are those of its classifier on whole sequences; it learns."""

import jax
import numpy as np
import optax
import pytest
import tiny
from tiny_models import FAMILIES
import toy

from larpo_jax import sharding, train_step
from larpo_jax.losses import reward_models
from larpo_jax.models import config as config_lib
from larpo_jax.models import heads
from larpo_jax.scorers import rewards

QUICK = {"xla_backend_optimization_level": 0}


def classifier(seed, family="llama2"):
  config = config_lib.read(FAMILIES[family] | {"num_hidden_layers": 2})
  return heads.create(config, jax.random.key(seed))


@pytest.mark.parametrize("family", ["llama2", "qwen3"])
def test_scores_are_the_classifiers_on_prompt_and_response(family, seed):
  model, params = classifier(seed, family)
  batch = tiny.batch(seed, B=3)
  score = jax.jit(rewards.scalar, static_argnums=0, compiler_options=QUICK)
  found = score(model, params, batch)
  np.testing.assert_array_equal(found.length, (batch.response_mask.sum(-1) > 0))
  net = heads.nnx.merge(model, params)
  for b, k in np.ndindex(batch.valid.shape):
    if batch.response_mask[b, k].any():
      prompt = batch.prompt[b, 0][batch.prompt_mask[b, 0]]
      end = np.flatnonzero(batch.response_mask[b, k])[-1] + 1  # what does not count is read too
      response = batch.response[b, k][:end]
      tokens = np.concatenate([prompt, response])[None, None]
      positions = np.arange(tokens.shape[-1])[None, None]
      wanted = net(tokens, positions, np.ones(tokens.shape, bool))[0, 0, 0]
      np.testing.assert_allclose(found.sequence[b, k], wanted, 1e-4, 1e-5)


def test_bradley_terry_raises_the_chosen(seed):
  model, params = classifier(seed)
  batch, mesh = tiny.batch(seed, B=8), toy.mesh_of()
  optimizer = optax.adam(1e-2)
  step = train_step.make_train_step(
    model=model, scorer=rewards.scalar, loss=reward_models.bradley_terry, optimizer=optimizer,
    mesh=mesh,
  )  # fmt: skip
  state, losses, ordered = train_step.init(params, optimizer), [], []
  placed = sharding.put(batch, mesh)
  for _ in range(12):
    state, metrics = step(state, None, placed)
    losses.append(float(metrics["loss"]))
    ordered.append(float(metrics["rewards/accuracies"]))
  assert losses[-1] < 0.5 * losses[0]
  assert ordered[-1] >= ordered[0]
