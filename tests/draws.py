"""Random ranked lists for the tests of kernels and evaluators: ragged, tied, padded, extreme."""

import jax
import numpy as np

from larpo_jax.types import Batch, LogProbs


def lists(seed, *, B=8, K=4, R=5, tied=True, ragged=True, spread=1.0, distance=1.0):
  """(policy, reference, batch) of NumPy arrays.

  tied draws labels from a few values; ragged draws lists of 0..K and responses of 1..R tokens (the
  first prompt always has a full list of different labels); spread is the size of a log-prob and
  distance that of policy - reference, in units of spread.
  """
  rng = np.random.default_rng(seed)
  label = (
    rng.integers(0, 3, (B, K)) if tied else rng.permuted(np.tile(np.arange(K), (B, 1)), axis=1)
  )
  count = rng.integers(0, K + 1, (B, 1)) if ragged else np.full((B, 1), K)
  length = rng.integers(1, R + 1, (B, K, 1)) if ragged else np.full((B, K, 1), R)
  label[0], count[0] = rng.permutation(K), K
  valid = np.arange(K) < count  # [B, K]
  mask = ((np.arange(R) < length) & valid[..., None]).astype(np.float32)  # [B, K, R]
  prompt = rng.integers(3, 50, (B, 1, 3)).astype(np.int32)
  batch = Batch(
    prompt=prompt,
    prompt_mask=np.ones(prompt.shape, bool),
    response=rng.integers(3, 50, (B, K, R)).astype(np.int32),
    response_mask=mask,
    label=(label - 1.0).astype(np.float32),
    valid=valid,
    weight=np.ones(B, np.float32),
    row=np.arange(B, dtype=np.int32),
  )
  token = -spread * rng.exponential(size=(B, K, R))
  other = -np.abs(token + spread * distance * rng.normal(size=(B, K, R)))
  # A second judge agrees, and tells apart what the labels do not; every first token is in a span.
  batch = batch.replace(
    score=(1.3 * batch.label + 0.5 * rng.random((B, K))).astype(np.float32),
    importance=rng.uniform(0.3, 3.0, (B, K)).astype(np.float32),
    span=np.where(np.arange(R) < 1, 1, rng.integers(0, 3, (B, K, R))).astype(np.int32),
  )
  return logprobs(rng, token, mask), logprobs(rng, other, mask), batch


def logprobs(rng, token, mask):
  """LogProbs with every field filled."""
  return LogProbs(
    token=(token * mask).astype(np.float32),
    mask=mask,
    entropy=(rng.exponential(size=mask.shape) * mask).astype(np.float32),
    kl=(rng.exponential(size=mask.shape) * mask).astype(np.float32),
    collision=(-rng.exponential(size=mask.shape) * mask).astype(np.float32),
  )


def better_and_worse(batch):
  """Per prompt with an ordered pair: (prompt, indices of the best, indices of the worst)."""
  for b, (label, valid) in enumerate(zip(batch.label, batch.valid, strict=True)):
    there = np.flatnonzero(valid)
    if there.size and label[there].max() > label[there].min():
      yield b, there[label[there] == label[there].max()], there[label[there] == label[there].min()]


def wider(tree, *, candidates=2, tokens=3, K=4):
  """The same lists with more padding: fields [B, K, ...] and [B, K, R] grow on the right."""

  def pad(x):
    width = [(0, 0), (0, candidates * (x.ndim > 1 and x.shape[1] == K)), (0, tokens)]
    return np.pad(x, width[: x.ndim])

  return jax.tree.map(pad, tree)


def reordered(tree, order):
  """The candidates of each prompt in another order, int [B, K]; other fields stay."""
  B, K = order.shape
  listed = lambda x: x.ndim > 1 and x.shape[1] == K  # noqa: E731
  move = lambda x: x[np.arange(B)[:, None], order] if listed(x) else x  # noqa: E731
  return jax.tree.map(move, tree)
