"""A reward model from a config to a reward: trained on pairs, exported, asked for scores."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_checkpoint
from tiny_rounds import StopsAt

from larpo_jax import config as config_lib
from larpo_jax import loop, preemption, sharding, train
from larpo_jax.data import batching, dataset
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.models import heads, huggingface
from larpo_jax.rewards import models
from larpo_jax.scorers import rewards

ROOT = pathlib.Path(__file__).parent.parent
QUICK = {"xla_backend_optimization_level": 0}
LIMITS = dict(max_prompt=24, max_response=12)
KIND = "AutoModelForSequenceClassification"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return tiny_checkpoint.make(tmp_path_factory.mktemp("checkpoint"))


def make_config(checkpoint, directory, seed):
  """The page on pairs that a few steps tell apart."""
  path = ROOT / "experiments" / "rewards" / "bradley_terry.py"
  spec = importlib.util.spec_from_file_location("page", path)
  page = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(page)
  draw = np.random.default_rng(seed)
  for split, count in (("train", 32), ("test", 16)):
    rows = [
      dict(prompt=f"ask {draw.integers(1000)}", chosen=f"ab {i}", rejected=f"zy {i}")
      for i in range(count)
    ]
    (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = page.get_config("smoke")
  config.model.path = str(checkpoint)
  config.seed = seed % 1000
  config.steps = 12
  config.data.update(LIMITS)
  config.data.reader = dict(name="readers.pairs")
  config.data.train.path, config.data.test.path = (
    str(directory / f"{split}.jsonl") for split in ("train", "test")
  )
  config.optimizer.learning_rate = 1e-2
  config.optimizer.schedule = "constant"
  config.mesh = dict(data=2, fsdp=2, tensor=2)
  config.checkpoint.every = 4
  config.reference.cache_dir = str(directory / "cache")
  return config_lib.validate(config)


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory, module_seed):
  """The config and the workdir of a run."""
  directory = tmp_path_factory.mktemp("trained")
  config = make_config(checkpoint, directory, module_seed)
  train.run(config, str(directory / "run"))
  return config, directory / "run"


def scores(path, prompts, responses, **how):
  return models.scalar(prompts, responses, path=str(path), **dict(chat=True, **LIMITS) | how)


def rows_of(workdir, split="test"):
  lines = (workdir.parent / f"{split}.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_run_learns_to_tell_the_chosen_and_says_so(trained, capsys):
  config, workdir = trained
  summary = json.loads((workdir / "results" / "summary.json").read_text())
  assert summary["after"]["score/accuracy"] > 0.9
  assert set(summary["after"]) == {
    f"score/{name}" for name in ("accuracy", "ndcg", "mrr", "kendall_tau")
  }, "nothing is said of a reference or of text"
  train.run(config, str(workdir))
  assert "preference accuracy, reward model" in capsys.readouterr().out
  rows = rows_of(workdir)
  asked = [row["prompt"] for row in rows], [[row["chosen"], row["rejected"]] for row in rows]
  found = scores(workdir / "export", *asked)
  assert np.mean(found[:, 0] > found[:, 1]) == pytest.approx(summary["after"]["score/accuracy"])


def test_a_stopped_run_ends_with_the_same_bits(trained, tmp_path):
  config, workdir = trained
  with pytest.raises(loop.Preempted):
    train.run_guarded(config, str(tmp_path), StopsAt(8))
  assert not (tmp_path / "export").exists()
  train.run_guarded(config, str(tmp_path), preemption.Guard())
  ends = [
    safetensors.numpy.load_file(place / "export" / "model.safetensors")
    for place in (tmp_path, workdir)
  ]
  jax.tree.map(np.testing.assert_array_equal, *ends)


def test_transformers_reads_the_export_with_the_same_scores(trained, torch_peer):
  import transformers

  _, workdir = trained
  path = workdir / "export"
  peer = getattr(transformers, KIND).from_pretrained(path, attn_implementation="eager")
  assert type(peer).__name__ == "LlamaForSequenceClassification"
  assert peer.config.num_labels == 1
  words = transformers.AutoTokenizer.from_pretrained(path)
  prompts, answers = ["ask 1", "q"], [["ab", "zy"], ["", "a longer"]]
  turns = lambda q, a: [dict(role="user", content=q), dict(role="assistant", content=a)]  # noqa: E731
  texts = [
    words.apply_chat_template(turns(question, answer), tokenize=False)
    for question, row in zip(prompts, answers)
    for answer in row
  ]
  given = words(texts, add_special_tokens=False, padding=True, return_tensors="pt")
  with torch_peer.no_grad():
    wanted = peer(given["input_ids"], attention_mask=given["attention_mask"]).logits.numpy()
  np.testing.assert_allclose(scores(path, prompts, answers).ravel(), wanted.ravel(), 1e-4, 1e-4)


@pytest.mark.parametrize("chat", [True, False])
def test_a_reward_reads_texts_as_training_reads_rows(chat, trained, tmp_path, seed):
  """Prompts and answers below, at and above the limits."""
  _, workdir = trained
  draw = np.random.default_rng(seed)
  word = lambda low, high: "".join(draw.choice(list("abc d"), draw.integers(low, high)))  # noqa: E731
  rows = [
    dict(prompt=f"p{word(0, 40)}", chosen=f"c{word(0, 20)}", rejected=f"r{word(0, 20)}")
    for _ in range(7)
  ]
  (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  model, params, _ = heads.load(workdir / "export")
  data = dataset.build(
    tmp_path / "rows.jsonl", reader=dict(name="readers.pairs"),
    tokenizer=tokenizers.load(workdir / "export"), cache=tmp_path / "cache", chat=chat, **LIMITS,
  )  # fmt: skip
  batch = next(batching.batches(data, batch_size=8, shuffle=False, epochs=1))
  score = jax.jit(rewards.scalar, static_argnums=0, compiler_options=QUICK)
  wanted = score(model, params, batch).sequence[:7]
  asked = [row["prompt"] for row in rows], [[row["chosen"], row["rejected"]] for row in rows]
  found = scores(workdir / "export", *asked, chat=chat)
  np.testing.assert_allclose(found, wanted, 1e-4, 1e-4)


def test_an_export_says_how_texts_are_read_for_it(trained, tmp_path):
  """Unless the caller says otherwise."""
  _, workdir = trained
  path = workdir / "export"
  asked = ["ask 1 of many that are longer than it reads"], [["ab and so on and on", "zy"]]
  found = models.scalar(*asked, path=str(path))
  np.testing.assert_array_equal(found, scores(path, *asked))
  other = models.scalar(*asked, path=str(path), max_response=64)
  np.testing.assert_array_equal(other, scores(path, *asked, max_response=64))
  assert other[0, 0] != found[0, 0]
  assert other[0, 1] == found[0, 1]
  copy = shutil.copytree(path, tmp_path / "copy")
  (copy / "reading.json").write_text(json.dumps({"max_promt": 24}))
  with pytest.raises(ValueError, match=r"reading\.json holds other settings"):
    models.scalar(*asked, path=str(copy))
  (copy / "reading.json").unlink()
  wanted = scores(path, *asked, chat=False, max_prompt=512, max_response=512)
  np.testing.assert_array_equal(models.scalar(*asked, path=str(copy)), wanted)


def test_scores_depend_on_the_text_alone(trained, seed):
  """Not on what else is asked, in which order and how many at a time; few shapes are compiled."""
  _, workdir = trained
  draw = np.random.default_rng(seed)
  answers = ["a" * draw.integers(0, 40) for _ in range(12)]
  ask = lambda texts, **how: scores(  # noqa: E731
    workdir / "export", ["q"], [list(texts)], max_response=64, **how
  )[0]
  found = ask(answers)
  assert found.dtype == np.float32
  before = models._score._cache_size()
  order = draw.permutation(12)
  np.testing.assert_array_equal(ask([answers[i] for i in order]), found[order])
  assert models._score._cache_size() == before
  np.testing.assert_allclose(ask(answers, batch_size=5), found, 1e-4, 1e-5)
  assert models._score._cache_size() <= before + 2  # 32 and 64 tokens
  assert scores(workdir / "export", ["q", "r"], [[], []]).shape == (2, 0)


def test_what_is_no_reward_model_is_refused(checkpoint, trained, tmp_path):
  with pytest.raises(ValueError, match="no score head"):
    scores(checkpoint, ["q"], [["a"]])
  with pytest.raises(FileNotFoundError, match=r"no config\.json"):
    scores(tmp_path / "nowhere", ["q"], [["a"]])
  path = trained[1] / "export"
  with pytest.raises(ValueError, match="1 prompts but 2"):
    scores(path, ["q"], [["a"], ["b"]])
  with pytest.raises(ValueError, match="batch_size=0"):
    scores(path, ["q"], [["a"]], batch_size=0)
  with pytest.raises(ValueError, match="cannot read a response: no_tokens"):
    scores(path, ["q"], [[""]], eos=False, chat=False)


def begin(directory, seed, **options):
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  rules = {"embed": "fsdp", "vocab": "tensor"}
  return heads.begin(directory, jax.random.key(seed), mesh=mesh, rules=rules, **options)


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_models_checkpoint_gets_a_fresh_head(tied, tmp_path, seed):
  path = tiny_checkpoint.make(tmp_path / "model", tie_word_embeddings=tied)
  model, params, config = begin(path, seed)
  wanted = huggingface.load(path)[1]
  wanted.pop("head", None)
  jax.tree.map(np.testing.assert_array_equal, params["transformer"], wanted)
  assert params["score"].get_value().shape == (config.hidden_size, 1)
  assert 0 < np.std(params["score"].get_value()) < 0.1
  assert model == heads.abstract(config)[0]
  other = begin(path, seed + 1)[1]["score"].get_value()
  assert (np.asarray(other) != params["score"].get_value()).all()
  # What is written goes on as it is.
  heads.save(tmp_path / "reward", params, config)
  again = begin(tmp_path / "reward", seed + 1)[1]
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_classifier_of_several_labels_is_no_start(tmp_path):
  config = dataclasses.replace(begin(tiny_checkpoint.make(tmp_path / "a"), 0)[2], num_labels=3)
  heads.save(tmp_path / "b", heads.create(config, jax.random.key(0))[1], config)
  with pytest.raises(ValueError, match="has 3 labels"):
    begin(tmp_path / "b", 0)
  with pytest.raises(ValueError, match="has 3 labels"):
    scores(tmp_path / "b", ["q"], [["a"]])


@pytest.mark.parametrize("ends", [1, [1, 2]])
def test_an_end_that_pads_too_is_not_taken_for_padding(ends, torch_peer, tmp_path, seed):
  import transformers

  path = tiny_checkpoint.make(tmp_path / "a", pad_token_id=1, eos_token_id=ends)
  model, params, config = begin(path, seed)
  heads.save(tmp_path / "b", params, config)
  peer = getattr(transformers, KIND).from_pretrained(tmp_path / "b", attn_implementation="eager")
  tokens = np.asarray([[9, 8, 7, 1]], np.int32)
  with torch_peer.no_grad():
    wanted = peer(torch_peer.tensor(tokens, dtype=torch_peer.long)).logits.numpy()
  net = heads.nnx.merge(model, params)
  found = net(tokens[None], np.arange(4)[None, None], np.ones((1, 1, 4), bool))
  np.testing.assert_allclose(found[0], wanted, 1e-4, 1e-5)
