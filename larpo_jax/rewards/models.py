"""Rewards by reward models: strings in, float32 [B, K] out, scored on the device.

A model is a Hugging Face directory, such as the `export` of a run whose scorer is
`rewards.scalar`. Each process reads it once and scores on its own first device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
import functools
import os

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax.data import encode
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.candidates import Policy
from larpo_jax.data.problems import BadRow
from larpo_jax.data.readers import Example
from larpo_jax.models import config as config_lib
from larpo_jax.models import heads

SHORTEST = 32  # tokens that a batch is padded to, at least; else a power of two


def scalar(
  prompts: list[str],
  responses: list[list[str]],
  *,
  path: str,
  batch_size: int = 64,
  max_prompt: int = 512,
  max_response: int = 512,
  chat: bool = False,
  eos: bool = True,
  boundary: str = "joint",
  dtype: str = "float32",
) -> np.ndarray:
  """The score of each response by the classifier in path, float32 [B, K].

  max_prompt to boundary are the config's data settings of that name, and have to be those that the
  model was trained with: the texts become ids as rows of data do. Of a prompt longer than
  max_prompt tokens the end is kept, of a response longer than max_response the start, without its
  EOS; any other is scored with its EOS (eos=True), whether it was sampled with one or not. With
  chat=True the prompt is a user's turn. A prompt of several turns comes as one text without the
  names of the roles, and is read as one turn.

  batch_size texts are scored at a time, padded to a power of two of tokens; dtype is what the model
  computes in. Raises FileNotFoundError or ValueError where path holds no classifier of one label,
  or a text cannot be read under these settings.
  """
  if len(prompts) != len(responses):
    raise ValueError(f"{len(prompts)} prompts but {len(responses)} lists of responses")
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size} must be at least 1")
  model, params, vocabulary = _load(os.path.realpath(os.path.expanduser(path)), dtype)
  policy = Policy(max_prompt, max_response, chat=chat, eos=eos, boundary=boundary)
  pairs = [(prompt, text) for prompt, row in zip(prompts, responses) for text in row]
  ids = _encoded(pairs, vocabulary, policy)
  found = np.zeros(len(ids), np.float32)
  for places, tokens, valid in _batches(ids, batch_size):
    found[places] = _score(model, params, tokens, valid)[: len(places)]
  return found.reshape(len(prompts), -1)


@functools.cache
def _load(path: str, dtype: str) -> tuple[nnx.GraphDef, nnx.State, tokenizers.Vocabulary]:
  labels = config_lib.read(path).num_labels
  if labels not in (None, 1):
    raise ValueError(f"{path} has {labels} labels; a reward is the score of a classifier of one")
  model, params, _ = heads.load(path, dtype=jnp.dtype(dtype))
  return model, params, tokenizers.describe(tokenizers.load(path))


def _encoded(
  pairs: list[tuple[str, str]], vocabulary: tokenizers.Vocabulary, policy: Policy
) -> list[np.ndarray]:
  """The ids of each prompt with its response, as `data.dataset` makes them."""
  try:
    rendered = [
      encode.render(Example(prompt, [text], [0.0]), vocabulary, policy, Counter())
      for prompt, text in pairs
    ]
    found = []
    for each, ids in zip(rendered, encode.tokenize(rendered, vocabulary, policy)):
      row = encode.assemble(each, ids, vocabulary, policy, Counter())
      found.append(np.concatenate([row.prompt, *row.responses]))
  except BadRow as error:
    raise ValueError(
      f"the reward model cannot read a response: {error.kind}, {error.detail}; its settings are "
      "those of the data that it was trained on"
    ) from error
  return found


def _batches(
  ids: list[np.ndarray], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Places among ids, and their tokens and what of them is real [size, 1, T], by length."""
  order = np.argsort([len(row) for row in ids], kind="stable")
  for start in range(0, len(ids), size):
    places = order[start : start + size]
    longest = len(ids[places[-1]])
    width = max(SHORTEST, 1 << (longest - 1).bit_length())
    tokens, valid = np.zeros((size, 1, width), np.int32), np.zeros((size, 1, width), bool)
    for place, row in enumerate(places):
      tokens[place, 0, : len(ids[row])] = ids[row]
      valid[place, 0, : len(ids[row])] = True
    yield places, tokens, valid


@functools.partial(jax.jit, static_argnums=0)
def _score(model: nnx.GraphDef, params: nnx.State, tokens: jax.Array, valid: jax.Array):
  """float32 [N] of right-padded lists [N, 1, T]."""
  place = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 2)
  return nnx.merge(model, params)(tokens, place, valid)[:, 0, 0]
