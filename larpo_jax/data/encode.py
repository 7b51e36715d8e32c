"""Examples -> token ids: where the prompt ends, where the response ends, what is cut.

A conversation is rendered once, whole, and sliced: the prompt is the longest common prefix of the
prompt's own ids (as sampling will see it) and the whole's, and the response is the rest. Where they
part before the prompt's end (tokens that merge across the boundary, templates that render a prompt
alone otherwise), the response holds the rest of the prompt too, and the row counts as merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from larpo_jax.data import candidates, edits, readers, templates
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.candidates import Policy, Tokens
from larpo_jax.data.problems import BadRow
from larpo_jax.data.readers import Conversation, Example, Text
from larpo_jax.data.tokenizer import Vocabulary


class Span(NamedTuple):
  """A part that is trained on: after what `start` and the whole share, to what `end` shares."""

  start: str
  end: str | None  # None: to the end of the whole


class Rendered(NamedTuple):
  """An example as texts to tokenise."""

  prompt: str
  wholes: list[tuple[str, list[Span]]]
  labels: list[float]
  chat: bool
  ranked: bool
  scores: list[float] | None
  importance: list[float] | None

  def texts(self) -> Iterator[str]:
    """Every text that has to be tokenised."""
    yield self.prompt
    for whole, spans in self.wholes:
      yield whole
      for span in spans:
        yield span.start
        if span.end is not None:
          yield span.end


def render(example: Example, vocabulary: Vocabulary, policy: Policy, notes: Counter) -> Rendered:
  """Thins the list and renders its conversations; raises BadRow."""
  texts = list(readers.texts(example))
  notes["nul_characters"] += sum("\x00" in text for text in texts)
  notes["special_token_names"] += any(name in t for name in vocabulary.special for t in texts)
  example = candidates.thin(candidates.distinct(example, notes), policy.candidates, notes)
  values = (example.prompt, *example.responses)
  chat = example.prompt is not None and (policy.chat or any(not isinstance(v, str) for v in values))
  notes["conversations"] += chat
  ending = vocabulary.tokenizer.eos_token or "\0"
  if policy.eos and any(isinstance(r, str) and r.endswith(ending) for r in example.responses):
    notes["eos_in_text"] += 1  # the writer's own end: it is put as an id, once
    responses = [r.removesuffix(ending) if isinstance(r, str) else r for r in example.responses]
    example = example._replace(responses=responses)
  if not chat:
    prompt = example.prompt or ""
    wholes = [(f"{prompt}{response}", [Span(str(prompt), None)]) for response in example.responses]
    return _rendered(str(prompt), wholes, example, chat=False)
  return _render_chat(example, vocabulary, policy)


def _rendered(
  prompt: str, wholes: list[tuple[str, list[Span]]], example: Example, *, chat: bool
) -> Rendered:
  scores, importance = example.scores, example.importance
  return Rendered(prompt, wholes, example.labels, chat, example.ranked, scores, importance)


def _render_chat(example: Example, vocabulary: Vocabulary, policy: Policy) -> Rendered:
  _ = vocabulary.turn_end  # asked for first, because that tries the template in a process apart
  tools = tokenizers.shield(vocabulary, example.tools)
  prompt = _turns(example.prompt, "user", vocabulary)
  if prompt[-1]["role"] == "assistant":
    raise BadRow("messages", "the prompt ends with the assistant's turn")

  def text(turns: Conversation, generation: bool) -> str:
    return templates.render(vocabulary.tokenizer, turns, tools, generation=generation)

  everything = policy.loss_on == "all_assistant"
  roles = [turn["role"] for turn in prompt]
  first = roles.index("assistant") if everything and "assistant" in roles else len(prompt)
  opening = text(prompt[:first], True)
  wholes = []
  for response in example.responses:
    turns = prompt + _turns(response, "assistant", vocabulary)
    if turns[-1]["role"] != "assistant":
      raise BadRow("messages", f"a response ends with the {turns[-1]['role']}'s turn")
    places = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i >= first]
    places = places if everything else places[-1:]
    spans = [
      Span(
        opening if i == first else text(turns[:i], True),
        text(turns[: i + 1], False) if i + 1 < len(turns) else None,
      )
      for i in places
    ]
    wholes.append((text(turns, False), spans))
  return _rendered(opening, wholes, example, chat=True)


def tokenize(
  rendered: Sequence[Rendered], vocabulary: Vocabulary, policy: Policy
) -> Iterator[dict[str, list[int]]]:
  """The ids of every text of each example; all examples in two calls of the tokenizer."""
  ids: dict[tuple[bool, str], list[int]] = {}
  for chat in (False, True):
    texts = list(dict.fromkeys(t for each in rendered if each.chat == chat for t in each.texts()))
    for text, found in zip(texts, tokenizers.encode(vocabulary, texts, rendered=chat)):
      ids[chat, text] = found if chat else [*vocabulary.begin, *found]
  for each in rendered:
    known = {text: ids[each.chat, text] for text in each.texts()}
    if policy.boundary == "apart" and not each.chat:
      for whole, _ in each.wholes:
        rest = tokenizers.encode(vocabulary, [whole[len(each.prompt) :]], rendered=False)[0]
        known[whole] = known[each.prompt] + rest
    yield known


def assemble(
  rendered: Rendered,
  ids: dict[str, list[int]],
  vocabulary: Vocabulary,
  policy: Policy,
  notes: Counter,
) -> Tokens:
  """Slices and cuts the ids of one example, BOS and end of turn put right; raises BadRow."""
  end = vocabulary.end(rendered.chat)
  prompt = _begin(ids[rendered.prompt], vocabulary, notes)
  wholes, masks = [], []
  for whole, spans in rendered.wholes:
    row = _begin(ids[whole], vocabulary, Counter())
    drop = len(ids[whole]) - len(row)
    mask = np.zeros(len(row) + 1, bool)
    for span in spans:
      start = max(_shared(ids[span.start], ids[whole]) - drop, 0)
      stop = len(row) if span.end is None else _shared(ids[span.end], ids[whole]) - drop
      stop = _finish(row, start, stop, end, span.end is None, policy.eos, rendered.chat)
      mask[start:stop] = True
    wholes.append(row)
    masks.append(mask[: len(row)])
  boundary = min([_shared(prompt, row) for row in wholes], default=len(prompt))
  if rendered.prompt == "" and wholes:
    boundary = max(boundary, 1)  # with no BOS the first token is what the others follow
    boundary = min(boundary, len(wholes[0]) - 1)
  notes["merged"] += boundary < len(prompt)
  if wholes:
    prompt = wholes[0][:boundary]
  if not prompt:
    raise BadRow("no_tokens", "the prompt is of no tokens")
  tokens = Tokens(
    np.asarray(prompt, np.int32),
    [np.asarray(row[boundary:], np.int32) for row in wholes],
    [mask[boundary:] for mask in masks],
    rendered.labels,
    rendered.scores,
    rendered.importance,
  )
  for response in tokens.responses:
    _check_bos(np.concatenate([tokens.prompt, response]), vocabulary)
  tokens = candidates.cut(tokens, policy, notes, bos=vocabulary.bos, ranked=rendered.ranked)
  return edits.mark(tokens) if policy.spans else tokens


def _finish(
  row: list[int], start: int, stop: int, end: int | None, last: bool, ends: bool, chat: bool
) -> int:
  """Puts one `end` where a trained part ends, the last by changing the row; returns its stop."""
  if chat and end in row[start:stop]:
    at = stop - 1 - row[start:stop][::-1].index(end)
    while at > start and row[at - 1] == end:
      at -= 1
    stop = at + 1 if ends else at
    if last:  # what a template writes after the end of the turn, such as "\n", is never sampled
      del row[stop:]
  elif last and ends:
    if end is None:
      raise ValueError(
        "the tokenizer has no EOS token to end a response with: set eos_token in its"
        " tokenizer_config.json, or data.eos=False for responses that are steps"
      )
    row.append(end)
    stop = len(row)
  return stop


def _check_bos(ids: np.ndarray, vocabulary: Vocabulary) -> None:
  """A BOS stands first, or opens a new turn right after an EOS (Llama 2's template)."""
  if vocabulary.bos is None or vocabulary.bos == vocabulary.eos:
    return
  inside = np.flatnonzero(ids[1:] == vocabulary.bos)
  if inside.size and (ids[inside] != vocabulary.eos).any():
    raise BadRow("bos_inside", f"at token {int(inside[0]) + 1}")


def _begin(ids: list[int], vocabulary: Vocabulary, notes: Counter) -> list[int]:
  """A copy with one BOS where a template wrote several at the start."""
  start = 0
  if vocabulary.bos is not None:
    while ids[start : start + 2] == [vocabulary.bos, vocabulary.bos]:
      start += 1
  notes["double_bos"] += start > 0
  return ids[start:]


def _turns(value: Text | None, role: str, vocabulary: Vocabulary) -> Conversation:
  turns = [{"role": role, "content": value}] if isinstance(value, str) else value or []
  return tokenizers.shield(vocabulary, turns)


def _shared(a: list[int], b: list[int]) -> int:
  """How many leading ids are the same."""
  if a == b[: len(a)]:  # as it almost always is
    return len(a)
  return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
