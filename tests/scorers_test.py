"""Log-probs against PyTorch and the plain forward, however laid out, chunked and sharded."""

import functools
import math
import re

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import tiny
from tiny_models import FAMILIES, torch_model

from larpo_jax import sharding
from larpo_jax.models import huggingface
from larpo_jax.scorers import _head, tokens

N, D, V = 22, 16, 37
# A tenth of the time to compile: nothing here runs long enough to need more.
QUICK = {"xla_backend_optimization_level": 0}


def head_inputs(seed):
  """Hidden states, unembedding, targets, mask and cotangent, [2 groups, N / 2 rows]."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  target = rng.integers(0, V, (2, N // 2)).astype(np.int32)
  return draw(2, N // 2, D), draw(D, V), target, rng.random((2, N // 2)) < 0.7, draw(2, N // 2)


def head_and_gradients(hidden, matrix, target, mask, cotangent, **options):
  def total(hidden, matrix):
    token, entropy, _ = _head.logprobs(hidden, matrix, target, mask, *options.values())
    return jnp.sum(jnp.asarray(cotangent) * token) + jnp.sum(entropy), (token, entropy)

  step = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), compiler_options=QUICK)
  (_, scored), gradients = step(hidden, matrix)
  return *scored, *gradients


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("chunk", [1, 7, N // 2, 100])
def test_head_is_log_softmax_in_float64(torch_peer, seed, chunk, softcap):
  hidden, matrix, target, mask, cotangent = head_inputs(seed)
  h, w = (
    torch_peer.tensor(x, dtype=torch_peer.float64, requires_grad=True) for x in (hidden, matrix)
  )
  logits = h @ w
  logits = logits if softcap is None else softcap * torch_peer.tanh(logits / softcap)
  full = torch_peer.log_softmax(logits, -1)
  index = torch_peer.tensor(target, dtype=torch_peer.int64)[..., None]
  token = torch_peer.gather(full, -1, index)[..., 0] * torch_peer.tensor(mask)
  entropy = -(full.exp() * full).sum(-1) * torch_peer.tensor(mask)
  (token * torch_peer.tensor(cotangent)).sum().backward()
  wanted = [x.detach().numpy() for x in (token, entropy, h.grad, w.grad)]

  options = dict(softcap=softcap, chunk=chunk)
  found = head_and_gradients(hidden, matrix, target, mask, cotangent, **options)
  for one, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)


def test_head_never_reads_what_is_masked(seed):
  hidden, matrix, target, mask, cotangent = head_inputs(seed)
  options = dict(softcap=None, chunk=4)
  wanted = head_and_gradients(hidden, matrix, target, mask, cotangent, **options)
  hidden[~mask], target[~mask] = np.nan, -100
  found = head_and_gradients(hidden, matrix, target, mask, cotangent, **options)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert not np.any(found[2][~mask])
  nothing = head_and_gradients(hidden, matrix, target, np.zeros_like(mask), cotangent, **options)
  assert not any(np.any(x) for x in nothing)


def test_head_in_bfloat16_is_float32_from_the_logits_on(seed):
  hidden, matrix, target, mask, cotangent = head_inputs(seed)
  options = dict(softcap=None, chunk=8)
  rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in (hidden, matrix)]
  wanted = head_and_gradients(*rounded, target, mask, cotangent, **options)
  half = jnp.asarray(hidden, jnp.bfloat16)
  found = head_and_gradients(half, matrix, target, mask, cotangent, **options)
  assert [x.dtype for x in found] == [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float32]
  np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)
  for one, other in zip(found[2:], wanted[2:], strict=True):
    np.testing.assert_allclose(np.asarray(one, np.float32), other, atol=0.02 * abs(other).max())


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=QUICK)
def values(model, params, batch, chunk=1024):
  return tokens.causal(model, params, batch, chunk=chunk)


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=QUICK)
def values_and_gradient(model, params, batch, chunk=1024):
  """Log-probs, and the gradient of a sum of them with weights that say where each one stands."""

  def total(params):
    scored = tokens.causal(model, params, batch, chunk=chunk)
    return jnp.sum(scored.token * weights(scored.token.shape)), scored

  (_, scored), gradient = jax.value_and_grad(total, has_aux=True)(params)
  return scored, gradient


def weights(shape):
  return jnp.sin(1 + sum(jax.lax.broadcasted_iota(jnp.float32, shape, i) * 7**i for i in range(3)))


def plain(model, params, batch):
  """The same from each prompt and response as one row of a full forward and a full softmax."""
  B, K, R = batch.response.shape
  rows = np.zeros((B, K, batch.prompt.shape[-1] + R), np.int32)
  start = np.zeros((B, K, 1), int)
  for b, k in np.ndindex(B, K):
    j = k % batch.prompt.shape[1]
    prompt = batch.prompt[b, j][batch.prompt_mask[b, j]]
    start[b, k] = len(prompt)
    rows[b, k, : len(prompt) + R] = np.concatenate([prompt, batch.response[b, k]])
  at = start - 1 + np.arange(R).reshape(1, 1, R)
  return full_softmax(model, params, rows, at, batch.response_mask)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def full_softmax(model, params, rows, at, mask):
  """Log-probs, entropies and gradient at those positions of rows [B, K, T]."""

  def total(params):
    net = nnx.merge(model, params)
    positions = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 2)
    hidden, _ = net(rows, positions, jnp.ones(rows.shape, bool))
    full = jax.nn.log_softmax(net.logits(hidden))  # [B, K, T, V]
    entropy = -jnp.sum(jnp.exp(full) * full, -1)
    token = jnp.take_along_axis(full[:, :, :-1], rows[:, :, 1:, None], -1)[..., 0]
    token, entropy = (jnp.take_along_axis(x, at, -1) * mask for x in (token, entropy))
    return jnp.sum(token * weights(token.shape)), (token, entropy)

  (_, scored), gradient = jax.value_and_grad(total, has_aux=True)(params)
  return *scored, gradient


def assert_same(found, wanted, tolerance=1e-5):
  """Values within 1e-5, and gradients within 1e-5 of the largest of each parameter."""
  scored, gradient = found
  token, entropy, wanted_gradient = wanted
  np.testing.assert_allclose(scored.token, token, atol=tolerance, rtol=tolerance)
  np.testing.assert_allclose(scored.entropy, entropy, atol=tolerance, rtol=tolerance)
  for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
    np.testing.assert_allclose(one, other, atol=tolerance * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize(("family", "J"), [("llama2", 3), ("mistral", 1), ("gemma2", 3)])
def test_continuing_the_prompt_is_one_long_row(seed, family, J):
  model, params, _ = tiny.model(seed, family, num_hidden_layers=2)
  batch = tiny.batch(seed, J=J)
  wanted = plain(model, params, batch)
  assert np.abs(wanted[0]).max() > 1
  assert_same(values_and_gradient(model, params, batch), wanted)


def right(batch):
  """The prompt padded on the other side."""
  order = np.argsort(~batch.prompt_mask, axis=-1, kind="stable")
  move = lambda x: np.take_along_axis(x, order, -1)  # noqa: E731
  return batch.replace(prompt=move(batch.prompt), prompt_mask=move(batch.prompt_mask))


def widened(batch, prompt=((0, 0), (0, 0), (3, 2)), response=((0, 0), (0, 0), (0, 4))):
  junk = lambda x, width: np.pad(x, width, constant_values=5)  # noqa: E731
  return batch.replace(
    prompt=junk(batch.prompt, prompt),
    prompt_mask=np.pad(batch.prompt_mask, prompt),
    response=junk(batch.response, response),
    response_mask=np.pad(batch.response_mask, response),
  )


def repeated(batch):
  each = lambda x: np.repeat(x, batch.response.shape[1], axis=1)  # noqa: E731
  return batch.replace(prompt=each(batch.prompt), prompt_mask=each(batch.prompt_mask))


same = lambda batch: batch  # noqa: E731
LAYOUTS = {
  "right": (right, {}, 1024),
  "wider": (widened, {}, 1024),
  "right, wider, repeated": (lambda batch: repeated(widened(right(batch))), {}, 1024),
  "chunks": (same, {}, 5),
  "unrolled": (same, dict(scan=False), 1024),
  "remat none": (same, dict(remat="none"), 1024),
  "remat full": (same, dict(remat="full"), 1024),
  "fused, right, chunks": (right, dict(attention="fused"), 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_and_method_change_nothing(seed, layout):
  change, options, chunk = LAYOUTS[layout]
  batch = tiny.batch(seed, shortest=0)
  model, params, _ = tiny.model(seed, "mistral", num_hidden_layers=2)
  scored, gradient = values_and_gradient(model, params, batch)
  model, *_ = tiny.model(seed, "mistral", num_hidden_layers=2, options=options)
  found, found_gradient = values_and_gradient(model, params, change(batch), chunk)
  R = batch.response.shape[-1]
  assert not np.any(found.token[..., R:])
  cut = found.replace(token=found.token[..., :R], entropy=found.entropy[..., :R])
  assert_same((cut, found_gradient), (scored.token, scored.entropy, gradient))


def test_pytorch_says_the_same(torch_peer, seed, tmp_path):
  peer = torch_model(torch_peer, FAMILIES["gemma2"], seed)
  peer.save_pretrained(tmp_path)
  model, params, _ = huggingface.load(tmp_path)
  batch = tiny.batch(seed)
  scored = values(model, params, batch)
  for b, k in np.ndindex(*batch.response.shape[:2]):
    prompt = batch.prompt[b, 0][batch.prompt_mask[b, 0]]
    row = torch_peer.tensor(np.concatenate([prompt, batch.response[b, k]])[None].astype(np.int64))
    with torch_peer.no_grad():
      full = torch_peer.log_softmax(peer(row).logits.double(), -1)[0]
    picked = full[:-1].gather(-1, row[0, 1:, None])[len(prompt) - 1 :, 0].numpy()
    np.testing.assert_allclose(scored.token[b, k], picked * batch.response_mask[b, k], atol=2e-5)


def test_empty_prompts_and_responses_are_finite(seed):
  model, params, _ = tiny.model(seed)
  batch = tiny.batch(seed, B=2)
  batch.prompt_mask[0] = False
  batch.response_mask[0, 0], batch.response_mask[0, 1], batch.response_mask[1, 0] = 1, 0, 0
  scored, gradient = values_and_gradient(model, params, batch)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((scored, gradient)))
  assert scored.token[0, 0, 0] == scored.mask[0, 0, 0] == 0
  rest = batch.replace(  # the first token of an unprompted response is all the prompt the rest has
    prompt=batch.response[:, :1, :1],
    prompt_mask=np.ones((2, 1, 1), bool),
    response=batch.response[:, :, 1:],
    response_mask=batch.response_mask[:, :, 1:],
  )
  alone = values(model, params, rest)
  np.testing.assert_allclose(scored.token[0, 0, 1:], alone.token[0, 0], atol=1e-5)
  assert scored.length.tolist()[0][:2] == [5, 0]


def compiled(V, R, chunk=16, params_only=False, **shape):
  model, params, _ = tiny.model(0, vocab_size=V, num_hidden_layers=1, **shape)
  batch = tiny.batch(0, B=8, K=2, R=R, V=V)
  step = lambda p, batch: jnp.sum(tokens.causal(model, p, batch, chunk=chunk).token)  # noqa: E731
  return jax.jit(jax.value_and_grad(step)).lower(params, batch).compile(QUICK), params


@pytest.mark.parametrize("tied", [True, False])
def test_no_array_of_tokens_by_vocabulary_exists(tied):
  V, R, chunk = 16384, 24, 16
  step, params = compiled(V, R, chunk, tie_word_embeddings=tied)
  shapes = re.findall(r"\b(?:f|bf|s|u)\d+\[([\d,]+)\]", step.as_text())
  largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
  weights = max(leaf.size for leaf in jax.tree.leaves(params))
  assert largest <= max(chunk * V, weights) < 8 * 2 * R * V // 2
  if tied:
    return
  # Three times the tokens add none of their logits, 4 V bytes each, to what the step holds.
  more, _ = compiled(V, 3 * R, chunk, tie_word_embeddings=tied)
  held = [c.memory_analysis().temp_size_in_bytes for c in (step, more)]
  assert held[1] - held[0] < 0.2 * (8 * 2 * 2 * R) * 4 * V


RULES = {"embed": "fsdp", "vocab": "tensor", "mlp": "tensor", "heads": "tensor"}


@pytest.mark.parametrize(
  ("shape", "tied"),
  [({"data": 8}, False), ({"fsdp": 4, "tensor": 2}, False), ({"fsdp": 4, "tensor": 2}, True)],
)
def test_eight_devices_agree_with_one_and_never_send_logits(seed, shape, tied):
  options = dict(vocab_size=512, num_hidden_layers=1, tie_word_embeddings=tied)
  model, params, _ = tiny.model(seed, "llama2", **options)
  batch = tiny.batch(seed, B=8)
  wanted, gradient = values_and_gradient(model, params, batch, 5)
  mesh = sharding.make_mesh(shape)
  split = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
  params = jax.device_put(params, sharding.named_shardings(params, mesh, RULES))
  with jax.set_mesh(mesh):
    batch = jax.device_put(batch, split)
    found = values_and_gradient(model, params, batch, 5)
    text = values_and_gradient.lower(model, params, batch, 5).compile().as_text()
  assert_same(found, (wanted.token, wanted.entropy, gradient))
  sent = r"= (.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\("
  for shapes in re.findall(sent, text):
    for dimensions in re.findall(r"\[([\d,]+)\]", shapes):
      sizes = set(map(int, dimensions.split(",")))
      with_vocabulary = sizes & {512, 256}
      assert not with_vocabulary or sizes - with_vocabulary <= {32, 8}, shapes  # the matrix itself


def test_bfloat16_gives_float32_near_float32(seed):
  batch = tiny.batch(seed)
  model, params, _ = tiny.model(seed)
  half, *_ = tiny.model(seed, options=dict(dtype=jnp.bfloat16))
  found = values(half, params, batch)
  gradient = jax.eval_shape(jax.grad(lambda p: tokens.causal(half, p, batch).token.sum()), params)
  assert {x.dtype for x in jax.tree.leaves((found, gradient))} == {jnp.dtype(jnp.float32)}
  np.testing.assert_allclose(found.token, values(model, params, batch).token, atol=0.15)
