"""Text for make_checkpoint.py: files to rows, a tokenizer, and rows to windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import gzip
import itertools
import json
import pathlib
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
  "{{ bos_token }}{% for turn in messages %}<|{{ turn['role'] }}|>{{ turn['content'] | trim }}"
  "{% if turn['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT = ("text", "prompt", "response")  # the columns that hold it
TOKENIZER_CHARACTERS = 8_000_000  # more text changes few merges
DOCUMENTS_AT_A_TIME = 256  # encoded together, and their windows shuffled together

Row = dict[str, Any]
Marked = tuple[list[int], list[float]]  # token ids, and 1 where a token counts


def read(data: pathlib.Path, pattern: str, split: str) -> list[Row]:
  """The rows of DATA/PATTERN/SPLIT.jsonl or .jsonl.gz; FileNotFoundError where there is none."""
  paths = sorted(data.glob(f"{pattern}/{split}.jsonl*"))
  if not paths:
    raise FileNotFoundError(
      f"no {pattern}/{split}.jsonl or .jsonl.gz in {data}; name its folder by --data or LARPO_DATA"
    )
  rows: list[Row] = []
  for path in paths:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
      rows += map(json.loads, lines)
  return rows


def sample(rows: dict[str, list[Row]], seed: int) -> Iterator[str]:
  """Texts of every stage in random order, enough to train a tokenizer."""
  texts = [row[key] for group in rows.values() for row in group for key in TEXT if key in row]
  length = 0
  for index in np.random.default_rng(seed).permutation(len(texts)):
    yield texts[index]
    length += len(texts[index])
    if length > TOKENIZER_CHARACTERS:
      return


def train_tokenizer(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
  """Byte-level BPE that puts <bos> before a plain text, with a chat template."""
  least = 256 + len(SPECIAL)
  if vocab < least:
    raise ValueError(f"--vocab {vocab} is too small: bytes and special tokens alone are {least}")
  bpe = Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  bpe.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=vocab,
      special_tokens=list(SPECIAL),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  bos = bpe.token_to_id("<bos>")
  bpe.post_processor = processors.TemplateProcessing(
    single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", bos)]
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=bpe,
    pad_token="<pad>",
    bos_token="<bos>",
    eos_token="<eos>",
    chat_template=CHAT_TEMPLATE,
    clean_up_tokenization_spaces=False,
    model_max_length=2048,
  )


def encode_text(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> list[Marked]:
  """Each document and <eos>; every token counts."""
  texts = [row["text"] for row in rows]
  encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
  return [([*ids, tokenizer.eos_token_id], [1.0] * (len(ids) + 1)) for ids in encoded]


def encode_chat(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> list[Marked]:
  """Each instruction by the chat template; what counts is the answer and its <eos>."""
  conversations = [
    [
      {"role": "user", "content": row["prompt"]},
      {"role": "assistant", "content": row["response"]},
    ]
    for row in rows
  ]
  rendered = tokenizer.apply_chat_template(conversations, tokenize=False)
  encoded = tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
  turn = tokenizer.convert_tokens_to_ids("<|assistant|>")
  starts = [ids.index(turn) + 1 for ids in encoded]
  return [(ids, [0.0] * start + [1.0] * (len(ids) - start)) for ids, start in zip(encoded, starts)]


def cut(documents: list[Marked], size: int) -> list[Marked]:
  """The documents end to end, in windows of that size; what is left at the end is dropped."""
  ids = [token for document, _ in documents for token in document]
  marks = [mark for _, counted in documents for mark in counted]
  return [(ids[i : i + size], marks[i : i + size]) for i in range(0, len(ids) - size + 1, size)]


def pack(documents: list[Marked], size: int) -> list[Marked]:
  """Whole conversations, as many to a window as fit in order; one that is longer keeps its start.

  The first <bos> of a window is left out: it is the prompt that the window answers.
  """
  windows: list[Marked] = []
  for ids, marks in documents:
    if windows and len(windows[-1][0]) + len(ids) <= size:
      windows[-1] = (windows[-1][0] + ids, windows[-1][1] + marks)
    else:
      windows.append((ids[1 : size + 1], marks[1 : size + 1]))
  return [window for window in windows if any(window[1])]


def stream(
  rows: list[Row], prepare: Callable[[list[Row]], list[Marked]], seed: int
) -> Iterator[Marked]:
  """Windows without end, each epoch in another order; ValueError where the rows make none."""
  epoch = 0
  while True:
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(rows))
    made = 0
    for start in range(0, len(rows), DOCUMENTS_AT_A_TIME):
      windows = prepare([rows[i] for i in order[start : start + DOCUMENTS_AT_A_TIME]])
      yield from (windows[i] for i in generator.permutation(len(windows)))
      made += len(windows)
    if not made:
      raise ValueError(f"{len(rows)} documents do not fill one window; give more, or less --window")
    epoch += 1


def groups(windows: Iterable[Marked], size: int) -> Iterator[list[Marked]]:
  """That many at a time; the last may be short."""
  windows = iter(windows)
  while group := list(itertools.islice(windows, size)):
    yield group
