"""The decoder: shared prompts, decoding, scan, fused attention, and what it refuses."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FAMILIES, FAST, close, inputs, random_model, total

from larpo_jax.models import config, transformer

every_family = pytest.mark.parametrize("family", FAMILIES)


def settings_of(family):
  return config.read(FAMILIES[family] | {"num_hidden_layers": 2})


def model_of(family, seed, **options):
  """(graphdef, params, config) with large random weights."""
  settings = settings_of(family)
  return *random_model(settings, seed, **options), settings


def together(model, prompt, response):
  """Hidden states at the responses when each follows its own copy of the prompt."""
  copies = [jnp.broadcast_to(x, (2, 3, *x.shape[2:])) for x in prompt]
  hidden, _ = model(*(jnp.concatenate(pair, axis=-1) for pair in zip(copies, response)))
  return hidden[:, :, prompt[0].shape[-1] :]


def shared(model, prompt, response):
  """The same hidden states from a prompt that is computed once."""
  _, prefix = model(*prompt)
  return model(*response, prefix=prefix)[0]


@functools.lru_cache
def compiled(forward, family, **options):
  """(params, prompt, response) -> (gradients, logits); compiled once for all the tests."""
  graphdef, _, _ = model_of(family, 0, **options)

  def loss(params, prompt, response):
    model = nnx.merge(graphdef, params)
    logits = model.logits(forward(model, prompt, response))
    return total(logits), logits

  return jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST)


def continued(seed, side="left"):
  """A prompt for each row, the first padded on that side, and three responses that continue it."""
  tokens, positions, valid = inputs(seed, 1, 8)
  place = jnp.arange(8)
  holes = {"left": place < 3, "right": place >= 5, "empty": place >= 0}
  valid = valid.at[0].set(~holes[side])
  positions = jnp.maximum(jnp.cumsum(valid, -1) - 1, 0)
  length = jnp.sum(valid, axis=-1, keepdims=True)
  response = inputs(seed + 1, 3, 6)
  return (tokens, positions, valid), (response[0], response[1] + length, response[2])


@pytest.mark.parametrize("side", ["left", "right", "empty"])
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_shared_prompt_is_the_same_as_its_copies(family, side, seed):
  _, params, _ = model_of(family, seed)
  batch = continued(seed, side)
  close(compiled(shared, family)(params, *batch), compiled(together, family)(params, *batch))


@pytest.mark.parametrize(
  "options",
  [{"scan": False}, {"remat": "none"}, {"remat": "full"}, {"attention": "fused"}],
  ids=str,
)
def test_an_option_of_speed_changes_neither_values_nor_gradients(options, seed):
  _, params, _ = model_of("gemma3", seed)
  batch = continued(seed)
  ours = compiled(shared, "gemma3", **options)(params, *batch)
  close(ours, compiled(shared, "gemma3")(params, *batch))


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_every_matrix_of_a_new_model_has_a_gradient(family, seed):
  settings = settings_of(family)
  create = jax.jit(lambda key: transformer.create(settings, key)[1], compiler_options=FAST)
  params = create(jax.random.key(seed))
  gradients, _ = compiled(shared, family)(params, *continued(seed))
  for path, gradient in nnx.to_flat_state(gradients):
    assert float(jnp.max(jnp.abs(gradient.get_value()))) > 1e-7, path
  spread = {path[-1]: float(np.std(p.get_value())) for path, p in nnx.to_flat_state(params)}
  np.testing.assert_allclose(spread["gate"], 0.02, rtol=0.1)
  np.testing.assert_allclose(spread["down"], 0.02 / (2 * settings.num_layers) ** 0.5, rtol=0.1)


def test_three_lists_cannot_share_two_prompts(seed):
  graphdef, params, _ = model_of("mistral", seed)
  prompt, response = continued(seed)
  two = tuple(jnp.broadcast_to(x, (2, 2, *x.shape[2:])) for x in prompt)
  with pytest.raises(ValueError, match="3 lists of tokens cannot share 2 prefixes"):
    jax.eval_shape(lambda: shared(nnx.merge(graphdef, params), two, response))


def test_fused_attention_refuses_soft_caps():
  with pytest.raises(ValueError, match="cannot soft-cap scores as gemma2 does"):
    model_of("gemma2", 0, attention="fused")


@pytest.mark.parametrize(("family", "scan"), [("gemma2", False), ("gemma3", True)])
def test_decoding_token_by_token_is_the_full_forward(family, scan, seed):
  graphdef, params, settings = model_of(family, seed, scan=scan)
  prompt, response = continued(seed)
  _, wanted = compiled(shared, family)(params, prompt, response)

  @functools.partial(jax.jit, compiler_options=FAST)
  def decode(params):
    model = nnx.merge(graphdef, params)
    _, prefix = model(*prompt)
    past = transformer.empty_past(settings, 2, 3, 8)

    def step(past, token):
      hidden, past = model(*token, prefix=prefix, past=past)
      return past, model.logits(hidden[:, :, 0])

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0)[..., None], response)
    return jax.lax.scan(step, past, tokens)

  past, logits = decode(params)
  close(jnp.moveaxis(logits, 0, 2), wanted)
  assert int(past.index) == 6
  np.testing.assert_array_equal(past.valid, np.broadcast_to(np.arange(8) < 6, (2, 3, 8)))


def test_decoding_takes_one_token_at_a_time():
  graphdef, params, settings = model_of("llama2", 0)
  past = transformer.empty_past(settings, 2, 3, 8)
  with pytest.raises(ValueError, match="one token at a time, not 2"):
    nnx.merge(graphdef, params)(*inputs(0, 3, 2), past=past)


def test_padding_and_later_tokens_do_not_reach_a_hidden_state(seed):
  graphdef, params, _ = model_of("gemma3", seed)
  tokens, positions, valid = inputs(seed, 2, 9)
  valid = valid.at[:, :, :2].set(False)
  run = jax.jit(lambda tokens: nnx.merge(graphdef, params)(tokens, positions, valid)[0])
  other = tokens.at[:, :, :2].set(5).at[:, :, 6:].set(5)
  np.testing.assert_array_equal(run(tokens)[:, :, 2:6], run(other)[:, :, 2:6])
  assert jnp.all(jnp.isfinite(run(tokens)))


def test_half_precision_keeps_float32_weights_and_logits(seed):
  graphdef, params, settings = model_of("gemma3", seed, dtype=jnp.bfloat16)
  batch = continued(seed)
  _, exact = compiled(shared, "gemma3")(params, *batch)
  model = nnx.merge(graphdef, params)
  logits = jax.jit(lambda: model.logits(shared(model, *batch)), compiler_options=FAST)()
  close(logits, exact, atol=0.04)
  assert logits.dtype == jnp.float32
  past = transformer.empty_past(settings, 2, 1, 4, jnp.bfloat16)
  token = inputs(seed, 1, 1)
  (hidden, keys), (_, past) = jax.eval_shape(lambda: (model(*token), model(*token, past=past)))
  assert {hidden.dtype, keys.key.dtype, past.value.dtype} == {jnp.dtype(jnp.bfloat16)}


@every_family
def test_matmul_params_counts_what_multiplies_a_token(family):
  _, params, settings = model_of(family, 0)
  flat = {path[-1]: p for path, p in nnx.to_flat_state(params)}
  matrices = sum(flat[name].size for name in ("q", "k", "v", "o", "gate", "up", "down"))
  wanted = matrices + settings.vocab_size * settings.hidden_size
  assert transformer.matmul_params(settings) == wanted
  assert all(len(p.logical_axes) == p.ndim for p in flat.values())


@pytest.mark.parametrize("options", [{"attention": "flash"}, {"remat": "some"}], ids=str)
def test_an_unknown_option_is_refused(options):
  with pytest.raises(ValueError, match=next(iter(options.values()))):
    model_of("llama2", 0, **options)
