"""Tokenizers that lack something, and templates that want too much."""

import time

import pytest
from tiny_tokenizers import TEMPLATE, conversation, make

from larpo_jax.data import dataset, templates
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.candidates import Policy
from larpo_jax.data.problems import BadRow

PAIR = dict(prompt="good?\n", chosen="yes", rejected="no")
CHAT = dict(PAIR, prompt=conversation("good?"))
LOOP = "{% for i in range(99999) %}" * 3


def build(tmp_path, tokenizer, row=PAIR, **options):
  import json

  path = tmp_path / "rows.jsonl"
  path.write_text(json.dumps(row))
  sizes = dict(max_prompt=16, max_response=16, cache=tmp_path / "cache")
  return dataset.build(
    path, reader=dict(name="readers.pairs"), tokenizer=tokenizer, **sizes | options
  )


def test_without_a_pad_token_eos_pads_and_is_trained_on_all_the_same(tmp_path):
  tokenizer = make(pad=None)
  data = build(tmp_path, tokenizer)
  batch = next(dataset.batches(data, batch_size=1, shuffle=False, epochs=1))
  assert data.pad == data.end == tokenizer.eos_token_id
  for k in range(2):
    ids, mask = batch.response[0, k], batch.response_mask[0, k]
    assert (ids[mask > 0] == tokenizer.eos_token_id).sum() == 1
    assert (ids[mask == 0] == tokenizer.eos_token_id).all()


def test_without_an_eos_token_responses_cannot_end(tmp_path):
  tokenizer = make(eos=None, template=None)
  with pytest.raises(ValueError, match="set eos_token"):
    build(tmp_path, tokenizer)
  assert len(build(tmp_path, tokenizer, eos=False)) == 1


def test_without_pad_and_eos_nothing_works(tmp_path):
  with pytest.raises(ValueError, match="neither a pad nor an EOS token"):
    build(tmp_path, make(eos=None, pad=None, template=None))


def test_a_template_is_needed_only_for_conversations(tmp_path):
  tokenizer = make(template=None)
  assert len(build(tmp_path, tokenizer)) == 1
  with pytest.raises(ValueError, match=r"no chat template.*tokenizer\.chat_template"):
    build(tmp_path, tokenizer, CHAT)
  tokenizer.save_pretrained(tmp_path / "tokenizer")
  given = tokenizers.load(tmp_path / "tokenizer", chat_template=TEMPLATE)
  assert len(build(tmp_path, given, CHAT)) == 1


def test_a_tokenizer_that_is_not_there(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
    tokenizers.load(tmp_path)
  with pytest.raises(FileNotFoundError, match="no such tokenizer directory"):
    tokenizers.load(tmp_path / "nowhere")
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(ValueError, match="cannot be read"):
    tokenizers.load(tmp_path)


@pytest.mark.parametrize("name", ["max_prompt", "max_response"])
def test_no_room_is_an_error(name):
  with pytest.raises(ValueError, match=f"{name} is 0: leave room"):
    Policy(**dict(max_prompt=4, max_response=4) | {name: 0})


def test_what_is_misspelt_lists_what_there_is(tmp_path):
  with pytest.raises(ValueError, match="overlong is one of"):
    build(tmp_path, make(), overlong="truncat")
  with pytest.raises(ValueError, match=r"max_respons .*max_response"):
    build(tmp_path, make(), max_respons=4)


@pytest.mark.parametrize(
  "template",
  [
    "{{ 'A' * 10**9 }}",
    "{{ 'A' * 2000000 }}",
    "{% set x = messages[0]['role'] * 10**8 %}",
    LOOP + "{% endfor %}" * 3,
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
  ],
)
def test_templates_that_eat_the_machine_are_refused(template):
  started = time.monotonic()
  with pytest.raises(ValueError, match="refused"):
    templates.require(make(template=template))
  assert time.monotonic() - started < 40  # a second or two on a machine that is not busy


@pytest.mark.parametrize(
  "template",
  [
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{{ messages.append(1) }}",
    "{% for i in range(10**7) %}{% endfor %}",
    "{% nonsense %}",
  ],
)
def test_templates_that_reach_outside_are_refused(template, tmp_path):
  with pytest.raises((ValueError, BadRow), match="template"):
    build(tmp_path, make(template=template), CHAT)
