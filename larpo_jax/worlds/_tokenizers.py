"""Tokenizers of worlds, made where they are needed: no file is read."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def whole(pieces: Iterable[str], pattern: str) -> PreTrainedTokenizerFast:
  """One token a piece, with <pad>, <eos> and <unk>; texts are cut where the pattern matches.

  Joined, the pieces of a text are the text.
  """
  vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *pieces])}
  made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
  made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
  made.decoder = decoders.Fuse()
  return PreTrainedTokenizerFast(
    tokenizer_object=made,
    pad_token="<pad>",
    eos_token="<eos>",
    unk_token="<unk>",
    clean_up_tokenization_spaces=False,
    model_max_length=1024,
  )
