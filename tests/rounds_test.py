"""Rounds: what is sampled when, from which prompts, and what each round learns from."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from larpo_jax import config as config_lib
from larpo_jax import inputs, loop, preemption, retrieval, rounds, session, stage, writers
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.rewards import rules

ROOT = pathlib.Path(__file__).parent.parent
PROMPTS, ROUNDS = 6, 3
BEFORE = {"gold/reward": 0.25}


def reward(value):
  return Evaluation({"gold/reward": float(value)}, [])


class StopsAt:
  """A guard that is asked to stop at its n-th poll."""

  def __init__(self, poll):
    self.left = poll

  def poll(self, step):
    self.left -= 1
    return self.left <= 0


@pytest.fixture(scope="module")
def started(tmp_path_factory):
  """A session and its first parameters."""
  path = ROOT / "experiments" / "quickstart.py"
  spec = importlib.util.spec_from_file_location("quickstart", path)
  page = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(page)
  config = page.get_config("smoke")
  config.rounds.update(count=ROUNDS, prompts=PROMPTS, batch_size=4)  # the second is a short one
  config.mesh = dict(data=1, fsdp=1, tensor=-1)  # which leaves batches of any size
  directory = tmp_path_factory.mktemp("session")
  config.reference.cache_dir = str(directory)
  checked = config_lib.validate(config)
  return session.start(checked, directory, writers.Writer(directory), preemption.Guard())


@pytest.fixture
def run(started, tmp_path):
  """The session in a workdir of its own, with settings of the rounds; and the parameters."""

  def make(**settings):
    found, params = started
    config = found.config.copy_and_resolve_references()
    config.rounds.update(settings)
    writer = writers.Writer(tmp_path)
    changes = dict(config=config, workdir=tmp_path, writer=writer, guard=StopsAt(10**9))
    return dataclasses.replace(found, **changes), params

  return make


def lists(data):
  """The rows of tokenised data as plain values, in order."""
  return [
    (row.prompt.tolist(), [ids.tolist() for ids in row.responses], row.labels)
    for row in (data[index] for index in range(len(data)))
  ]


@pytest.fixture
def learnt(monkeypatch):
  """What each round of a run was given to learn from; learning moves the parameters a little."""
  calls = []

  def learn(session, name, params, data, **settings):
    calls.append(dict(name=name, params=params, data=data, settings=settings))
    return jax.tree.map(lambda x: 0.9 * x, params)

  monkeypatch.setattr(stage, "train", learn)
  return calls


@pytest.mark.parametrize(
  ("memory", "remembered"),
  [
    ("none", [[0], [1], [2]]),
    ("previous", [[0], [0, 1], [1, 2]]),
    ("all", [[0], [0, 1], [0, 1, 2]]),
  ],
)
def test_a_round_learns_from_the_rounds_that_are_remembered(memory, remembered, run, learnt):
  here, params = run(memory=memory)
  prompts = inputs.prompts(here)
  rounds.learn(here, params, prompts, rules.brevity, before=BEFORE, evaluate=lambda _: reward(0.25))
  # A finished round's lists are read, not sampled.
  own = [lists(retrieval.retrieve(here, None, n, prompts, None)) for n in range(ROUNDS)]
  assert len({json.dumps(each) for each in own}) == ROUNDS, "each round sampled anew"
  for call, numbers in zip(learnt, remembered, strict=True):
    assert lists(call["data"]) == [row for number in numbers for row in own[number]]


def test_a_round_starts_where_the_last_one_ended_on_the_next_prompts(run, learnt):
  here, params = run()
  prompts = inputs.prompts(here)
  assert len(prompts) == ROUNDS * PROMPTS
  asked = []
  answer = lambda params: asked.append(params) or reward(len(asked))  # noqa: E731
  ended = rounds.learn(here, params, prompts, rules.brevity, before=BEFORE, evaluate=answer)
  starts = [call["params"] for call in learnt]
  leaf = lambda tree: np.asarray(jax.tree.leaves(tree)[0])  # noqa: E731
  for number, found in enumerate([*starts, ended]):
    np.testing.assert_allclose(leaf(found), 0.9**number * leaf(params), rtol=1e-6)
  assert [call["name"] for call in learnt] == ["round_0", "round_1", "round_2"]
  # The start of all is known; each later round's start is evaluated, and train does the end.
  assert [id(each) for each in asked] == [id(each) for each in starts[1:]]
  told = {row["step"]: row for row in writers.read(here.workdir) if row["stage"] == "rounds"}
  assert [told[n]["eval_gold/reward"] for n in range(ROUNDS)] == [0.25, 1.0, 2.0]
  for number in range(ROUNDS):
    text = (here.workdir / "rounds" / str(number) / "candidates.jsonl").read_text()
    questions = [json.loads(line)["prompt"] for line in text.splitlines()]
    mine = range(number * PROMPTS, (number + 1) * PROMPTS)
    wanted = [here.tokenizer.decode(prompts[n].prompt, skip_special_tokens=True) for n in mine]
    assert questions == wanted


def test_lists_are_sampled_by_the_rounds_own_policy_and_scored_by_the_reward(run):
  here, params = run()
  prompts = inputs.prompts(here)
  data = retrieval.retrieve(here, params, 1, prompts, rules.brevity)
  path = here.workdir / "rounds" / "1" / "candidates.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  questions = [line["prompt"] for line in lines]
  answers = [line["responses"] for line in lines]
  np.testing.assert_allclose(
    [line["scores"] for line in lines], rules.brevity(questions, answers), rtol=1e-6
  )
  kept = {tuple(prompts[PROMPTS + n].prompt): line for n, line in enumerate(lines)}
  for prompt, responses, labels in lists(data):
    line = kept[tuple(prompt)]
    np.testing.assert_allclose(labels, line["scores"], rtol=1e-6)
    read = here.tokenizer.batch_decode(responses, skip_special_tokens=True)
    assert read == line["responses"]
  # Another policy and another round say something else.
  other = dataclasses.replace(here, workdir=here.workdir / "other")
  less = jax.tree.map(lambda x: 0.5 * x, params)
  moved = retrieval.retrieve(other, less, 1, prompts, rules.brevity)
  assert lists(moved) != lists(data)


def test_prompts_that_come_again_are_answered_anew(run):
  here, params = run(prompts=ROUNDS * PROMPTS)
  prompts = inputs.prompts(here)
  here.config.rounds.prompts = 2 * len(prompts)  # each prompt twice in a round
  data = retrieval.retrieve(here, params, 0, prompts, rules.brevity)
  answers = {}
  for source, (_, responses, _) in zip(data.sources.tolist(), lists(data)):
    answers.setdefault(source, []).append(responses)
  assert len(answers) == len(prompts)
  assert all(len({json.dumps(each) for each in twice}) == len(twice) for twice in answers.values())


def test_a_key_depends_on_the_seed_and_on_what_it_is_for(run):
  here, _ = run()
  config = here.config.copy_and_resolve_references()
  config.seed += 1
  other = dataclasses.replace(here, config=config)
  keys = [here.key(), here.key(2), here.key(3), here.key(2, 0), here.key(2, 1), other.key(2, 0)]
  assert len({jax.random.key_data(key).tobytes() for key in keys}) == len(keys)
  assert (jax.random.key_data(here.key(2, 1)) == jax.random.key_data(keys[4])).all()


def test_only_what_counts_is_decoded(run):
  here, _ = run()
  (ids,) = here.tokenizer(["12+3"], add_special_tokens=False)["input_ids"]
  mask = np.asarray([[[1, 0, 1, 1]]])
  assert here.decode(np.asarray([[ids]]), mask) == [["1+3"]]


def test_stopped_in_the_middle_of_sampling_a_round_is_sampled_again_the_same(run, tmp_path):
  whole, params = run()
  prompts = inputs.prompts(whole)
  wanted = lists(retrieval.retrieve(whole, params, 0, prompts, rules.brevity))
  text = (tmp_path / "rounds" / "0" / "candidates.jsonl").read_text()
  elsewhere = tmp_path / "stopped"
  stopping = dataclasses.replace(whole, workdir=elsewhere, guard=StopsAt(2))
  with pytest.raises(loop.Preempted, match="the same command resumes"):
    retrieval.retrieve(stopping, params, 0, prompts, rules.brevity)
  assert not list(elsewhere.rglob("*")), "half a round is no round"
  again = dataclasses.replace(stopping, guard=StopsAt(10**9))
  assert lists(retrieval.retrieve(again, params, 0, prompts, rules.brevity)) == wanted
  assert (elsewhere / "rounds" / "0" / "candidates.jsonl").read_text() == text


def test_a_list_of_equal_scores_is_told_and_not_learnt_from(run, tmp_path):
  here, params = run()
  prompts = inputs.prompts(here)
  first = here.tokenizer.decode(prompts[0].prompt, skip_special_tokens=True)

  def partial(questions, answers):
    scores = np.zeros((len(questions), len(answers[0])))
    scores[:, 0] = [question != first for question in questions]
    return scores

  data = retrieval.retrieve(here, params, 0, prompts, partial)
  assert len(data) == PROMPTS - 1
  assert data.report.rejected == {"all_tied": 1}
  assert len((tmp_path / "rounds" / "0" / "candidates.jsonl").read_text().splitlines()) == PROMPTS
  assert retrieval.described(here, 0)["candidates/all_tied"] == pytest.approx(1 / PROMPTS)
  level = lambda questions, answers: np.ones((len(questions), len(answers[0])))  # noqa: E731
  with pytest.raises(ValueError, match="every list has equal rewards"):
    retrieval.retrieve(here, params, 1, prompts, level)
