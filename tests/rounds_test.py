"""Rounds: what each one starts from, what it learns from, and what lists are built of it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_rounds import PROMPTS, ROUNDS, lists

from larpo_jax import inputs, retrieval, rounds, stage, writers
from larpo_jax.data import grouping, problems, readers, store
from larpo_jax.data.candidates import Tokens
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.rewards import rules

BEFORE = {"gold/reward": 0.25}


def reward(value):
  return Evaluation({"gold/reward": float(value)}, [])


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
  own = [[row for row in rows if len(set(row[2])) > 1] for rows in own]
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


def test_a_key_depends_on_the_seed_and_on_what_it_is_for(run):
  here, _ = run()
  config = here.config.copy_and_resolve_references()
  config.seed += 1
  other = dataclasses.replace(here, config=config)
  keys = [here.key(), here.key(2), here.key(3), here.key(2, 0), here.key(2, 1), other.key(2, 0)]
  assert len({jax.random.key_data(key).tobytes() for key in keys}) == len(keys)
  assert (jax.random.key_data(here.key(2, 1)) == jax.random.key_data(keys[4])).all()


def test_a_list_of_equal_scores_is_told_and_not_learnt_from(run, tmp_path):
  here, params = run()
  prompts = inputs.prompts(here)
  first = here.tokenizer.decode(prompts[0].prompt, skip_special_tokens=True)

  def partial(questions, answers):
    scores = np.zeros((len(questions), len(answers[0])))
    scores[:, 0] = [question != first for question in questions]
    return scores

  data = rounds.build(here, 0, {0: retrieval.retrieve(here, params, 0, prompts, partial)})
  assert len(data) == PROMPTS - 1
  assert data.report.rejected == {"all_tied": 1}
  assert len((tmp_path / "rounds" / "0" / "candidates.jsonl").read_text().splitlines()) == PROMPTS
  assert retrieval.described(here, 0)["candidates/all_tied"] == pytest.approx(1 / PROMPTS)
  level = lambda questions, answers: np.ones((len(questions), len(answers[0])))  # noqa: E731
  tied = retrieval.retrieve(here, params, 1, prompts, level)
  with pytest.raises(ValueError, match="in round 1 every list has equal rewards"):
    rounds.build(here, 1, {1: tied})
  assert not (tmp_path / "rounds" / "1" / "lists").exists()


# A prompt a line: its candidates of round 0 and of round 1, with their scores.
BY_HAND = {
  "1+1:": [[("=3", 0.2), ("=4", 0.2)], [("=2", 0.9), ("=3", 0.2)]],
  "2+2:": [[("=4", 0.5), ("=5", 0.1)], [("=44", 0.7), ("=6", 0.0)]],
}
MERGED = [("1+1:", ["=2", "=3"], [0.9, 0.2]), ("2+2:", ["=44", "=6"], [0.7, 0.0])]
REPLAYED = [("2+2:", ["=4", "=5"], [0.5, 0.1]), *MERGED]


def pools(here, prompts):
  """The two rounds of BY_HAND as `retrieval.retrieve` leaves them."""
  ids = lambda text: np.asarray(here.tokenizer(text)["input_ids"], np.int32)  # noqa: E731
  found = {}
  for number in (0, 1):
    directory = here.workdir / "rounds" / str(number) / "tokens"
    with store.Writer(directory) as writer:
      for place, (prompt, both) in enumerate(BY_HAND.items()):
        texts, scores = zip(*both[number])
        responses = [np.append(ids(text), prompts.end) for text in texts]
        masks = [np.ones(len(each), bool) for each in responses]
        writer.add(Tokens(ids(prompt), responses, masks, list(scores)), 7 + place)
      writer.finish(problems.Report("by hand", 2, 2), pad=prompts.pad, end=prompts.end)
    found[number] = store.load(directory)
  return found


def read(here, number):
  """The lists of a round as `readers.lists` reads them: prompt, responses, labels."""
  text = (here.workdir / "rounds" / str(number) / "lists.jsonl").read_text()
  columns = dict(prompt="prompt", responses="responses", scores="scores")
  rows = [readers.lists(json.loads(line), **columns) for line in text.splitlines()]
  assert all(row.ranked for row in rows)
  return [(row.prompt, row.responses, pytest.approx(row.labels)) for row in rows]


@pytest.mark.parametrize(
  ("settings", "wanted"),
  [
    (dict(prompt_split="shared"), MERGED),
    (dict(prompt_split="disjoint"), REPLAYED),
    (
      dict(prompt_split="shared", lists=None, dedupe=True),
      [
        ("1+1:", ["=3", "=4", "=2"], [0.2, 0.2, 0.9]),
        ("2+2:", ["=4", "=5", "=44", "=6"], [0.5, 0.1, 0.7, 0.0]),
      ],
    ),
  ],
  ids=["merged", "replayed", "merged and whole"],
)
def test_what_is_remembered_of_a_prompt_joins_its_candidates(settings, wanted, run):
  here, _ = run(memory="all", candidates=3, **{"lists": dict(name="lists.best_worst"), **settings})
  prompts = inputs.prompts(here)
  data = rounds.build(here, 1, pools(here, prompts))
  assert read(here, 1) == wanted
  decode = here.tokenizer.decode
  said = lambda ids: decode(ids, skip_special_tokens=True)  # noqa: E731
  for (prompt, responses, labels), row in zip(wanted, lists(data), strict=True):
    assert (said(row[0]), [said(ids) for ids in row[1]]) == (prompt, responses)
    assert row[2] == pytest.approx(labels)
    assert all(ids[-1] == prompts.end for ids in row[1])
  assert set(data.sources.tolist()) == {7, 8}
  assert data.candidates == grouping.widest(here.config.rounds, 1) >= data.widths.max()


@pytest.mark.parametrize("split", ["disjoint", "shared"])
def test_lists_are_drawn_by_seed_round_and_row(split, run):
  here, params = run(lists=dict(name="lists.tournament"), memory="all", prompt_split=split)
  prompts = inputs.prompts(here)
  known = {n: retrieval.retrieve(here, params, n, prompts, rules.brevity) for n in (0, 1)}
  found = lists(rounds.build(here, 1, known))
  shutil.rmtree(here.workdir / "rounds" / "1" / "lists")  # as if killed before it was whole
  assert lists(rounds.build(here, 1, known)) == found
  first = lists(rounds.build(here, 0, {0: known[0]}))
  assert (found[: len(first)] == first) == (split == "disjoint"), "a replay is of the same lists"
  config = here.config.copy_and_resolve_references()
  config.seed += 1
  other = dataclasses.replace(here, config=config, workdir=here.workdir / "other")
  assert lists(rounds.build(other, 1, known)) != found


def test_lists_are_the_strategys_of_the_candidates_of_each_prompt(run):
  here, params = run(lists=dict(name="lists.top_bottom", positives=2, negatives=1))
  prompts = inputs.prompts(here)
  pool = retrieval.retrieve(here, params, 0, prompts, rules.brevity)
  found = lists(rounds.build(here, 0, {0: pool}))
  wanted = []
  for prompt, responses, scores in lists(pool):
    best, second, *_, worst = np.argsort(-np.asarray(scores), kind="stable")
    for better in (best, second):
      if scores[better] > scores[worst]:
        wanted.append((prompt, [responses[better], responses[worst]], [1.0, 0.0]))
  assert found == wanted
  assert len(found) > 1


@pytest.mark.parametrize("reference", ["round", "start"])
def test_the_reference_is_the_policy_of_the_round_or_of_the_start(reference, run, learnt):
  here, params = run(reference=reference)
  asked = inputs.prompts(here)
  rounds.learn(here, params, asked, rules.brevity, before=BEFORE, evaluate=lambda _: reward(0.5))
  for call in learnt:
    assert call["settings"]["reference"] is (call["params"] if reference == "round" else params)


def test_each_round_has_its_own_learning_rate(run, learnt):
  here, params = run(learning_rates=(3e-3, 2e-3, 1e-3))
  asked = inputs.prompts(here)
  rounds.learn(here, params, asked, rules.brevity, before=BEFORE, evaluate=lambda _: reward(0.5))
  rates = [call["settings"]["optimizer"]["learning_rate"] for call in learnt]
  assert rates == [3e-3, 2e-3, 1e-3]
  rest = [{**call["settings"]["optimizer"], "learning_rate": 0} for call in learnt]
  assert rest == [{**here.config.optimizer, "learning_rate": 0}] * ROUNDS


def test_a_policy_is_evaluated_within_a_round_where_that_is_asked_for(run, tmp_path):
  """Every so many steps, and with the same bits as without."""
  here, params = run(count=1, steps_per_round=3)
  asked, ended = inputs.prompts(here), []
  for every in (0, 2):
    config = here.config.copy_and_resolve_references().unlock()
    config.evaluate.every = every
    there = tmp_path / f"{every}"
    shutil.copytree(here.workdir, there, dirs_exist_ok=True)
    this = dataclasses.replace(here, config=config, workdir=there, writer=writers.Writer(there))
    seen = []
    answer = lambda params: seen.append(params) or reward(len(seen))  # noqa: B023, E731
    ended.append(rounds.learn(this, params, asked, rules.brevity, before=BEFORE, evaluate=answer))
    told = [row for row in writers.read(there) if "eval_gold/reward" in row]
    assert [(row["stage"], row["step"]) for row in told] == [
      ("rounds", 0), *([("round_0", 2)] if every else [])
    ]  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, *ended)


def test_a_loss_sees_the_reference_that_a_stage_is_given(run):
  here, params = run()
  asked = inputs.prompts(here)
  data = rounds.build(here, 0, {0: retrieval.retrieve(here, params, 0, asked, rules.brevity)})
  less = jax.tree.map(lambda x: 0.9 * x, params)
  how = dict(loss=here.config.loss, optimizer=here.config.optimizer, batch_size=4, steps=1)
  for name, reference in (("own", None), ("other", less)):
    stage.train(here, name, params, data, reference=reference, **how)
  told = {row["stage"]: row for row in writers.read(here.workdir) if "rewards/margins" in row}
  assert told["own"]["rewards/margins"] == pytest.approx(0, abs=1e-5)
  assert abs(told["other"]["loss"] - told["own"]["loss"]) > 1e-3
