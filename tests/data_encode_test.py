"""Token ids against other people's: transformers' templates, TRL's split, and the text itself."""

from collections import Counter
import types

import numpy as np
import pytest
from tiny_tokenizers import CHATML, TEMPLATE, conversation, make

from larpo_jax.data import encode, readers
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.candidates import Policy
from larpo_jax.data.problems import BadRow

LETTERS = [*"abcdefgh  \n.?!:017+", "é", "😀", "the ", "answer", "<|user|>", "<b>"]
KINDS = {
  "usual": dict(),
  "pad is eos": dict(pad="<eos>"),
  "no pad": dict(pad=None),
  "no bos": dict(bos=None),
  "bos is eos": dict(bos="<eos>"),
  "chatml": dict(eos="<|im_end|>", bos=None, template=CHATML, extra=("<|im_start|>",)),
  "turn end is not eos": dict(template=CHATML, extra=("<|im_start|>", "<|im_end|>"), bos=None),
  "no end": dict(template=TEMPLATE.replace("{{ eos_token }}", "")),
  "two ends": dict(template=TEMPLATE.replace("{{ eos_token }}", "{{ eos_token }}{{ eos_token }}")),
  "no generation": dict(template=TEMPLATE.split("{% if add_generation")[0]),
  "bos each turn": dict(
    template="{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}{% endif %}"
    "[{{ m['content'] }}]{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
  ),
}


def run(example, tokenizer, notes=None, **policy):
  """One example through render, tokenize and assemble."""
  limits = Policy(**dict(max_prompt=10**6, max_response=10**6) | policy)
  vocabulary = tokenizers.describe(tokenizer)
  notes = Counter() if notes is None else notes
  rendered = encode.render(example, vocabulary, limits, notes)
  [ids] = encode.tokenize([rendered], vocabulary, limits)
  return encode.assemble(rendered, ids, vocabulary, limits, notes)


def words(rng, least=1, most=12):
  """Some text that is not only white space and does not start or end in any."""
  drawn = "".join(rng.choice(LETTERS, rng.integers(least, most)))
  return f"x{drawn}y"


def lists(rng, chat, K=3):
  prompt = words(rng) + "\n"
  responses = [f"{words(rng)}{k}" for k in range(K)]
  labels = [float(k) for k in range(K)]
  if chat:
    turns = conversation(*(words(rng) for _ in range(2 * rng.integers(0, 2) + 1)))
    return readers.Example(turns, [conversation("", r)[1:] for r in responses], labels, ranked=True)
  return readers.Example(prompt, responses, labels, ranked=True)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_end_is_trained_on_and_bos_stands_first_only(kind, chat, seed):
  rng = np.random.default_rng(seed)
  tokenizer = make(**KINDS[kind])
  vocabulary = tokenizers.describe(tokenizer)
  end = vocabulary.end(chat)
  expected = "<|im_end|>" if kind == "turn end is not eos" and chat else tokenizer.eos_token
  assert end == tokenizer.convert_tokens_to_ids(expected)
  for _ in range(10):
    example = lists(rng, chat)
    row = run(example, tokenizer)
    for ids, mask in zip(row.responses, row.masks):
      assert ids[-1] == end
      assert mask[-1]  # trained on, whether or not it pads
      assert np.sum(ids[mask] == end) == 1
      if vocabulary.bos not in (None, vocabulary.eos):
        at = np.flatnonzero(np.concatenate([row.prompt, ids]) == vocabulary.bos)
        assert kind == "bos each turn" or not chat or at.tolist() == [0]
        assert vocabulary.bos not in ids
    steps = run(example, tokenizer, eos=False)
    for ids, longer in zip(steps.responses, row.responses):
      assert ids.tolist() == longer[:-1].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_is_what_its_template_makes_of_it(kind, seed):
  rng = np.random.default_rng(seed)
  tokenizer = make(**KINDS[kind])
  end = tokenizers.describe(tokenizer).turn_end
  for _ in range(10):
    example = lists(rng, chat=True)
    # Without the names of special tokens: what becomes of them has a test of its own.
    example = readers.Example(*_plain(example[:2]), *example[2:])
    row = run(example, tokenizer)
    prompt = tokenizer.apply_chat_template(
      example.prompt, add_generation_prompt=True, tokenize=True
    )
    assert row.prompt.tolist() == prompt["input_ids"]
    for ids, response in zip(row.responses, example.responses):
      whole = tokenizer.apply_chat_template(example.prompt + response, tokenize=True)["input_ids"]
      mine = [*row.prompt.tolist(), *ids.tolist()]
      if kind == "no end":
        assert mine == [*whole, tokenizer.eos_token_id]
      else:
        assert mine == whole[: len(mine)]
        assert not tokenizer.decode(whole[len(mine) :]).replace(tokenizer.decode([end]), "").strip()


def _plain(value):
  """Whatever it is, without the names of special tokens."""
  if isinstance(value, str):
    return value.replace("<|user|>", "-")
  if isinstance(value, dict):
    return {key: _plain(entry) for key, entry in value.items()}
  return type(value)(map(_plain, value))


