"""A run around its stages: what is measured of which policy, and which one is exported."""

import dataclasses
import importlib.util
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_checkpoint
from whole_runs import make_pairs

from larpo_jax import config as config_lib
from larpo_jax import evaluation, inputs, preemption, rounds, session, train, writers
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.models import huggingface
from larpo_jax.rewards import rules
from larpo_jax.types import LogProbs
from larpo_jax.worlds import arithmetic

ROOT = pathlib.Path(__file__).parent.parent
PAIRS = 10  # of batches of 8: the last one is padded


def start(page, directory, **changes):
  """The session of a page's smoke config, with changes of it, and its first parameters."""
  spec = importlib.util.spec_from_file_location("page", ROOT / "experiments" / f"{page}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config("smoke")
  for name, value in changes.items():
    if isinstance(value, dict):
      config[name].update(value)
    else:
      config[name] = value
  config.mesh = dict(data=1, fsdp=1, tensor=-1)
  config.reference.cache_dir = str(directory / "cache")
  checked = config_lib.validate(config)
  return session.start(checked, directory, writers.Writer(directory), preemption.Guard())


@pytest.fixture
def pairs(tmp_path):
  """A session on pairs."""
  checkpoint = tiny_checkpoint.make(tmp_path / "checkpoint")
  path = str(make_pairs(tmp_path / "pairs.jsonl", PAIRS))
  where = dict(path=path, split="")
  data = dict(train=where, test=where, reader=dict(prompt="prompt"))
  model = dict(path=str(checkpoint))
  return start("real/preference_pairs", tmp_path, data=data, model=model)


@pytest.fixture
def quick(tmp_path):
  """A session on the world, without a supervised stage."""
  return start("quickstart", tmp_path, supervised=None)


def moved(params):
  return jax.tree.map(lambda x: x + 1, params)


@pytest.mark.parametrize("stage", ["rounds", "align"])
def test_before_is_the_start_and_after_and_export_are_what_was_learnt(
  stage, quick, pairs, tmp_path, monkeypatch
):
  here, params = quick if stage == "rounds" else pairs
  first = lambda tree: float(jax.tree.leaves(tree)[0].ravel()[0])  # noqa: E731
  asked = []

  def evaluate(session, start, params):
    asked.append((start, params))
    return Evaluation({"x": first(params)}, [])

  monkeypatch.setattr(evaluation, "evaluate", evaluate)
  monkeypatch.setattr(train, "_align", lambda session, params, evaluate: moved(params))
  monkeypatch.setattr(rounds, "learn", lambda session, params, *a, **how: moved(params))
  found = train._stages(here, params)
  assert found["before"]["x"] == first(params)
  assert found["after"]["x"] == pytest.approx(first(params) + 1)
  assert [start is params for start, _ in asked] == [True, True], "the KL is to the start"
  exported = safetensors.numpy.load_file(tmp_path / "export" / "model.safetensors")
  huggingface.save(tmp_path / "wanted", moved(params), here.architecture)
  wanted = safetensors.numpy.load_file(tmp_path / "wanted" / "model.safetensors")
  for name, tensor in wanted.items():
    np.testing.assert_array_equal(exported[name], tensor)
  # Asked again, it reads what it knows.
  train._stages(here, params)
  assert len(asked) == 2


def test_results_are_kept_and_the_rows_of_the_rounds_end_with_them(quick, monkeypatch):
  here, params = quick
  found = Evaluation({"x": 3.0}, [])
  monkeypatch.setattr(evaluation, "evaluate", lambda session, start, params: found)
  monkeypatch.setattr(rounds, "learn", lambda session, params, *a, **how: params)
  train._stages(here, params)
  kept = {path.stem for path in (here.workdir / "results").glob("*.json")}
  assert kept == {"before", "after"}
  rows = [row for row in writers.read(here.workdir) if row["stage"] == "rounds"]
  assert rows == [{"stage": "rounds", "step": here.config.rounds.count, "eval_x": 3.0}]


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_test_split_is_ranked_by_its_labels(side, pairs, monkeypatch):
  here, _ = pairs

  def score(params, batch):
    """The policy prefers what the label says, or the other; all but one row of them."""
    odd = jnp.where(batch.row == 0, -1.0, 1.0)[:, None]
    sequence = params["side"] * odd * batch.label
    mask = jnp.asarray(batch.response_mask)
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1)
    return LogProbs(token=mask * (sequence / count)[..., None], mask=mask)

  here = dataclasses.replace(here, score=score)
  monkeypatch.setattr(type(here), "whole", lambda self, params: params)
  start, policy = {"side": jnp.zeros(())}, {"side": jnp.asarray(side)}
  found, lines = evaluation.ranked(here, start, policy)
  assert found["accuracy"] == pytest.approx(np.mean([line["accuracy"] for line in lines]))
  assert sorted(line["row"] for line in lines) == [*range(PAIRS)]
  right = 1 - 1 / PAIRS if side > 0 else 1 / PAIRS
  assert found["accuracy"] == pytest.approx(right)
  assert found["kendall_tau"] == pytest.approx(2 * right - 1)
  # The start against itself is chance, exactly.
  chance = evaluation.ranked(here, policy, policy).numbers
  assert chance["accuracy"] == 0.5
  assert chance["mean_logp/accuracy"] == pytest.approx(right)


