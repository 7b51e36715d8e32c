"""A model in a Hugging Face directory and its tokenizer: to sample from, and to score text with."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax import sampling, sharding
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.tokenizer import Vocabulary
from larpo_jax.models import config as config_lib
from larpo_jax.models import huggingface

NARROWEST = 32  # tokens; wider batches are powers of two, so that few programs are compiled
LOGITS = 1024  # how many rows of them are in memory at a time


class Pretrained(NamedTuple):
  """What is loaded; the weights lie whole on every device, which share the rows of a batch."""

  model: nnx.GraphDef
  params: nnx.State
  architecture: config_lib.Config
  vocabulary: Vocabulary
  eos: tuple[int, ...]  # of config.json and generation_config.json
  mesh: jax.sharding.Mesh

  @property
  def room(self) -> int:
    """How many tokens the model was made for, a prompt and its response together."""
    return json.loads(self.architecture.source).get("max_position_embeddings", 2048)

  def ends(self, *, chat: bool) -> tuple[int, ...]:
    """The tokens that end a response: the checkpoint's, EOS, and in a chat the end of the turn.

    Raises ValueError where there is none.
    """
    named = (self.vocabulary.eos, self.vocabulary.end(chat))
    found = {*self.eos, *(token for token in named if token is not None)}
    if not found:
      raise ValueError("nothing ends a response: set eos_token_id in generation_config.json")
    return tuple(sorted(found))

  def rows(self, size: int) -> int:
    """A batch size that the devices divide, not below size."""
    devices = math.prod(self.mesh.shape[axis] for axis in sharding.BATCH_AXES)
    return -(-size // devices) * devices


def load(
  directory: str | os.PathLike,
  *,
  dtype: str = "float32",
  tokenizer: str = "",
  chat_template: str = "",
) -> Pretrained:
  """Reads a checkpoint of a known architecture and its tokenizer, or another one's.

  dtype is what the weights are held in and the model computes in; log-probs are float32 anyway.
  chat_template replaces the tokenizer's own. Raises FileNotFoundError or ValueError that names what
  is missing or does not fit.
  """
  mesh = sharding.make_mesh({"data": -1})
  kind = jnp.dtype(dtype)
  model, params, architecture = huggingface.load(directory, mesh=mesh, dtype=kind, param_dtype=kind)
  words = tokenizers.load(tokenizer or directory, chat_template=chat_template)
  if len(words) > architecture.vocab_size:
    raise ValueError(
      f"the tokenizer has {len(words)} tokens and the model {architecture.vocab_size}: give the "
      "one that the model was trained with"
    )
  eos = (*architecture.eos_token_ids, *_generation_ends(pathlib.Path(directory)))
  return Pretrained(model, params, architecture, tokenizers.describe(words), eos, mesh)


def _generation_ends(directory: pathlib.Path) -> list[int]:
  path = directory / "generation_config.json"
  if not path.is_file():
    return []
  try:
    found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
  except ValueError as error:
    raise ValueError(f"{path} is not valid JSON ({error}); download the checkpoint again") from None
  return [] if found is None else [found] if isinstance(found, int) else list(found)


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
  """Places in batches of at most size, the longest first; a function of its arguments only."""
  if size < 1:
    raise ValueError(f"a batch of {size} rows holds nothing: give a batch size of at least 1")
  order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
  return [order[start : start + size] for start in range(0, len(order), size)]


def sample(
  loaded: Pretrained,
  prompts: Sequence[Sequence[int]],
  numbers: Sequence[int],
  key: jax.Array,
  *,
  size: int,
  **how: Any,
) -> list[list[int]]:
  """The tokens of one response to each of at most size prompts, its end left out.

  numbers, one a prompt, is what the noise depends on beside the key, so that a prompt gets the same
  response in any batch (but for float rounding where two tokens are nearly as likely). how are
  max_tokens, eos and the rest of `sampling.sample`. Raises as that does.
  """
  ids, mask = _padded(prompts, size, loaded, left=True)
  rows = np.resize(np.asarray(numbers, np.int32), size)
  ids, mask, rows = sharding.put((ids, mask, rows), loaded.mesh)
  with jax.set_mesh(loaded.mesh):
    drawn = sampling.sample(
      loaded.model, loaded.params, ids, mask, key,
      candidates=1, pad=loaded.vocabulary.pad, rows=rows, **how,
    )  # fmt: skip
  response, kept = jax.device_get((drawn.response[:, 0], drawn.mask[:, 0]))
  found = [row[on > 0].tolist() for row, on in zip(response, kept)][: len(prompts)]
  return [row[:-1] if row and row[-1] in how["eos"] else row for row in found]


def score(
  loaded: Pretrained, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], size: int
) -> list[tuple[float, bool]]:
  """log p(target | context) in nats, float32 a token, and whether greedy decoding would write it.

  At most size pairs, none of them empty. The last token of a target is predicted and not read.
  """
  rows = [[*context, *target] for context, target in zip(contexts, targets)]
  ids, mask = _padded([row[:-1] for row in rows], size, loaded)
  following, _ = _padded([row[1:] for row in rows], size, loaded)
  arrays = sharding.put((ids, following, mask), loaded.mesh)
  with jax.set_mesh(loaded.mesh):
    logprob, likeliest = jax.device_get(_scored(loaded.model, loaded.params, *arrays))
  found = []
  for at, (row, target) in enumerate(zip(rows, targets)):
    part = slice(len(row) - 1 - len(target), len(row) - 1)
    total = float(np.sum(logprob[at, part], dtype=np.float64))
    found.append((total, bool(np.all(likeliest[at, part] == np.asarray(target)))))
  return found


@functools.partial(jax.jit, static_argnums=0)
def _scored(model, params, ids, following, mask):
  """Of inputs [N, T]: log p of what follows each, and the likeliest token there."""
  net = nnx.merge(model, params)
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  hidden = net(ids[:, None], positions[:, None], mask[:, None])[0][:, 0]  # [N, T, D]
  width = min(ids.shape[1], max(1, LOGITS // ids.shape[0]))
  while ids.shape[1] % width:
    width -= 1

  def part(arrays):
    states, targets = arrays
    logits = net.logits(states)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1)

  parts = lambda x: jnp.moveaxis(x.reshape(len(x), -1, width, *x.shape[2:]), 1, 0)  # noqa: E731
  found = jax.lax.map(part, (parts(hidden), parts(following)))
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(ids.shape), found)


def _padded(
  sequences: Sequence[Sequence[int]], size: int, loaded: Pretrained, *, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """int32 and bool [size, width]; rows that nobody asked for repeat the others."""
  longest = max(map(len, sequences))
  width = max(NARROWEST, 1 << (longest - 1).bit_length())
  width = max(longest, min(width, loaded.room))
  ids = np.full((size, width), loaded.vocabulary.pad, np.int32)
  mask = np.zeros((size, width), bool)
  for at in range(size):
    row = sequences[at % len(sequences)]
    part = slice(width - len(row), width) if left else slice(0, len(row))
    ids[at, part], mask[at, part] = row, True
  return ids, mask
