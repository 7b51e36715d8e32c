"""Log-probs from hidden states: the logits of all tokens never exist at once.

Rows that count are packed to the front, and a loop of as many chunks as they fill computes the
logits of one chunk at a time, forward and again backward; so both time and memory follow the
tokens that count, and memory does not grow with their number.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from larpo_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def logprobs(
  hidden: Array,
  unembedding: Array,
  target: Array,
  mask: Array,
  vocab_axis: int = 1,
  softcap: float | None = None,
  chunk: int = 1024,
  collision: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Log p(target | hidden), and of that distribution p the entropy and log sum p^2; 0 where masked.

  Args:
    hidden: [S, N, D]: N rows in each of S groups. Devices that hold different groups do not talk
      to each other but to sum the gradient of the unembedding.
    unembedding: [D, V], or [V, D] with vocab_axis=0 (an embedding tied to it, read as it lies).
    target: int [S, N].
    mask: [S, N], not 0 on the rows that count.
    vocab_axis: the axis of `unembedding` that is the vocabulary.
    softcap: logits become `softcap * tanh(logits / softcap)`.
    chunk: how many rows of each group have their logits in memory at a time.
    collision: whether log sum p^2 is asked for; None without.

  Returns:
    float32 [S, N] each, in nats. Only the first has a gradient. Masked rows get a gradient of 0,
    whatever they hold.
  """
  settings = (vocab_axis, softcap, chunk, collision)
  token, _, entropy, *squares = _forward(hidden, unembedding, target, mask, *settings)
  return token, entropy, squares[0] if collision else None


def _forward(hidden, unembedding, target, mask, vocab_axis, softcap, chunk, collision):
  """Log-prob, log-sum-exp, entropy and, where asked for, log sum p^2 of each row."""
  weights = unembedding.astype(hidden.dtype)

  def compute(at):
    logits, _ = _logits(_take(hidden, at), weights, vocab_axis, softcap)  # [S C, V]
    log_total = jax.nn.logsumexp(logits, axis=-1)
    # Two passes of exp: XLA for CPU is four times slower on one that feeds both sums.
    surprise = log_total[:, None] - logits
    entropy = jnp.sum(jnp.exp(-surprise) * surprise, axis=-1)
    chosen = jnp.take_along_axis(logits, _take(target, at)[:, None], axis=-1)[:, 0]
    found = (chosen - log_total, log_total, entropy)
    return (*found, jax.nn.logsumexp(-2.0 * surprise, axis=-1)) if collision else found

  return _visit(mask, chunk, 4 if collision else 3, compute)


def _logprobs_fwd(hidden, unembedding, target, mask, *settings):
  token, log_total, entropy, *squares = _forward(hidden, unembedding, target, mask, *settings)
  outputs = (token, entropy, squares[0] if squares else None)
  return outputs, (hidden, unembedding, target, mask, log_total)


def _logprobs_bwd(vocab_axis, softcap, chunk, collision, residuals, cotangents):
  del collision
  hidden, unembedding, target, mask, log_total = residuals
  cotangent = cotangents[0]

  def slope(at, logits):
    probability = jnp.exp(logits - _take(log_total, at)[:, None])
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    hit = column == _take(target, at)[:, None]
    return _take(cotangent, at)[:, None] * (jnp.where(hit, 1.0, 0.0) - probability)

  gradients = _pulled_back(hidden, unembedding, mask, vocab_axis, softcap, chunk, slope)
  return *gradients, None, None


