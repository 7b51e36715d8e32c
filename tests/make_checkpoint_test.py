"""A checkpoint made from a few sentences: it learns, and both libraries read it alike."""

import gzip
import json
import pathlib
import re

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from larpo_jax.models import huggingface

SCRIPTS = pathlib.Path(__file__).resolve().parents[1] / "scripts"
OPTIONS = "--batch 8 --steps 24 --vocab 300 --width 32 --layers 2 --window 32 --learning-rate 1e-2"
SMALL = tuple(OPTIONS.split())


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(SCRIPTS)
  import make_checkpoint

  return make_checkpoint


@pytest.fixture
def corpus(tmp_path, seed):
  """Sentences from a handful of words, as text and as questions with answers."""
  generator = np.random.default_rng(seed)

  def sentence():
    who, what = generator.choice(["Ann", "Ben", "Çem"], 2)
    return f"{who} met {what} at {generator.integers(1, 12)} o'clock."

  for split, count in {"train": 120, "test": 20}.items():
    text = [{"text": " ".join(sentence() for _ in range(8))} for _ in range(count)]
    chat = [{"prompt": "Who met whom?\n", "response": sentence()} for _ in range(count)]
    for name, rows in {"pretrain_a": text, "pretrain_b": text[:5], "instruct_sft": chat}.items():
      folder = tmp_path / "data" / name
      folder.mkdir(parents=True, exist_ok=True)
      with gzip.open(folder / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
  return tmp_path / "data"


def test_it_learns_and_both_libraries_read_it_alike(
  script, corpus, tmp_path, seed, capsys, torch_peer
):
  import torch
  import transformers

  out = tmp_path / "out"
  script.main(["--data", str(corpus), "--out", str(out), "--seed", str(seed), *SMALL])
  printed = dict(re.findall(r"perplexity (\w+, \S+): ([0-9.]+)", capsys.readouterr().out))
  for stage in ("pre-training", "instructions"):
    before, after = float(printed[f"before, {stage}"]), float(printed[f"after, {stage}"])
    assert 200 < before < 450  # nothing learned: about as many as the vocabulary
    assert after < before / 3

  tokenizer = AutoTokenizer.from_pretrained(out)
  ids = np.array([tokenizer("Ann met Çem at 3 o'clock.")["input_ids"]])
  assert ids[0, 0] == tokenizer.bos_token_id
  assert tokenizer.decode(ids[0, 1:]) == "Ann met Çem at 3 o'clock."
  graphdef, params, _ = huggingface.load(out)
  model = nnx.merge(graphdef, params)
  places = np.arange(ids.shape[1], dtype=np.int32)[None, None]
  hidden, _ = model(jnp.asarray(ids[:, None]), places, np.ones_like(places, bool))
  peer = transformers.AutoModelForCausalLM.from_pretrained(out)
  with torch.no_grad():
    wanted = peer(torch.tensor(ids)).logits.numpy()
  np.testing.assert_allclose(np.asarray(model.logits(hidden))[:, 0], wanted, atol=2e-5)
  assert peer.generation_config.eos_token_id == tokenizer.eos_token_id


def test_same_seed_and_steps_same_bits(script, corpus, tmp_path):
  for name in ("a", "b"):
    out = str(tmp_path / name)
    script.main(["--data", str(corpus), "--out", out, *SMALL, "--steps", "3", "--layers", "1"])
  files = [tmp_path / name / "model.safetensors" for name in ("a", "b")]
  assert files[0].read_bytes() == files[1].read_bytes()


def test_only_the_answer_counts_and_the_template_agrees(script, corpus):
  text = script.text
  rows = text.read(corpus, "instruct_sft", "train")
  tokenizer = text.train_tokenizer(text.sample({"chat": rows}, 0), 300)
  encoded = text.encode_chat(tokenizer, rows)
  for row, (ids, marks) in zip(rows, encoded):
    counted = [token for token, mark in zip(ids, marks) if mark]
    assert tokenizer.decode(counted) == row["response"] + "<eos>"
    messages = [{"role": "user", "content": row["prompt"]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert sum(marks) == len(ids) - len(prompt)
  windows = text.pack(encoded, 64)
  assert all(len(ids) <= 64 for ids, _ in windows)
  bos = tokenizer.bos_token_id
  assert [i for ids, _ in windows for i in [bos, *ids]] == [i for ids, _ in encoded for i in ids]
  whole = encoded[0][0]
  assert text.pack(encoded[:1], len(whole) - 3)[0][0] == whole[1:-2]  # cut at its end


def test_windows_hold_the_text_in_order(script, corpus):
  text = script.text
  rows = text.read(corpus, "pretrain_*", "train")
  assert len(rows) == 125
  tokenizer = text.train_tokenizer(text.sample({"text": rows}, 0), 300)
  windows = text.cut(text.encode_text(tokenizer, rows), 50)
  joined = tokenizer.decode([token for ids, _ in windows for token in ids])
  assert "<eos>".join(row["text"] for row in rows).startswith(joined[:-10])
  assert {len(ids) for ids, _ in windows} == {50}
  drawn = text.stream(rows, lambda some: text.cut(text.encode_text(tokenizer, some), 50), 1)
  epochs = [[next(drawn)[0] for _ in windows] for _ in range(2)]
  assert epochs[0] != epochs[1]


def test_mistakes_are_named(script, corpus, tmp_path):
  out = ["--out", str(tmp_path / "out")]
  with pytest.raises(FileNotFoundError, match=r"pretrain_\*/train"):
    script.main(["--data", str(tmp_path), *out])
  with pytest.raises(ValueError, match="--vocab 100"):
    script.main(["--data", str(corpus), *out, "--vocab", "100"])
  with pytest.raises(ValueError, match="--width 33"):
    script.main(["--data", str(corpus), *out, "--vocab", "300", "--width", "33"])
