"""K responses to each prompt: one prefill, then one token at a time from a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

from flax import nnx, struct
import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax import repetition
from larpo_jax.models import prompts, transformer
from larpo_jax.types import Array


@struct.dataclass
class Samples:
  """What was sampled: `response` and `mask` are laid out as in `types.Batch`."""

  response: jax.Array  # int32 [B, K, R]: the tokens, the end of sequence among them, then padding
  mask: jax.Array  # float32 [B, K, R]: 1 on tokens that were sampled
  logprob: jax.Array  # float32 [B, K, R]: the model's own, whatever the temperature; 0 where masked
  finished: jax.Array  # bool [B, K]: whether an end of sequence was reached


class _Options(NamedTuple):
  """What a compiled sampler is specialised to."""

  candidates: int
  max_tokens: int
  eos: tuple[int, ...]
  pad: int
  greedy: bool
  top_k: int
  top_p: float
  repetition_penalty: float
  no_repeat_ngram_size: int


class _Decoding(NamedTuple):
  """The state between two tokens."""

  step: jax.Array  # int32 []
  token: jax.Array  # int32 [B, K]: the next input
  past: transformer.Past
  samples: Samples


def sample(
  model: nnx.GraphDef,
  params: nnx.State,
  prompt: Array,
  prompt_mask: Array,
  key: jax.Array,
  *,
  candidates: int,
  max_tokens: int,
  eos: int | Sequence[int],
  pad: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  repetition_penalty: float = 1.0,
  no_repeat_ngram_size: int = 0,
  rows: Array | None = None,
  first: int = 0,
) -> Samples:
  """Samples responses; jitted, and sharded as the prompts are.

  The noise of a token depends on the key, its prompt's row number, its candidate and its position
  only, so a prompt gets the same responses in another batch or with other padding.

  Args:
    model: graph definition of a `models.transformer.Transformer`.
    params: its parameters.
    prompt: int [B, P], or [B, J, P] with J in {1, K}; padded on either side.
    prompt_mask: bool, like prompt.
    key: jax.random key.
    candidates: K, responses a prompt.
    max_tokens: R, where a response is cut.
    eos: the token, or tokens, that end a response.
    pad: what fills a response after its end.
    temperature: divides the logits; 0 takes the most likely token.
    top_k: keeps the k most likely tokens; 0 keeps all.
    top_p: then keeps the fewest most likely tokens whose probabilities sum to at least this.
    repetition_penalty: divides the logits of tokens that are in the prompt or the response already,
      or where they are negative multiplies them; 1 leaves them.
    no_repeat_ngram_size: no so many tokens in a row come twice, prompt included; 0 allows it.
    rows: int [B], the number of each prompt; its place in the batch by default.
    first: the number of the first candidate, so that many can be drawn a few at a time.

  Raises:
    ValueError: an argument out of its range, or a prompt without a token.
  """
  if candidates < 1 or max_tokens < 1 or first < 0:
    raise ValueError(
      f"candidates={candidates} and max_tokens={max_tokens} must be at least 1, and first={first} "
      "at least 0"
    )
  if not (temperature >= 0 and top_k >= 0 and 0 < top_p <= 1):
    raise ValueError(
      f"temperature={temperature} and top_k={top_k} must be at least 0, and 0 < top_p={top_p} <= 1"
    )
  if not repetition_penalty > 0 or no_repeat_ngram_size < 0:
    raise ValueError(
      f"repetition_penalty={repetition_penalty} must be above 0, and "
      f"no_repeat_ngram_size={no_repeat_ngram_size} at least 0"
    )
  if prompt.ndim == 2:
    prompt, prompt_mask = prompt[:, None], prompt_mask[:, None]
  if isinstance(prompt_mask, np.ndarray) and not prompt_mask.any(axis=-1).all():
    row = int(np.argmin(prompt_mask.any(axis=(-1, -2))))
    raise ValueError(f"prompt {row} has no token to continue; begin it with the BOS token")
  ends = tuple(int(token) for token in np.atleast_1d(eos))
  options = _Options(
    *(candidates, max_tokens, ends, int(pad), temperature == 0, int(top_k), float(top_p)),
    *(float(repetition_penalty), int(no_repeat_ngram_size)),
  )
  rows = jnp.arange(prompt.shape[0]) if rows is None else rows
  # Arguments of the program, so that one serves every temperature and every part of a list.
  numbers = (np.float32(temperature), np.int32(first))
  return _sample(model, params, prompt, prompt_mask, rows, key, numbers, options)


@functools.partial(jax.jit, static_argnums=(0, 7))
def _sample(model, params, prompt, prompt_mask, rows, key, numbers, options):
  net = nnx.merge(model, params)
  given = prompts.split(prompt, prompt_mask)
  prefix = prompts.prefill(net, given)
  lists = (prompt.shape[0], options.candidates)
  temperature, first = numbers
  keys = _keys(key, rows, first, options.candidates)
  length = jnp.broadcast_to(given.length, lists)
  state = _Decoding(
    step=jnp.zeros((), jnp.int32),
    token=jnp.broadcast_to(given.last, lists),
    past=transformer.empty_past(net.config, *lists, options.max_tokens, net.dtype),
    samples=_nothing(lists, options),
  )

  def body(state: _Decoding) -> _Decoding:
    positions = (length - 1 + state.step)[..., None]
    hidden, past = net(
      state.token[..., None],
      jnp.maximum(positions, 0),
      positions >= 0,
      prefix=prefix,
      past=state.past,
    )
    logits = net.logits(hidden[:, :, 0])  # [B, K, V]
    past_ids = (prompt, prompt_mask, state.samples.response, state.step)
    token = _choose(_controlled(logits, past_ids, options), keys, state.step, temperature, options)
    samples = _append(state.samples, state.step, token, logits, options)
    return _Decoding(state.step + 1, token, past, samples)

  def unfinished(state: _Decoding) -> jax.Array:
    return (state.step < options.max_tokens) & ~jnp.all(state.samples.finished)

  return jax.lax.while_loop(unfinished, body, state).samples


def _controlled(logits: jax.Array, past: tuple[Any, ...], options: _Options) -> jax.Array:
  """Logits [B, K, V] after the controls of repetition; past is what `repetition.history` takes."""
  penalty, size = options.repetition_penalty, options.no_repeat_ngram_size
  if penalty != 1:
    logits = repetition.penalised(logits, repetition.history(*past), penalty)
  return repetition.without_repeats(logits, repetition.history(*past), size) if size else logits


def _keys(key: jax.Array, rows: Array, first: Array, candidates: int) -> jax.Array:
  """A key for each row and candidate from the first on, [B, K]."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  each = fold(key, rows)
  return jax.vmap(fold, in_axes=(0, None))(each, first + jnp.arange(candidates))