logprobs.defvjp(_logprobs_fwd, _logprobs_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def divergence(
  hidden: Array,
  unembedding: Array,
  reference_hidden: Array,
  reference_unembedding: Array,
  mask: Array,
  vocab_axis: int = 1,
  softcap: float | None = None,
  chunk: int = 1024,
) -> jax.Array:
  """KL(reference || policy) over the whole vocabulary, float32 [S, N] in nats; 0 where masked.

  Shapes as in `logprobs`; the reference's hidden states and unembedding are like the policy's and
  get no gradient.
  """
  settings = (vocab_axis, softcap, chunk)
  both = (hidden, unembedding, reference_hidden, reference_unembedding)
  return _divergence_fwd(*both, mask, *settings)[0]


def _divergence_fwd(
  hidden, unembedding, other, other_unembedding, mask, vocab_axis, softcap, chunk
):
  def log_softmax(states, matrix, at):
    weights = matrix.astype(states.dtype)
    logits, _ = _logits(_take(states, at), weights, vocab_axis, softcap)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    return logits - log_total[:, None], log_total

  def compute(at):
    policy, total = log_softmax(hidden, unembedding, at)
    reference, other_total = log_softmax(other, other_unembedding, at)
    return jnp.sum(jnp.exp(reference) * (reference - policy), axis=-1), total, other_total

  kl, total, other_total = _visit(mask, chunk, 3, compute)
  kept = (hidden, unembedding, other, other_unembedding, mask, total, other_total)
  return kl, kept


def _divergence_bwd(vocab_axis, softcap, chunk, residuals, cotangent):
  hidden, unembedding, other, other_unembedding, mask, total, other_total = residuals
  weights = other_unembedding.astype(other.dtype)

  def slope(at, logits):
    reference, _ = _logits(_take(other, at), weights, vocab_axis, softcap)
    policy = jnp.exp(logits - _take(total, at)[:, None])
    reference = jnp.exp(reference - _take(other_total, at)[:, None])
    return _take(cotangent, at)[:, None] * (policy - reference)

  gradients = _pulled_back(hidden, unembedding, mask, vocab_axis, softcap, chunk, slope)
  return *gradients, None, None, None


divergence.defvjp(_divergence_fwd, _divergence_bwd)


def _visit(mask, chunk, count, compute):
  """`count` arrays [S, N]: compute(row numbers) of each chunk of rows that count, 0 elsewhere."""
  order, chunks = _pack(mask, chunk)

  def body(i, outputs):
    at = jax.lax.dynamic_index_in_dim(order, i, 0, keepdims=False)  # [S, C]
    return jax.tree.map(lambda out, x: _put(out, at, x), outputs, compute(at))

  zeros = jnp.zeros(mask.shape, jnp.float32)
  return jax.lax.fori_loop(0, chunks, body, (zeros,) * count)


def _pulled_back(hidden, unembedding, mask, vocab_axis, softcap, chunk, slope):
  """Gradients of hidden and unembedding, where slope(row numbers, logits) is that of the logits."""
  order, count = _pack(mask, chunk)
  weights = unembedding.astype(hidden.dtype)

  def body(i, gradients):
    d_hidden, d_weights = gradients
    at = jax.lax.dynamic_index_in_dim(order, i, 0, keepdims=False)  # [S, C]
    rows = _take(hidden, at)
    logits, cap = _logits(rows, weights, vocab_axis, softcap)  # [S C, V]
    d_logits = (slope(at, logits) * cap).astype(hidden.dtype)
    d_rows = _einsum("nv,vd->nd" if vocab_axis == 0 else "nv,dv->nd", d_logits, weights)
    # Summed over groups after the loop: so devices talk once, not once a chunk.
    of_group = (*at.shape, -1)
    rows, d_logits = rows.reshape(of_group), d_logits.reshape(of_group)
    outer = _einsum("scd,scv->svd" if vocab_axis == 0 else "scd,scv->sdv", rows, d_logits)
    return _put(d_hidden, at, d_rows.astype(hidden.dtype)), d_weights + outer

  zeros = jnp.zeros((len(hidden), *unembedding.shape), jnp.float32)
  d_hidden, d_weights = jax.lax.fori_loop(0, count, body, (jnp.zeros_like(hidden), zeros))
  return d_hidden, jnp.sum(d_weights, axis=0).astype(unembedding.dtype)


def _logits(rows, weights, vocab_axis, softcap):
  """Float32 logits [S C, V], and their derivative by what the cap was put on."""
  logits = _einsum("nd,vd->nv" if vocab_axis == 0 else "nd,dv->nv", rows, weights)
  if not softcap:
    return logits, jnp.float32(1.0)
  squashed = jnp.tanh(logits / softcap)
  return softcap * squashed, 1.0 - jnp.square(squashed)


def _einsum(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _pack(mask, chunk):
  """Row numbers, those that count first, as chunks [N / C, S, C]; and how many chunks to visit.

  A row number past the end stands for no row: it reads zeros and is never written.
  """
  groups, rows = mask.shape
  size = max(1, min(chunk, rows))
  number = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), mask.shape)
  counted = mask != 0
  order = jnp.sort(jnp.where(counted, number, rows), axis=-1)
  order = jnp.pad(order, ((0, 0), (0, -rows % size)), constant_values=rows)
  most = jnp.max(jnp.sum(counted.astype(jnp.int32), axis=-1))
  return jnp.moveaxis(order.reshape(groups, -1, size), 1, 0), (most + size - 1) // size


def _take(x, at):
  """Rows [S C, ...] of x [S, N, ...]."""
  rows = jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode="fill", fill_value=0))(x, at)
  return rows.reshape(-1, *x.shape[2:])


def _put(x, at, rows):
  """x [S, N, ...] with those rows replaced."""
  rows = rows.reshape(*at.shape, *x.shape[2:])
  return jax.vmap(lambda x, at, rows: x.at[at].set(rows, mode="drop"))(x, at, rows)
