"""A checkpoint of random weights that says something, on disk, for what samples and scores it."""

import jax
import numpy as np
import tiny_checkpoint

from larpo_jax.models import huggingface


def make(directory, seed, scale=0.3, **shape):
  """`tiny_checkpoint.make` with every weight random, so that answers differ and seldom end."""
  tiny_checkpoint.make(directory, **shape)
  _, params, config = huggingface.load(directory)
  rng = np.random.default_rng(seed)
  drawn = jax.tree.map(lambda x: (x + rng.normal(size=x.shape, scale=scale)).astype("f4"), params)
  huggingface.save(directory, drawn, config, tokenizer=tiny_checkpoint.tokenizer())
  return directory