def _nothing(lists: tuple[int, int], options: _Options) -> Samples:
  shape = (*lists, options.max_tokens)
  return Samples(
    response=jnp.full(shape, options.pad, jnp.int32),
    mask=jnp.zeros(shape, jnp.float32),
    logprob=jnp.zeros(shape, jnp.float32),
    finished=jnp.zeros(lists, bool),
  )


def _append(
  samples: Samples, step: jax.Array, token: jax.Array, logits: jax.Array, options: _Options
) -> Samples:
  """Writes one token of each response that has not ended."""
  going = ~samples.finished
  chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
  logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
  ended = functools.reduce(jnp.logical_or, (token == eos for eos in options.eos))
  new = (jnp.where(going, token, options.pad), going, jnp.where(going, logprob, 0.0))
  arrays = (samples.response, samples.mask, samples.logprob)
  response, mask, logprob = (
    jax.lax.dynamic_update_slice(array, value[..., None].astype(array.dtype), (0, 0, step))
    for array, value in zip(arrays, new)
  )
  return Samples(response, mask, logprob, samples.finished | ended)


def _choose(
  logits: jax.Array, keys: jax.Array, step: jax.Array, temperature: Array, options: _Options
) -> jax.Array:
  """The next token [B, K] of logits [B, K, V]."""
  if options.greedy:
    return _argmax(logits)
  logits = logits / temperature
  vocab = logits.shape[-1]
  tokens = None  # which tokens the kept logits are; None for all in their order
  if 0 < options.top_k < vocab or options.top_p < 1:
    logits, tokens = jax.lax.top_k(logits, min(options.top_k or vocab, vocab))
  if options.top_p < 1:
    probability = jax.nn.softmax(logits, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    logits = jnp.where(before < options.top_p, logits, -jnp.inf)
  noise = lambda key: jax.random.gumbel(jax.random.fold_in(key, step), logits.shape[2:])  # noqa: E731
  place = _argmax(logits + jax.vmap(jax.vmap(noise))(keys))
  if tokens is None:
    return place
  return jnp.take_along_axis(tokens, place[..., None], axis=-1)[..., 0].astype(jnp.int32)


def _argmax(x: jax.Array) -> jax.Array:
  """The first place of the largest along the last axis; XLA:CPU takes jnp.argmax one by one."""
  place = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  last = x.shape[-1] - 1  # where nothing equals the largest, as it is NaN
  return jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), place, last), axis=-1)
