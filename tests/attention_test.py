"""Attention to a shared prefix and to one's own block: one softmax, whichever kernel it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import FAST, close, total

from larpo_jax.models import attention


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
  """Values and gradients, with a prefix for all lists; on a GPU half precision runs in cuDNN."""
  tensors, masks = operands(seed, jnp.float32)

  def loss(tensors):
    output = one_softmax(tensors, masks)
    return total(output), output

  wanted = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST)(tensors)
  close(attention_run(tensors, masks, "xla"), wanted)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tensors)
  for implementation in ("xla", "fused"):
    close(attention_run(half, masks, implementation), wanted, atol=3e-2)


def test_a_prefix_for_each_list_is_the_shared_one_copied(seed):
  (query, own, prefix), (sees, seen) = operands(seed, jnp.float32)
  attend = functools.partial(attention.attend, query, attention.Block(*own, sees), scale=0.3)
  copies = [jnp.broadcast_to(x, (2, 3, *x.shape[2:])) for x in (*prefix, seen)]
  close(attend(attention.Block(*copies)), attend(attention.Block(*prefix, seen)))


def test_the_cudnn_path_lowers_to_one_kernel_a_block_forward_and_backward(monkeypatch):
  from jax._src.cudnn import fused_attention_stablehlo

  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
  (query, own, prefix), masks = operands(0, jnp.bfloat16)

  def loss(query, blocks):
    return jnp.sum(attention._attend(query, blocks, (masks[1], masks[0]), 0.3, None, True))

  traced = jax.jit(jax.grad(loss)).trace(query, (prefix, own))
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward") == 2
  assert text.count("@__cudnn$fmha") == 4
