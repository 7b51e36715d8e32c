"""Rewards by models: strings in, float32 [B, K] out, scored on the device.

A model is a Hugging Face directory, such as the `export` of a run. Each process reads it once and
scores on its own first device. max_prompt, max_response, chat, eos and boundary are the config's
data settings of that name: texts become ids as rows of data do. None is what the model was trained
with, where the export of a run says it (reading.json), and else the default that is named. Of a
prompt longer than max_prompt tokens the end is kept. A prompt of several turns comes without the
names of the roles, and is read as one text (chat=True: as a user's turn). batch_size texts are read
at a time, padded to a power of two of tokens; dtype is what the model computes in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
import functools
import itertools
import os
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax.data import encode, reading
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.candidates import Policy, Tokens
from larpo_jax.data.problems import BadRow
from larpo_jax.data.readers import VERDICT, Example
from larpo_jax.models import config as config_lib
from larpo_jax.models import heads, huggingface

SHORTEST = 32  # tokens that a batch is padded to, at least; else a power of two


def scalar(
  prompts: list[str],
  responses: list[list[str]],
  *,
  path: str,
  batch_size: int = 64,
  max_prompt: int | None = None,
  max_response: int | None = None,
  chat: bool | None = None,
  eos: bool | None = None,
  boundary: str | None = None,
  dtype: str = "float32",
) -> np.ndarray:
  """The score of each response by the classifier in path, float32 [B, K].

  Of a response longer than max_response tokens the start is scored, without its EOS; any other with
  its EOS (eos=True), whether it was sampled with one or not. By default 512 tokens each, no chat,
  eos and "joint". Raises FileNotFoundError or ValueError where path holds no classifier of one
  label, or a text cannot be read under these settings.
  """
  _check(prompts, responses, batch_size)
  model, params, vocabulary = _load(_whole(path), dtype, heads.load)
  given = dict(max_prompt=max_prompt, max_response=max_response, chat=chat, eos=eos)
  policy = _policy(path, 512, boundary=boundary, **given)
  examples = [
    Example(prompt, [text], [0.0]) for prompt, row in zip(prompts, responses) for text in row
  ]
  rows = _encoded(examples, vocabulary, policy)
  ids = [np.concatenate([row.prompt, *row.responses]) for row in rows]
  found = np.zeros(len(ids), np.float32)
  for places, tokens, valid in _batches(ids, batch_size):
    found[places] = _score(model, params, tokens, valid)[: len(places)]
  return found.reshape(len(prompts), -1)


scalar.stands_in = True  # type: ignore[attr-defined]


def pairwise(
  prompts: list[str],
  responses: list[list[str]],
  *,
  path: str,
  batch_size: int = 64,
  max_prompt: int | None = None,
  chat: bool | None = None,
  boundary: str | None = None,
  dtype: str = "float32",
) -> np.ndarray:
  """How far each response is preferred to the others of its list, float32 [B, K], of sum 0.

  The language model in path has learnt from `readers.verdicts` to say which of two answers is
  better. It is asked both orders of every two, log p("A") - log p("B") is halved between them, and
  the score is the mean over the others. So it depends on the list, and compares with no other
  list's; a response alone has 0. As PairRM compares candidates two by two and averages
  (https://arxiv.org/abs/2306.02561), but by a language model's verdict.

  K (K - 1) prompts a list; the verdict's first token is read. By default 1,024 tokens of prompt, no
  chat and "joint". Raises FileNotFoundError or ValueError where path holds no language model, or a
  text cannot be read under these settings.
  """
  _check(prompts, responses, batch_size)
  model, params, vocabulary = _load(_whole(path), dtype, huggingface.load)
  given = dict(max_prompt=max_prompt, max_response=2, chat=chat, eos=True)
  policy = _policy(path, 1024, boundary=boundary, **given)
  asked = [
    Example(VERDICT.format(prompt=prompt, first=first, second=second), ["A", "B"], [0.0, 0.0])
    for prompt, row in zip(prompts, responses)
    for first, second in itertools.permutations(row, 2)
  ]
  rows = _encoded(asked, vocabulary, policy)
  letters = np.asarray([[ids[0] for ids in row.responses] for row in rows], np.int32)
  odds = np.zeros(len(rows), np.float32)
  for places, tokens, valid in _batches([row.prompt for row in rows], batch_size):
    named = np.zeros((batch_size, 2), np.int32)
    named[: len(places)] = letters[places]
    odds[places] = _odds(model, params, tokens, valid, named)[: len(places)]
  found, start = np.zeros((len(prompts), max(map(len, responses), default=0)), np.float32), 0
  for place, row in enumerate(responses):
    count = len(row)
    ahead = np.zeros((count, count), np.float32)  # of the first over the second
    ahead[~np.eye(count, dtype=bool)] = odds[start : start + count * (count - 1)]
    found[place] = np.sum(ahead - ahead.T, axis=1) / 2 / max(count - 1, 1)
    start += count * (count - 1)
  return found


pairwise.compares = True  # type: ignore[attr-defined]


def _check(prompts: list[str], responses: list[list[str]], batch_size: int) -> None:
  if len(prompts) != len(responses):
    raise ValueError(f"{len(prompts)} prompts but {len(responses)} lists of responses")
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size} must be at least 1")


def _policy(path: str, longest: int, **given: Any) -> Policy:
  """How texts are read for the model in path; of longest tokens a prompt where nobody says."""
  known = reading.settings(_whole(path), given)
  return Policy(**{"max_prompt": longest, "max_response": 512} | known)


def _whole(path: str) -> str:
  return os.path.realpath(os.path.expanduser(path))


@functools.cache
def _load(
  path: str, dtype: str, load: Callable[..., Any]
) -> tuple[nnx.GraphDef, nnx.State, tokenizers.Vocabulary]:
  labels = config_lib.read(path).num_labels
  if labels not in (None, 1):
    raise ValueError(f"{path} has {labels} labels; a reward is the score of a classifier of one")
  model, params, _ = load(path, dtype=jnp.dtype(dtype))
  return model, params, tokenizers.describe(tokenizers.load(path))


def _encoded(
  examples: list[Example], vocabulary: tokenizers.Vocabulary, policy: Policy
) -> list[Tokens]:
  """The ids of each example, as `data.dataset` makes them."""
  try:
    rendered = [encode.render(each, vocabulary, policy, Counter()) for each in examples]
    found = [
      encode.assemble(each, ids, vocabulary, policy, Counter())
      for each, ids in zip(rendered, encode.tokenize(rendered, vocabulary, policy))
    ]
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


@functools.partial(jax.jit, static_argnums=0)
def _odds(
  model: nnx.GraphDef, params: nnx.State, tokens: jax.Array, valid: jax.Array, named: jax.Array
):
  """log p(named[:, 0]) - log p(named[:, 1]) after right-padded prompts [N, 1, T], float32 [N]."""
  net = nnx.merge(model, params)
  place = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 2)
  hidden, _ = net(tokens, place, valid)
  last = jnp.sum(valid, axis=-1, keepdims=True) - 1  # [N, 1, 1]
  state = jnp.take_along_axis(hidden, last[..., None], axis=2)[:, 0, 0]
  logits = jnp.take_along_axis(net.logits(state), named, axis=-1)
  return logits[:, 0] - logits[:, 1]