def test_a_model_that_is_the_reward_judges_beside_the_world(quick, monkeypatch):
  here, params = quick
  config = here.config.copy_and_resolve_references().unlock()
  config.reward = dict(name="models.scalar", path="somewhere")
  by_name = types.SimpleNamespace(resolve=lambda *_: rules.brevity, find=evaluation.lookup.find)
  monkeypatch.setattr(evaluation, "lookup", by_name)
  found = evaluation.written(here, params, params)
  more = evaluation.written(dataclasses.replace(here, config=config), params, params)
  proxy = {"proxy/reward", "sampled/proxy/reward"}
  assert more.numbers.keys() - found.numbers.keys() == proxy
  assert {name: more.numbers[name] for name in found.numbers} == found.numbers
  for line in more.lines:
    for name, answer in zip(sorted(proxy), line["responses"]):
      assert line[name] == rules.brevity([""], [[answer["text"]]])


def test_the_world_asks_its_own_unseen_problems_and_judges_the_answers(quick, monkeypatch):
  here, params = quick
  texts = lambda data: {tuple(data[i].prompt.tolist()) for i in range(len(data))}  # noqa: E731
  asked = inputs.problems(here, "test", 8, split="test")
  assert not texts(asked) & texts(inputs.problems(here, "shown", 64, split="train"))
  found = evaluation.written(here, params, params).numbers
  assert found["kl"] == pytest.approx(0.0, abs=1e-4)
  names = ("gold/reward", "gold/accuracy", "gold/steps", "style")
  judged = {f"{of}{name}" for of in ("", "sampled/") for name in names}
  assert set(found) == judged | {"length", "finished", "kl", "kl_k3", "kl_stderr"}
  decode = type(here).decode

  def solved(self, ids, mask):
    """The questions as they are, and a right answer to each."""
    questions = [here.tokenizer.decode(asked[i].prompt, skip_special_tokens=True) for i in range(8)]
    if mask.dtype == bool:
      assert decode(self, ids, mask) == [[text] for text in questions]
      return [[text] for text in questions]
    return [[arithmetic.solution(arithmetic.parse(text))] for text in questions]

  monkeypatch.setattr(type(here), "decode", solved)
  found = evaluation.written(here, params, params).numbers
  assert found["gold/reward"] == found["gold/accuracy"] == 1.0


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_implicit_reward_ranks_answers_of_the_start(side, quick, monkeypatch):
  """Of the first problem all answers are worth the same; of the second, one is seen as wrong."""
  here, params = quick
  here.config.evaluate.held_out = 4
  kind, asked = type(here), inputs.problems(here, "test", 8, split="test")
  questions = [here.tokenizer.decode(asked[i].prompt, skip_special_tokens=True) for i in range(8)]
  solved = [arithmetic.solution(arithmetic.parse(text)) for text in questions]
  answers = [[text, "none", text, "none"] for text in solved]
  answers[0] = [solved[0]] * 4
  policies, sample = [], kind.sample

  def sampled(self, policy, *asked, **how):
    policies.append(policy)
    return sample(self, params, *asked, **how)

  def score(params, batch):
    liked = batch.label.at[1, 1].add(2.0)
    mask = jnp.asarray(batch.response_mask).at[..., 0].set(1.0)
    count = jnp.sum(mask, axis=-1)
    return LogProbs(token=mask * (params["side"] * liked / count)[..., None], mask=mask)

  texts = lambda self, ids, mask: answers if mask.dtype != bool else [[q] for q in questions]  # noqa: E731
  monkeypatch.setattr(kind, "sample", sampled)
  monkeypatch.setattr(kind, "decode", texts)
  monkeypatch.setattr(kind, "whole", lambda self, params: params)
  here = dataclasses.replace(
    here, score=lambda params, batch: score(params, jax.tree.map(jnp.asarray, batch))
  )
  start, policy = {"side": jnp.zeros(())}, {"side": jnp.asarray(side)}
  found, lines = evaluation.held_out(here, start, policy)
  assert policies == [start]
  assert [(line["set"], line["row"]) for line in lines] == [
    ("held_out", row) for row in range(1, 8)
  ]
  # Two right and two wrong answers are four pairs, of which the one answer spoils two.
  wanted = [0.5, *[1.0] * 6] if side > 0 else [0.5, *[0.0] * 6]
  assert [line["held_out/accuracy"] for line in lines] == wanted
  assert found["held_out/accuracy"] == pytest.approx(np.mean(wanted))
  chance, lines = evaluation.held_out(here, policy, policy)
  assert chance["held_out/accuracy"] == 0.5
  assert [line["held_out/mean_logp/accuracy"] for line in lines][1:] == wanted[1:]
