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


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def logprobs(
  hidden: Array,
  unembedding: Array,
  target: Array,
  mask: Array,
  softcap: float | None = None,
  chunk: int = 1024,
  collision: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Log p(target | hidden), and of that distribution p the entropy and log sum p^2; 0 where masked.

  Args:
    hidden: [S, N, D]: N rows in each of S groups. Devices that hold different groups do not talk
      to each other but to sum the gradient of the unembedding.
    unembedding: [D, V].
    target: int [S, N].
    mask: [S, N], not 0 on the rows that count.
    softcap: logits become `softcap * tanh(logits / softcap)`.
    chunk: how many rows of each group have their logits in memory at a time.
    collision: whether log sum p^2 is asked for; None without.

  Returns:
    float32 [S, N] each, in nats. Only the first has a gradient. Masked rows get a gradient of 0,
    whatever they hold.
  """
  settings = (softcap, chunk, collision)
  token, _, entropy, *squares = _forward(hidden, unembedding, target, mask, *settings)
  return token, entropy, squares[0] if collision else None


def _forward(hidden, unembedding, target, mask, softcap, chunk, collision):
  """Log-prob, log-sum-exp, entropy and, where asked for, log sum p^2 of each row."""
  weights = unembedding.astype(hidden.dtype)

  def compute(at):
    logits, _ = _logits(_take(hidden, at), weights, softcap)  # [S C, V]
    highest = jnp.max(logits, axis=-1)
    shifted = logits - highest[:, None]
    odds = jnp.exp(shifted)  # probabilities but for the factor 1 / total
    total = jnp.sum(odds, axis=-1)
    log_total = highest + jnp.log(total)
    entropy = jnp.log(total) - jnp.sum(odds * shifted, axis=-1) / total
    chosen = jnp.take_along_axis(logits, _take(target, at)[:, None], axis=-1)[:, 0]
    found = (chosen - log_total, log_total, entropy)
    squares = jnp.log(jnp.sum(odds * odds, axis=-1)) - 2.0 * jnp.log(total)
    return (*found, squares) if collision else found

  return _visit(mask, chunk, 4 if collision else 3, compute)


def _logprobs_fwd(hidden, unembedding, target, mask, *settings):
  token, log_total, entropy, *squares = _forward(hidden, unembedding, target, mask, *settings)
  outputs = (token, entropy, squares[0] if squares else None)
  return outputs, (hidden, unembedding, target, mask, log_total)


def _logprobs_bwd(softcap, chunk, collision, residuals, cotangents):
  del collision
  hidden, unembedding, target, mask, log_total = residuals
  cotangent = cotangents[0]

  def slope(at, logits):
    weight, column, total = (_take(x, at) for x in (cotangent, target, log_total))
    own = jnp.take_along_axis(logits, column[:, None], axis=-1)[:, 0] - total
    others = -weight[:, None] * jnp.exp(logits - total[:, None])
    return _set(others, at, column, -weight * jnp.expm1(own))  # exact near a probability of 1

  gradients = _pulled_back(hidden, unembedding, mask, softcap, chunk, slope)
  return *gradients, None, None


logprobs.defvjp(_logprobs_fwd, _logprobs_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def divergence(
  hidden: Array,
  unembedding: Array,
  reference_hidden: Array,
  reference_unembedding: Array,
  mask: Array,
  softcap: float | None = None,
  chunk: int = 1024,
) -> jax.Array:
  """KL(reference || policy) over the whole vocabulary, float32 [S, N] in nats; 0 where masked.

  Shapes as in `logprobs`; the reference's hidden states and unembedding are like the policy's and
  get no gradient.
  """
  settings = (softcap, chunk)
  both = (hidden, unembedding, reference_hidden, reference_unembedding)
  return _divergence_fwd(*both, mask, *settings)[0]


def _divergence_fwd(hidden, unembedding, other, other_unembedding, mask, softcap, chunk):
  def log_softmax(states, matrix, at):
    weights = matrix.astype(states.dtype)
    logits, _ = _logits(_take(states, at), weights, softcap)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    return logits - log_total[:, None], log_total

  def compute(at):
    policy, total = log_softmax(hidden, unembedding, at)
    reference, other_total = log_softmax(other, other_unembedding, at)
    return jnp.sum(jnp.exp(reference) * (reference - policy), axis=-1), total, other_total

  kl, total, other_total = _visit(mask, chunk, 3, compute)
  kept = (hidden, unembedding, other, other_unembedding, mask, total, other_total)
  return kl, kept


def _divergence_bwd(softcap, chunk, residuals, cotangent):
  hidden, unembedding, other, other_unembedding, mask, total, other_total = residuals
  weights = other_unembedding.astype(other.dtype)

  def slope(at, logits):
    reference, _ = _logits(_take(other, at), weights, softcap)
    policy = jnp.exp(logits - _take(total, at)[:, None])
    reference = jnp.exp(reference - _take(other_total, at)[:, None])
    return _take(cotangent, at)[:, None] * (policy - reference)

  gradients = _pulled_back(hidden, unembedding, mask, softcap, chunk, slope)
  return *gradients, None, None, None


divergence.defvjp(_divergence_fwd, _divergence_bwd)


def _visit(mask, chunk, count, compute):
  """`count` arrays [S, N]: compute(row numbers) of each chunk of rows that count, 0 elsewhere."""
  order, chunks = _pack(mask, chunk)

  def body(i, outputs):
    return jax.tree.map(lambda out, x: _write(out, i, x), outputs, compute(order[i]))

  zeros = jnp.zeros(_by_group(order), jnp.float32)
  outputs = jax.lax.fori_loop(0, chunks, body, (zeros,) * count)
  return tuple(_unpacked(x, mask) for x in outputs)


def _pulled_back(hidden, unembedding, mask, softcap, chunk, slope):
  """Gradients of hidden and unembedding, where slope(row numbers, logits) is that of the logits."""
  order, count = _pack(mask, chunk)
  weights = unembedding.astype(hidden.dtype)
  # Each product has its matrix as XLA:CPU reads it fastest: both ways round, turned once.
  turned = weights.T

  def body(i, gradients):
    d_hidden, d_weights = gradients
    at = order[i]  # [S, C]
    rows = _take(hidden, at)
    logits, cap = _logits(rows, weights, softcap)  # [S C, V]
    d_logits = (slope(at, logits) * cap).astype(hidden.dtype)
    d_rows = _einsum("nv,vd->nd", d_logits, turned)
    # Summed over groups after the loop: so devices talk once, not once a chunk.
    of_group = (*at.shape, -1)
    outer = _einsum("scd,scv->sdv", rows.reshape(of_group), d_logits.reshape(of_group))
    return _write(d_hidden, i, d_rows.astype(hidden.dtype)), d_weights + outer

  rows = jnp.zeros((*_by_group(order), hidden.shape[-1]), hidden.dtype)
  zeros = jnp.zeros((len(hidden), *unembedding.shape), jnp.float32)
  rows, d_weights = jax.lax.fori_loop(0, count, body, (rows, zeros))
  return _unpacked(rows, mask), jnp.sum(d_weights, axis=0).astype(unembedding.dtype)


def _logits(rows, weights, softcap):
  """Float32 logits [S C, V], and their derivative by what the cap was put on."""
  logits = _einsum("nd,dv->nv", rows, weights)
  if not softcap:
    return logits, jnp.float32(1.0)
  squashed = jnp.tanh(logits / softcap)
  return softcap * squashed, 1.0 - jnp.square(squashed)


def _einsum(spec, x, y):
  return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _pack(mask, chunk):
  """Row numbers, those that count first, as chunks [N / C, S, C]; and how many chunks to visit.

  A row number past the end stands for no row: it reads zeros and is not read.
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


def _set(x, at, column, value):
  """x [S C, V] with one column of each row replaced; groups do not talk to each other."""
  one = lambda x, column, value: x.at[jnp.arange(len(column)), column].set(value)  # noqa: E731
  of_group = (column.reshape(at.shape), value.reshape(at.shape))
  return jax.vmap(one)(x.reshape(*at.shape, -1), *of_group).reshape(x.shape)


def _by_group(order):
  """The shape [S, N / C, C] of what is found chunk by chunk."""
  chunks, groups, size = order.shape
  return groups, chunks, size


def _write(packed, i, rows):
  """packed [S, N / C, C, ...] with chunk i replaced by rows [S C, ...]."""
  groups, _, *rest = packed.shape
  return packed.at[:, i].set(rows.reshape(groups, *rest))


def _unpacked(packed, mask):
  """[S, N, ...] of packed [S, N / C, C, ...]: each row in its place, 0 where none counts."""
  counted = mask != 0
  rows = packed.reshape(len(mask), -1, *packed.shape[3:])
  rank = jnp.where(counted, jnp.cumsum(counted, axis=-1) - 1, rows.shape[1])
  return jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode="fill", fill_value=0))(rows, rank)