@pytest.mark.parametrize("chat", [False, True])
def test_boundaries_are_those_of_trl(chat, trl_peer, seed):
  """TRL's own preparation, where it is right: no special names in texts, nothing after EOS."""
  from datasets import Dataset

  rng = np.random.default_rng(seed)
  tokenizer = make()
  examples = []
  for _ in range(20):
    example = lists(rng, chat, K=2)
    if not chat:  # prompts that merge with what follows, too
      example = example._replace(prompt=f"{example.prompt} que", responses=["stion 1", words(rng)])
    examples.append(readers.Example(*_plain(example[:2]), *example[2:]))
  rows = [dict(prompt=e.prompt, rejected=e.responses[0], chosen=e.responses[1]) for e in examples]
  trainer = types.SimpleNamespace(_tokenizer=tokenizer)
  options = types.SimpleNamespace(
    dataset_num_proc=None, max_length=None, truncation_mode="keep_start"
  )
  prepare = trl_peer.DPOTrainer._prepare_dataset
  found = prepare(trainer, Dataset.from_list(rows), tokenizer, options, "train")
  merged = 0
  for example, theirs in zip(examples, found):
    notes = Counter()
    mine = run(example, tokenizer, notes)
    merged += notes["merged"]
    assert mine.prompt.tolist() == theirs["prompt_ids"]
    assert mine.responses[0].tolist() == theirs["rejected_ids"]
    assert mine.responses[1].tolist() == theirs["chosen_ids"]
  assert chat or merged


def test_merges_across_the_boundary_are_counted_and_nothing_is_lost():
  tokenizer = make(bos=None)
  merging = readers.Example("what is the que", ["stion and answer", " good", "x"], [2.0, 1.0, 0.0])
  notes = Counter()
  row = run(merging, tokenizer, notes)
  alone = tokenizer("what is the que", add_special_tokens=False)["input_ids"]
  assert notes["merged"] == 1
  assert len(row.prompt) < len(alone)
  for ids, mask, response in zip(row.responses, row.masks, merging.responses):
    assert tokenizer.decode([*row.prompt, *ids[:-1]]) == f"what is the que{response}"
    assert tokenizer.decode(ids[mask][:-1]).endswith(response)
  # What is only the prompt's is not trained on where it did not merge.
  assert tokenizer.decode(row.responses[1][row.masks[1]][:-1]) == " good"
  apart = run(merging, tokenizer, boundary="apart")
  assert apart.prompt.tolist() == alone
  assert all(mask.all() for mask in apart.masks)


@pytest.mark.parametrize("chat", [False, True])
def test_names_of_special_tokens_in_texts_stay_text(chat):
  tokenizer = make()
  special = set(tokenizer.all_special_ids) | set(range(6))
  evil = "a <eos> b<bos><|assistant|>c<pad> \ue000 \ue000\U000f0000 <eos>!"
  bland = "a good answer"

  def counts(text):
    prompt, response = (conversation(text), conversation("", text)[1:]) if chat else (text, text)
    row = run(readers.Example(prompt, [response], [1.0]), tokenizer)
    return [sum(int(i) in special for i in ids) for ids in (row.prompt, *row.responses)], row

  (evil_counts, row), (bland_counts, _) = counts(evil), counts(bland)
  assert evil_counts == bland_counts
  assert evil in tokenizer.decode(row.prompt)
  assert tokenizer.decode(row.responses[0][:-1]) == evil
  assert np.sum(row.responses[0] == tokenizer.eos_token_id) == 1


def test_an_end_that_the_writer_put_is_put_once():
  tokenizer, notes = make(), Counter()
  row = run(readers.Example("good?\n", ["yes<eos>", "no"], [1.0, 0.0]), tokenizer, notes)
  assert tokenizer.decode(row.responses[0]) == "yes<eos>"
  assert np.sum(row.responses[0] == tokenizer.eos_token_id) == 1
  assert notes["eos_in_text"] == 1


def test_bare_text_is_trained_on_whole_with_or_without_bos():
  for bos in ("<bos>", None):
    tokenizer = make(bos=bos)
    row = run(readers.text(dict(text="hello world")), tokenizer)
    ids = tokenizer("hello world", add_special_tokens=False)["input_ids"]
    whole = [*([tokenizer.bos_token_id] if bos else []), *ids, tokenizer.eos_token_id]
    assert [*row.prompt.tolist(), *row.responses[0].tolist()] == whole
    assert len(row.prompt) == 1
    assert row.masks[0].all()


def test_all_assistant_turns_or_the_last():
  tokenizer = make()
  turns = conversation("q1", "a1", "q2", "a2")
  example = readers.Example(turns[:3], [turns[3:]], [1.0])
  last = run(example, tokenizer)
  assert tokenizer.decode(last.responses[0]) == "a2<eos>"
  every = run(example, tokenizer, loss_on="all_assistant")
  assert tokenizer.decode(every.prompt) == "<bos><|user|>q1<|assistant|>"
  assert tokenizer.decode(every.responses[0]) == "a1<eos><|user|>q2<|assistant|>a2<eos>"
  assert tokenizer.decode(every.responses[0][every.masks[0]]) == "a1<eos>a2<eos>"
  # Responses of several turns: what stands between is read, not trained on.
  longer = run(readers.Example(turns[:1], [turns[1:]], [1.0]), tokenizer)
  assert tokenizer.decode(longer.responses[0]) == "a1<eos><|user|>q2<|assistant|>a2<eos>"
  assert tokenizer.decode(longer.responses[0][longer.masks[0]]) == "a2<eos>"


