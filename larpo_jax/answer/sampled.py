"""Prompts -> responses, batch by batch, into a file that a killed run goes on from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import hashlib
import json
import os
import pathlib
from typing import Any

import jax

from larpo_jax import pretrained, workdir, writers
from larpo_jax.data import encode, fingerprint
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.candidates import Policy
from larpo_jax.data.problems import BadRow
from larpo_jax.data.readers import Example
from larpo_jax.pretrained import Pretrained


def encoded(
  loaded: Pretrained,
  texts: Sequence[str],
  *,
  max_tokens: int,
  chat: bool = True,
  system: str = "",
  overlong: str = "error",
) -> list[list[int]]:
  """The ids of each prompt, as the rounds of a run make them.

  chat makes a text the user's turn under the chat template, after the system's where there is one;
  else it is continued as it stands. overlong says what happens to a prompt that leaves no room for
  max_tokens: "error", or "truncate", which keeps its end, and its BOS. Raises ValueError that names
  the prompt.
  """
  room = loaded.room - max_tokens
  if max_tokens < 1 or room < 1:
    raise ValueError(
      f"max_tokens={max_tokens} has to be at least 1 and to leave room for a prompt: the model was "
      f"made for {loaded.room} tokens"
    )
  if system and not chat:
    raise ValueError("there is no system's turn without the chat template: leave one of them out")
  kept = "truncate" if overlong == "truncate" else "drop"
  policy = Policy(max_prompt=room, max_response=max_tokens, overlong=kept, chat=chat)
  before = [{"role": "system", "content": system}] if system else []
  made = lambda text: [*before, {"role": "user", "content": text}] if chat else text  # noqa: E731
  notes: Counter = Counter()

  def each(step: Callable[..., Any], text: str, *given: Any) -> Any:
    try:
      return step(*given, loaded.vocabulary, policy, notes)
    except BadRow as error:
      told = f"; there is room for {room}: lower max_tokens, or truncate"
      told = told if error.kind == "overlong" else ""
      raise ValueError(f"the prompt {text[:40]!r}: {error.detail}{told}") from None

  rendered = [each(encode.render, text, Example(made(text), [], [])) for text in texts]
  ids = encode.tokenize(rendered, loaded.vocabulary, policy)
  rows = zip(texts, rendered, ids, strict=True)
  return [each(encode.assemble, text, *row).prompt.tolist() for text, *row in rows]


def settings(loaded: Pretrained, prompts: Sequence[Sequence[int]], **how: Any) -> dict[str, Any]:
  """All that answers are a function of, to be told apart by."""
  digest = hashlib.sha256(json.dumps([list(ids) for ids in prompts]).encode()).hexdigest()
  model = fingerprint.weights_digest(loaded.params, loaded.architecture)
  words = tokenizers.digest(loaded.vocabulary.tokenizer)
  return {"model": model, "tokenizer": words, "prompts": digest, **how}


def answers(
  loaded: Pretrained,
  prompts: Sequence[Sequence[int]],
  partial: str | os.PathLike,
  *,
  batch_size: int,
  seed: int,
  chat: bool = True,
  **how: Any,
) -> list[str]:
  """The text of one response to each prompt, special tokens left out.

  What partial already holds is not sampled again; each batch is added to it. how are max_tokens,
  temperature, top_k and top_p. Raises ValueError where partial is of other settings.
  """
  path = pathlib.Path(partial)
  done = _begin(path, settings(loaded, prompts, seed=seed, chat=chat, **how))
  size = loaded.rows(batch_size)
  key = jax.random.key(seed)
  eos = loaded.ends(chat=chat)
  # Whole batches of the whole list, so that where a run was stopped changes no batch.
  feed = pretrained.batches([len(ids) for ids in prompts], size)
  with (
    path.open("a", encoding="utf-8") as file,
    writers.Progress("answer", total=len(prompts), start=len(done), unit="prompt") as progress,
  ):
    for places in feed:
      if all(place in done for place in places):
        continue
      asked = [prompts[place] for place in places]
      drawn = pretrained.sample(loaded, asked, places, key, size=size, eos=eos, **how)
      texts = loaded.vocabulary.tokenizer.batch_decode(drawn, skip_special_tokens=True)
      rows = [{"place": place, "text": text} for place, text in zip(places, texts)]
      file.write("".join(json.dumps(row) + "\n" for row in rows if row["place"] not in done))
      file.flush()
      done = dict(zip(places, texts)) | done
      progress.update(len(done), tokens=sum(map(len, drawn)))
  return [done[place] for place in range(len(prompts))]


def _begin(path: pathlib.Path, given: Mapping[str, Any]) -> dict[int, str]:
  """What the file holds of these settings, which its first line says; a torn line goes."""
  rows = workdir.read_jsonl(path)
  if rows and rows[0] != dict(given):
    other = [name for name, value in given.items() if rows[0].get(name) != value]
    raise ValueError(
      f"{path} holds answers of another {', '.join(other)}: delete it, or give another --output"
    )
  rows = rows or [dict(given)]
  workdir.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
  return {row["place"]: row["text"] for row in rows[1:]}
