"""The decoder: shared prompts, decoding, scan, fused attention, and what it refuses."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import FAMILIES, FAST, SIZES, inputs, random_model

from larpo_jax.models import attention, config, rope, transformer

every_family = pytest.mark.parametrize("family", FAMILIES)


def settings_of(family):
  return config.read(FAMILIES[family] | {"num_hidden_layers": 2})


def model_of(family, seed, **options):
  """(graphdef, params, config) with large random weights."""
  settings = settings_of(family)
  return *random_model(settings, seed, **options), settings


def total(logits):
  """A loss that every logit has its own weight in."""
  return jnp.sum(logits * np.random.default_rng(0).normal(size=logits.shape).astype(np.float32))


def close(ours, wanted, atol=1e-5):
  """The same values, relative to the largest of each array."""
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
    scale = np.max(np.abs(b)) + 1e-30
    np.testing.assert_allclose(a / scale, b / scale, atol=atol)


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
  [{"scan": False}, {"remat": "dots"}, {"remat": "full"}, {"attention": "fused"}],
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
  _, params = transformer.create(settings, jax.random.key(seed))
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


def test_the_prefix_is_never_copied(seed):
  query = jnp.ones((2, 3, 5, 4, 8))
  own = attention.Block(
    jnp.ones((2, 3, 5, 2, 8)), jnp.ones((2, 3, 5, 2, 8)), jnp.ones((1, 1, 5, 5), bool)
  )
  prefix = attention.Block(
    jnp.ones((2, 1, 11, 2, 8)), jnp.ones((2, 1, 11, 2, 8)), jnp.ones((2, 1, 1, 11), bool)
  )

  def run(query, own, prefix):
    return jnp.sum(attention.attend(query, own, prefix, scale=1.0))

  jaxpr = jax.make_jaxpr(jax.grad(run))(query, own, prefix)
  assert "2,3,11,2,8" not in str(jaxpr)
  assert "2,1,11,2,8" in str(jaxpr)


def test_fused_attention_refuses_soft_caps():
  with pytest.raises(ValueError, match="cannot soft-cap scores as gemma2 does"):
    model_of("gemma2", 0, attention="fused")


def operands(seed, dtype):
  """Queries of 3 lists, and two blocks with random masks; a query always sees itself."""
  random = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
  query, own = draw(2, 3, 6, 4, 16), (draw(2, 3, 6, 2, 16), draw(2, 3, 6, 2, 16))
  prefix = (draw(2, 1, 8, 2, 16), draw(2, 1, 8, 2, 16))
  sees = np.tril(random.random((2, 3, 6, 6)) < 0.8) | np.eye(6, dtype=bool)
  seen = random.random((2, 1, 1, 8)) < 0.6
  return (query, own, prefix), (jnp.asarray(sees), jnp.asarray(seen))


def attention_run(tensors, masks, implementation):
  def loss(tensors):
    query, own, prefix = tensors
    blocks = attention.Block(*own, masks[0]), attention.Block(*prefix, masks[1])
    output = attention.attend(query, *blocks, scale=0.3, implementation=implementation)
    return total(output.astype(jnp.float32)), output

  run = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST)
  return jax.tree.map(lambda x: np.asarray(x, np.float32), run(tensors))


def one_softmax(tensors, masks):
  """Attention written out: the prefix copied, the heads repeated, one softmax over all keys."""
  query, (key, value), (prefix_key, prefix_value) = tensors
  copy = lambda x: jnp.broadcast_to(x, (2, 3, *x.shape[2:]))  # noqa: E731
  join = lambda a, b: jnp.repeat(jnp.concatenate([a, copy(b)], 2), 2, axis=3)  # noqa: E731
  scores = jnp.einsum("bjthd,bjshd->bjhts", query, join(key, prefix_key)) * 0.3
  mask = jnp.concatenate([masks[0], jnp.broadcast_to(masks[1], (2, 3, 6, 8))], axis=-1)
  weights = jax.nn.softmax(jnp.where(mask[:, :, None], scores, -jnp.inf))
  return jnp.einsum("bjhts,bjshd->bjthd", weights, join(value, prefix_value))


def test_two_blocks_are_one_softmax(seed):
  """Values and gradients, with a prefix for all lists; in half precision a GPU runs cuDNN."""
  tensors, masks = operands(seed, jnp.float32)

  def loss(tensors):
    output = one_softmax(tensors, masks)
    return total(output), output

  wanted = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST)(tensors)
  close(attention_run(tensors, masks, "xla"), wanted)
  close(attention_run(tensors, masks, "fused"), wanted)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tensors)
  close(attention_run(half, masks, "fused"), wanted, atol=3e-2)


@pytest.mark.parametrize("implementation", ["xla", "fused"])
def test_a_prefix_for_each_list_is_the_shared_one_copied(implementation, seed):
  (query, own, prefix), (sees, seen) = operands(seed, jnp.float32)
  attend = functools.partial(
    attention.attend, query, attention.Block(*own, sees), scale=0.3, implementation=implementation
  )
  copies = [jnp.broadcast_to(x, (2, 3, *x.shape[2:])) for x in (*prefix, seen)]
  close(attend(attention.Block(*copies)), attend(attention.Block(*prefix, seen)))


def test_the_cudnn_path_lowers_to_one_kernel_a_block_forward_and_backward(monkeypatch):
  from jax._src.cudnn import fused_attention_stablehlo

  from larpo_jax.models import fused

  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
  (query, own, prefix), masks = operands(0, jnp.bfloat16)

  def loss(query, blocks):
    return jnp.sum(fused._attend(query, blocks, (masks[1], masks[0]), 0.3, "cudnn"))

  traced = jax.jit(jax.grad(loss)).trace(query, (prefix, own))
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward") == 2
  assert text.count("@__cudnn$fmha") == 4


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


def test_old_and_new_rope_keys_say_the_same():
  llama3 = FAMILIES["llama3"]["rope_scaling"]
  old = {"rope_theta": 5e5, "rope_scaling": llama3}
  new = {"rope_parameters": {"rope_theta": 5e5, **llama3}}
  assert rope.read(old, "llama") == rope.read(new, "llama") == rope.read(old | new, "llama")
  gemma = {"rope_theta": 9e5, "rope_local_base_freq": 9e3}
  nested = {
    "full_attention": {"rope_type": "default", "rope_theta": 9e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 9e3},
  }
  assert rope.read(gemma, "gemma3_text") == rope.read({"rope_parameters": nested}, "gemma3_text")
  for family in FAMILIES:
    settings = config.read(FAMILIES[family])
    assert rope.read(rope.write(settings.ropes), settings.model_type) == settings.ropes


def test_a_config_says_the_same_when_it_is_read_again():
  for settings in FAMILIES.values():
    once = config.read(settings)
    assert once == config.read(dict(reversed(settings.items())))
    assert hash(once) == hash(config.read(settings))


@pytest.mark.parametrize(
  ("family", "changes", "message"),
  [
    ("llama2", {"residual_multiplier": 0.5}, "residual_multiplier=0.5"),
    ("llama2", {"sliding_window": 4}, "sliding_window=4"),
    ("llama2", {"hidden_act": "relu"}, "hidden_act='relu'"),
    ("gemma2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("llama2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
    ("llama2", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
    ("llama2", {"rope_scaling": {"rope_type": "linear"}}, "missing or unread: factor"),
    ("llama2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama2", {"num_key_value_heads": 3}, "not a multiple of num_key_value_heads=3"),
    ("llama2", {"hidden_size": "32"}, "hidden_size in config.json must be a positive integer"),
    ("llama2", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("mistral", {"attention_bias": True}, "attention_bias=True"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("qwen2_sliding", {"use_mrope": True}, "use_mrope=True"),
    ("qwen2_sliding", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "the window is None"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias=True"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
  ],
)
def test_what_is_not_computed_is_refused_by_name(family, changes, message):
  with pytest.raises(ValueError, match=message):
    config.read(FAMILIES[family] | changes)


def test_keys_that_change_nothing_are_accepted():
  harmless = {"torch_dtype": "bfloat16", "transformers_version": "4.40.0", "use_cache": True}
  assert config.read(SIZES | {"model_type": "llama"} | harmless | {"unknown": None})
  functools.reduce(lambda _, family: config.read(FAMILIES[family] | harmless), FAMILIES, None)


@pytest.mark.parametrize("options", [{"attention": "flash"}, {"remat": "some"}], ids=str)
def test_an_unknown_option_is_refused(options):
  with pytest.raises(ValueError, match=next(iter(options.values()))):
    model_of("llama2", 0, **options)
