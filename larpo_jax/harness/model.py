"""A model of lm-evaluation-harness: log-likelihoods and answers of a Hugging Face directory.

Written against lm_eval 0.4.13 (https://github.com/EleutherAI/lm-evaluation-harness). Text is
encoded as its own "hf" model does: context and continuation together, spaces at the end of a
context counted to the continuation, special tokens as the tokenizer adds them, BOS (or EOS) before
an empty context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
  handle_stop_sequences,
  has_bos_prefix,
  normalize_gen_kwargs,
  postprocess_generated_text,
)
import numpy as np

from larpo_jax import pretrained as checkpoints
from larpo_jax import writers

DRAWING = ("temperature", "top_k", "top_p")  # what a task may say of sampling
OWN = ("until", "max_gen_toks", "do_sample")  # and of where an answer ends


@register_model("larpo_jax")
class LarpoLM(TemplateLM):
  """A causal language model in a Hugging Face directory, run by this library."""

  def __init__(
    self,
    pretrained: str,
    *,
    tokenizer: str = "",
    chat_template: str = "",
    dtype: str = "float32",
    batch_size: int | str = 16,
    max_length: int | None = None,
    max_gen_toks: int = 256,
    seed: int = 0,
    max_batch_size: int | None = None,
    device: str | None = None,
  ) -> None:
    """pretrained is the directory; --model_args says the rest. All devices that jax sees take part.

    max_length is how many tokens are read, by default what the model was made for; seed is of
    sampling where a task asks for it. Raises ValueError or OSError in one sentence.
    """
    super().__init__()
    del max_batch_size, device  # lm_eval always gives them; there is no "auto", and jax chooses
    if not str(batch_size).isdecimal() or int(batch_size) < 1:
      raise ValueError(f"--batch_size {batch_size} has to be a number of at least 1")
    self._loaded = checkpoints.load(
      pretrained, tokenizer=tokenizer, chat_template=chat_template, dtype=str(dtype)
    )
    self.tokenizer = self._loaded.vocabulary.tokenizer
    self.batch_size = self._loaded.rows(int(batch_size))
    self.max_length = int(max_length or self._loaded.room)
    self.max_gen_toks = int(max_gen_toks)
    self._seed = int(seed)

  @property
  def eot_token_id(self) -> int:
    """EOS."""
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    """What an empty context is: BOS, or EOS without one."""
    return self.eot_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

  @property
  def tokenizer_name(self) -> str:
    """What requests are cached under."""
    return str(self.tokenizer.name_or_path).replace("/", "__")

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """The ids of a text; by default with what the tokenizer adds, unless BOS stands there."""
    begun = has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
    if add_special_tokens is None and begun:
      add_special_tokens = False
    special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
    return self.tokenizer.encode(string, **special)

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """The text of a conversation."""
    text = self.tokenizer.apply_chat_template(
      chat_history,
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=not add_generation_prompt,
    )
    return str(text)

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """(log-likelihood, is_greedy) of encoded pairs; of what is too long the end is read."""
    del disable_tqdm  # a bar is on a terminal only
    pairs = [_fitting(context, target, self.max_length) for _, context, target in requests]
    feed = checkpoints.batches([len(c) + len(t) for c, t in pairs], self.batch_size)
    found: dict[int, tuple[float, bool]] = {}
    with writers.Progress("loglikelihood", total=len(pairs), unit="pair") as shown:
      for places in feed:
        contexts, targets = zip(*(pairs[place] for place in places))
        scores = checkpoints.score(self._loaded, contexts, targets, self.batch_size)
        found |= zip(places, scores)
        for place, score in zip(places, scores):
          if requests[place][0] is not None:
            self.cache_hook.add_partial("loglikelihood", requests[place][0], score)
        shown.update(len(found))
    return [found[place] for place in range(len(pairs))]

  def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
    """The log-likelihood of whole texts, in windows of max_length tokens that do not overlap."""
    owners, windows = [], []
    for owner, request in enumerate(requests):
      ids = self.tok_encode(request.args[0])
      cut = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
      parts = [(None, *utils.make_disjoint_window(window)) for window in cut]
      owners += [owner] * len(parts)
      windows += parts
    scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
    totals = np.zeros(len(requests))
    for owner, (score, _) in zip(owners, scores):
      totals[owner] += score
    for request, total in zip(requests, totals.tolist()):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return totals.tolist()

  def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
    """Answers, cut before the first of their stop sequences.

    What a task says beside `until`, `max_gen_toks`, `do_sample`, temperature, top_k and top_p is an
    error. A stop sequence is looked for once an answer is whole, so it saves no time.
    """
    del disable_tqdm
    kinds: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
      kinds.setdefault(repr(request.args[1]), []).append(place)
    found: dict[int, str] = {}
    with writers.Progress("generate_until", total=len(requests), unit="request") as shown:
      for places in kinds.values():
        contexts = [requests[place].args[0] for place in places]
        for at, text in self._written(contexts, places, requests[places[0]].args[1]):
          found[at] = text
          self.cache_hook.add_partial("generate_until", requests[at].args, text)
          shown.update(len(found))
    return [found[place] for place in range(len(requests))]

  def _written(
    self, contexts: Sequence[str], numbers: Sequence[int], given: Mapping[str, Any]
  ) -> Iterator[tuple[int, str]]:
    """(number, text) of each context, under one set of generation arguments."""
    kwargs = normalize_gen_kwargs(dict(given), self.max_gen_toks)
    unknown = sorted(set(kwargs) - {*OWN, *DRAWING})
    if unknown:
      raise ValueError(f"generation_kwargs {', '.join(unknown)} is not implemented; remove it")
    eos = self.tokenizer.decode(self.eot_token_id)
    stop = handle_stop_sequences(kwargs["until"], eos=eos)
    room = self.max_length - kwargs["max_gen_toks"]
    if room < 1:
      raise ValueError(f"max_gen_toks={kwargs['max_gen_toks']} leaves no room: lower it")
    how = {name: kwargs[name] for name in DRAWING if name in kwargs}
    how["temperature"] = float(kwargs.get("temperature", 0.0)) if kwargs["do_sample"] else 0.0
    ends = dict(eos=self._loaded.ends(chat=False), max_tokens=kwargs["max_gen_toks"])
    key, ids = jax.random.key(self._seed), [self.tok_encode(text)[-room:] for text in contexts]
    for places in checkpoints.batches([len(row) for row in ids], self.batch_size):
      rows, asked = [ids[place] for place in places], [numbers[place] for place in places]
      drawn = checkpoints.sample(
        self._loaded, rows, asked, key, size=self.batch_size, **ends, **how
      )
      for number, row in zip(asked, drawn):
        text = self.tokenizer.decode(row, skip_special_tokens=True)
        yield number, postprocess_generated_text(text, stop, None)


def _fitting(context: list[int], target: list[int], length: int) -> tuple[list[int], list[int]]:
  """The end of a pair of which length tokens are read, and all of its target predicted."""
  if not context or not target or len(target) > length:
    raise ValueError(
      f"a context of {len(context)} and a continuation of {len(target)} tokens cannot be scored: "
      f"neither may be empty, nor the continuation longer than max_length={length}"
    )
  return context[-(length + 1 - len(target)) :], target