def test_tools_and_a_prompt_of_text_reach_the_template():
  opening = "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}"
  template = TEMPLATE.replace("{{ bos_token }}", opening)
  tokenizer = make(template=template)
  tools = [{"type": "function", "function": {"name": "look_up"}}]
  row = dict(prompt="hello", chosen=conversation("", "x")[1:], rejected=conversation("", "z")[1:])
  example = readers.pairs(row | dict(tools=tools))
  text = tokenizer.decode(run(example, tokenizer).prompt)
  assert text.startswith("<bos>[{")
  assert "look_up" in text
  assert text.endswith("<|user|>hello<|assistant|>")
  bare = run(example._replace(tools=None), tokenizer)
  assert tokenizer.decode(bare.prompt) == "<bos><|user|>hello<|assistant|>"


@pytest.mark.parametrize("K", [2, 3, 5, 9])
def test_long_lists_keep_best_and_worst_evenly_spaced(K, seed):
  rng = np.random.default_rng(seed)
  labels = [float(x) for x in rng.permutation(12)]
  example = readers.Example("p\n", [f"r{x:g}" for x in labels], labels, ranked=True)
  notes = Counter()
  row = run(example, make(), notes, candidates=K)
  assert len(row.labels) == K
  assert {0.0, 11.0} <= set(row.labels)
  assert np.max(np.abs(np.diff(np.sort(row.labels)) - 11 / (K - 1))) < 1
  assert notes["candidates_thinned"] == 12 - K
  assert row.labels == [x for x in labels if x in row.labels]  # in the order that they came in


def test_duplicates_keep_the_first_place_and_the_best_label():
  for first, second in ((1.0, 3.0), (3.0, 1.0)):
    labels = [first, 2.0, second, 2.0]
    example = readers.Example("p\n", ["a", "b", "a", "c"], labels, ranked=True)
    notes = Counter()
    assert run(example, make(), notes).labels == [3.0, 2.0, 2.0]
    assert notes["duplicate_candidates"] == 1
    assert notes["lists_with_ties"] == 1
    # The same for what truncation makes equal.
    example = example._replace(responses=["xa", "b", "xb", "c"])
    cut = run(example, make(), notes, max_response=1)
    assert cut.labels == [3.0, 2.0, 2.0]
    assert notes["candidates_lost"] == 1


@pytest.mark.parametrize("chat", [False, True])
def test_truncation_is_of_the_list_and_leaves_no_response_empty(chat, seed):
  rng = np.random.default_rng(seed)
  tokenizer = make()
  for _ in range(20):
    example = lists(rng, chat, K=4)
    whole = run(example, tokenizer)
    P, R = int(rng.integers(2, 12)), int(rng.integers(1, 12))
    if len({tuple(ids[:R]) for ids in whole.responses}) == 1:
      with pytest.raises(BadRow, match="equal_after_truncation"):
        run(example, tokenizer, max_prompt=P, max_response=R)
      continue
    cut = run(example, tokenizer, max_prompt=P, max_response=R)
    assert len(cut.prompt) == min(P, len(whole.prompt))
    assert cut.prompt[0] == tokenizer.bos_token_id
    assert (
      cut.prompt[1:].tolist() == whole.prompt[len(whole.prompt) - len(cut.prompt) + 1 :].tolist()
    )
    assert len({(*ids, *mask) for ids, mask in zip(cut.responses, cut.masks)}) == len(cut.responses)
    for ids, label in zip(cut.responses, cut.labels):
      full = whole.responses[whole.labels.index(label)]
      assert 0 < len(ids) <= R
      assert ids.tolist() == full[:R].tolist()
      assert (tokenizer.eos_token_id in ids) == (len(full) <= R)  # no end that was not there


def test_dropping_what_is_overlong():
  tokenizer = make(bos=None)
  example = readers.Example("p\n", ["x", "x" * 50, "z"], [2.0, 1.0, 0.0], ranked=True)
  sizes = dict(max_prompt=5, max_response=5, overlong="drop")
  assert run(example, tokenizer, **sizes).labels == [2.0, 0.0]
  with pytest.raises(BadRow, match="overlong"):
    run(example._replace(responses=["x", "x" * 50, "z" * 50]), tokenizer, **sizes)
  with pytest.raises(BadRow, match="overlong"):
    run(example._replace(prompt="p" * 50), tokenizer, **sizes)


def test_a_million_characters_are_cut():
  row = run(readers.Example("a " * 500_000, ["yes"], [1.0]), make(), max_prompt=16)
  assert len(row.prompt) == 16
