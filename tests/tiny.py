"""Tiny random decoders and ragged batches for the tests of what stands on the model."""

import jax
import numpy as np
from tiny_models import FAMILIES, VOCABULARY

from larpo_jax.models import config as configs
from larpo_jax.models import transformer
from larpo_jax.types import Batch


def model(seed, family="qwen3", *, options=None, **changes):
  """(graphdef, params, config); every weight is random, so that none of them can be forgotten."""
  config = configs.read(FAMILIES[family] | changes)
  graphdef, params = transformer.create(config, jax.random.key(0), **(options or {}))
  rng = np.random.default_rng(seed)
  draw = lambda x: (x + rng.normal(size=x.shape, scale=0.15)).astype(np.float32)  # noqa: E731
  return graphdef, jax.tree.map(draw, params), config


def batch(seed, *, B=4, K=3, P=7, R=6, J=1, V=VOCABULARY, shortest=1, side="left"):
  """Ragged prompts and responses; some tokens inside a response do not count."""
  rng = np.random.default_rng(seed)
  length = rng.integers(shortest, P + 1, (B, J, 1))
  place = np.arange(P)
  prompt_mask = place >= P - length if side == "left" else place < length
  tokens = rng.integers(2, V, (B, K, R))
  mask = (np.arange(R) < rng.integers(0, R + 1, (B, K, 1))) & (rng.random((B, K, R)) < 0.9)
  mask[0, 0, :3] = [True, False, True][:R]
  return Batch(
    prompt=(rng.integers(2, V, (B, J, P)) * prompt_mask).astype(np.int32),
    prompt_mask=prompt_mask,
    response=tokens.astype(np.int32),
    response_mask=mask.astype(np.float32),
    label=rng.normal(size=(B, K)).astype(np.float32),
    valid=np.ones((B, K), bool),
    weight=np.ones(B, np.float32),
    row=np.arange(B, dtype=np.int32),
  )
