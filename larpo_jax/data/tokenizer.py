"""A Hugging Face tokenizer and what the data pipeline must know of it."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import os
import re
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from larpo_jax.data import hub, templates
from larpo_jax.data.problems import BadRow

MARK = "\ue000"  # private use: opens a stand-in for a special token's name in somebody's text
_STANDINS = 0xF0000  # private use plane: one character for each special token
_PROBE = "probe"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """What the ids of a tokenizer mean."""

  tokenizer: PreTrainedTokenizerBase
  pad: int  # fills places that no mask selects
  eos: int | None
  bos: int | None
  begin: tuple[int, ...]  # what the tokenizer itself puts before a plain text
  special: tuple[str, ...]  # names that stand for one id wherever they occur, longest first

  @functools.cached_property
  def turn_end(self) -> int | None:
    """The id that ends an assistant's turn: EOS where the chat template writes it, else the special
    token that it writes, else None. Tries the template; ValueError where there is none that works.
    """
    return _turn_end(self.tokenizer, self.eos)

  def end(self, chat: bool) -> int | None:
    """The id that ends a response, in a conversation or after a plain text."""
    return self.turn_end if chat and self.turn_end is not None else self.eos


def load(path: str | os.PathLike, *, chat_template: str = "") -> PreTrainedTokenizerBase:
  """Reads a tokenizer from a directory or a hub id; no remote code.

  chat_template replaces the tokenizer's own: the template, or the name of a file that holds it.
  Raises FileNotFoundError or ValueError that names what is missing.
  """
  name = os.path.expanduser(os.fspath(path))
  local = os.path.isdir(name)
  if local and not any(
    os.path.exists(os.path.join(name, file)) for file in ("tokenizer.json", "tokenizer.model")
  ):
    raise FileNotFoundError(f"no tokenizer.json in {name}: copy the tokenizer's files there")
  if not local:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
      raise FileNotFoundError(f"no such tokenizer directory: {name!r}; set tokenizer.path")
    hub.require(name)
  try:
    tokenizer = AutoTokenizer.from_pretrained(
      name, local_files_only=local, trust_remote_code=False, token=hub.token()
    )
  except Exception as error:  # the library has no common base class for what it raises
    if local:
      raise ValueError(f"the tokenizer in {name} cannot be read: {error}") from None
    raise hub.missing(name, error) from None
  if chat_template:
    if os.path.isfile(chat_template):
      with open(chat_template, encoding="utf-8") as file:
        chat_template = file.read()
    tokenizer.chat_template = chat_template
  return tokenizer


def describe(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
  """Looks up what the ids mean; ValueError where neither a pad nor an EOS token is set.

  Without a pad token EOS pads: masks come from lengths, so no one reads what pads.
  """
  eos, bos, pad = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id
  if pad is None and eos is None:
    raise ValueError(
      f"the tokenizer {tokenizer.name_or_path!r} has neither a pad nor an EOS token: set"
      " eos_token in its tokenizer_config.json"
    )
  special = {str(token) for token in tokenizer.all_special_tokens}
  special |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
  plain = tokenizer("a", add_special_tokens=False)["input_ids"]
  whole = tokenizer("a")["input_ids"]
  at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
  return Vocabulary(
    tokenizer=tokenizer,
    pad=eos if pad is None else pad,
    eos=eos,
    bos=bos,
    begin=tuple(whole[:at]),
    special=tuple(sorted(special - {""}, key=lambda name: (-len(name), name))),
  )


def encode(vocabulary: Vocabulary, texts: Sequence[str], *, rendered: bool) -> list[list[int]]:
  """Ids of texts, nothing put before or after.

  What a template rendered may hold special tokens, except in its `shield`ed parts; in plain text
  the name of a special token is a text like any other and never becomes its id.
  """
  if not texts:
    return []
  tokenizer = vocabulary.tokenizer
  options: dict[str, Any] = dict(add_special_tokens=False, verbose=False)
  if not rendered:
    return tokenizer(list(texts), split_special_tokens=True, **options)["input_ids"]
  plain = [text for text in texts if MARK not in text]
  encoded = iter(tokenizer(plain, **options)["input_ids"] if plain else [])
  return [_pieces(vocabulary, text) if MARK in text else next(encoded) for text in texts]


def shield(vocabulary: Vocabulary, value: Any) -> Any:
  """A text, or whatever holds texts, with a stand-in for every special token's name."""
  if isinstance(value, str):
    names = (*vocabulary.special, MARK)
    if not any(name in value for name in names):
      return value
    found = re.compile("|".join(map(re.escape, names)))
    return found.sub(lambda match: MARK + chr(_STANDINS + names.index(match[0])), value)
  if isinstance(value, list):
    return [shield(vocabulary, each) for each in value]
  if isinstance(value, dict):
    return {shield(vocabulary, key): shield(vocabulary, each) for key, each in value.items()}
  return value


def _pieces(vocabulary: Vocabulary, text: str) -> list[int]:
  """Ids of a rendered text with stand-ins: each is what the name's letters are."""
  names = (*vocabulary.special, MARK)
  ids: list[int] = []
  for piece in re.split(f"({MARK}.)", text):
    standin = piece.startswith(MARK) and len(piece) == 2
    piece = names[ord(piece[1]) - _STANDINS] if standin else piece
    ids += vocabulary.tokenizer(
      piece, add_special_tokens=False, split_special_tokens=standin, verbose=False
    )["input_ids"]
  return ids


def _turn_end(tokenizer: PreTrainedTokenizerBase, eos: int | None) -> int | None:
  """EOS if the template ends an assistant's turn with it, else the special token that does."""
  turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}]
  templates.require(tokenizer)
  try:
    text = templates.render(tokenizer, turns, None, generation=False)
  except BadRow as error:
    raise ValueError(f"the chat template does not work: {error.detail}") from None
  ids = tokenizer(text.rpartition(_PROBE)[2], add_special_tokens=False)["input_ids"]
  special = set(tokenizer.all_special_ids)
  special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
  return eos if eos in ids else next((i for i in ids if i in special), None)


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
  """A hash of all that decides which ids a text gets."""
  backend = getattr(tokenizer, "backend_tokenizer", None)
  if backend is None:
    state: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
  else:
    state = json.loads(backend.to_str())
    state["truncation"] = state["padding"] = None  # whoever used it last may have left them set
  names = {key: str(value) for key, value in sorted(tokenizer.special_tokens_map.items())}
  text = json.dumps([state, names, tokenizer.chat_template], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
