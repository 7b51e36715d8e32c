"""Retrieval: what is sampled when, from which prompts, and what a prompt's candidates are."""

import dataclasses
import json
import zlib

import jax
import numpy as np
import pytest
from tiny_rounds import PROMPTS, ROUNDS, StopsAt, lists

from larpo_jax import inputs, loop, responders, retrieval, stage, worlds
from larpo_jax.data import batching
from larpo_jax.rewards import rules
from larpo_jax.rewards import worlds as rewards
from larpo_jax.session import Session
from larpo_jax.worlds import arithmetic


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


def test_only_what_counts_is_decoded(run):
  here, _ = run()
  (ids,) = here.tokenizer(["12+3"], add_special_tokens=False)["input_ids"]
  mask = np.asarray([[[1, 0, 1, 1]]])
  assert here.decode(np.asarray([[ids]]), mask) == [["1+3"]]


@pytest.mark.parametrize(
  "settings", [{}, dict(negatives="unrelated", greedy=True, gold=True)], ids=["plain", "unrelated"]
)
def test_stopped_in_the_middle_of_sampling_a_round_goes_on_with_the_next_batch(
  settings, run, tmp_path, monkeypatch
):
  """To the same bits; no batch is sampled twice."""
  whole, params = run(**settings)
  prompts, counted, draw = inputs.prompts(whole), [], Session.sample
  count = lambda *args, **how: counted.append(1) or draw(*args, **how)  # noqa: E731
  monkeypatch.setattr(Session, "sample", count)
  wanted = lists(retrieval.retrieve(whole, params, 0, prompts, rules.brevity))
  text = (tmp_path / "rounds" / "0" / "candidates.jsonl").read_text()
  every, elsewhere = len(counted), tmp_path / "stopped"
  counted.clear()
  stopping = dataclasses.replace(whole, workdir=elsewhere, guard=StopsAt(4 if settings else 2))
  with pytest.raises(loop.Preempted, match="the same command resumes"):
    retrieval.retrieve(stopping, params, 0, prompts, rules.brevity)
  assert not list(elsewhere.rglob("candidates.jsonl")), "half a round is no round"
  assert not list(elsewhere.rglob("tokens"))
  assert 0 < len(counted) < every
  again = dataclasses.replace(stopping, guard=StopsAt(10**9))
  assert lists(retrieval.retrieve(again, params, 0, prompts, rules.brevity)) == wanted
  assert (elsewhere / "rounds" / "0" / "candidates.jsonl").read_text() == text
  assert len(counted) == every
  assert not list(tmp_path.rglob("partial")), "a round that is whole needs no batches"


def told(here, number, name="candidates"):
  text = (here.workdir / "rounds" / str(number) / f"{name}.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def sampled(line):
  """A line without the world's answer."""
  kept = [place for place, source in enumerate(line["sources"]) if source != "gold"]
  return {k: [v[i] for i in kept] if isinstance(v, list) else v for k, v in line.items()}


def said(here, data):
  """The rows of candidates as (prompt, texts, labels)."""
  decode = lambda ids: here.tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
  return [
    (decode(prompt), [decode(ids) for ids in responses], labels)
    for prompt, responses, labels in lists(data)
  ]


def retrieved(run, number=0, reward=rewards.arithmetic, **settings):
  here, params = run(**settings)
  return here, retrieval.retrieve(here, params, number, inputs.prompts(here), reward)


def fickle(questions, answers):
  """A reward that no other question and no other answer shares; the solution has the most."""
  score = lambda q, a: a == arithmetic.solution(q) or zlib.crc32(f"{q}{a}".encode()) / 2**32  # noqa: E731
  return np.array([[score(q, a) for a in row] for q, row in zip(questions, answers)], np.float32)


def test_every_candidate_is_kept_also_where_all_are_tied(run):
  here, params = run()
  level = lambda questions, answers: np.ones((len(questions), len(answers[0])))  # noqa: E731
  data = retrieval.retrieve(here, params, 0, inputs.prompts(here), level)
  assert len(data) == PROMPTS
  assert retrieval.described(here, 0)["candidates/all_tied"] == 1


def test_shared_prompts_are_the_same_in_every_round_and_answered_anew(run):
  here, params = run(prompt_split="shared")
  prompts = inputs.prompts(here)
  assert len(prompts) == PROMPTS
  wanted = [prompts[n].prompt.tolist() for n in range(PROMPTS)]
  alone = dataclasses.replace(here, workdir=here.workdir / "disjoint", config=run()[0].config)
  disjoint = inputs.prompts(alone)
  assert [disjoint[n].prompt.tolist() for n in range(PROMPTS)] == wanted, "its first round's"
  # Of more prompts, as a data set may have, it is the first ones.
  data = [lists(retrieval.retrieve(here, params, n, disjoint, rules.brevity)) for n in range(2)]
  for rows in data:
    assert [prompt for prompt, _, _ in rows] == wanted
  assert data[0] != data[1]


def test_the_first_candidate_is_greedy_and_the_others_as_without_it(run, tmp_path):
  here, params = run(greedy=True)
  prompts = inputs.prompts(here)
  found = lists(retrieval.retrieve(here, params, 0, prompts, rules.brevity))
  asked = next(batching.prompt_batches(prompts, batch_size=len(prompts), shuffle=False, shapes=1))
  how = dict(candidates=1, temperature=0.0, max_tokens=here.config.rounds.max_tokens)
  drawn = here.sample(
    params, asked.prompt, asked.prompt_mask, here.key(), eos=prompts.end, pad=prompts.pad, **how
  )
  drawn = stage.gathered(drawn)
  for row, (_, responses, _) in enumerate(found):
    assert responses[0] == drawn.response[row, 0][drawn.mask[row, 0] > 0].tolist()
  plain = dataclasses.replace(here, workdir=tmp_path / "plain", config=run()[0].config)
  sampled = lists(retrieval.retrieve(plain, params, 0, prompts, rules.brevity))
  assert [row[1][1:] for row in found] == [row[1][:-1] for row in sampled]
  assert {line["finished"].__len__() for line in told(here, 0)} == {len(found[0][1])}


def test_the_gold_answer_is_one_more_candidate(run, tmp_path):
  here, data = retrieved(run, gold=True)
  lines = told(here, 0)
  for (prompt, texts, labels), line in zip(said(here, data), lines, strict=True):
    assert texts == line["responses"]
    assert texts[-1] == arithmetic.solution(prompt)
    assert labels == pytest.approx(line["scores"])
    assert labels[-1] == pytest.approx(1.0)
    assert line["sources"] == ["self"] * (len(texts) - 1) + ["gold"]
  for row in range(len(data)):
    assert data[row].responses[-1][-1] == inputs.prompts(here).end
    assert data[row].masks[-1].all()
  without, _ = retrieved(lambda **how: _elsewhere(run(**how), tmp_path))
  plain = [{k: v[:-1] if isinstance(v, list) else v for k, v in line.items()} for line in lines]
  assert told(without, 0) == plain, "what was sampled is the same"
  numbers = [retrieval.described(each, 0) for each in (here, without)]
  for each in numbers:
    del each["candidates/separable"]
  assert numbers[0] == numbers[1]


def _elsewhere(made, path):
  return dataclasses.replace(made[0], workdir=path / "elsewhere"), made[1]


@pytest.mark.parametrize("gold", [True, False])
def test_negatives_of_another_prompt_are_judged_as_answers_to_this_one(gold, run):
  here, data = retrieved(run, reward=fickle, gold=gold, negatives="other_prompt")
  lines = told(here, 0)
  for place, (prompt, texts, labels) in enumerate(said(here, data)):
    own, other = lines[place], lines[(place + 1) % len(lines)]
    assert prompt == own["prompt"] != other["prompt"]
    assert texts[1:] == sampled(other)["responses"]
    assert labels == pytest.approx(fickle([prompt], [texts])[0].tolist())
    assert texts[0] == own["responses"][int(np.argmax(own["scores"]))]
    if gold:
      assert texts[0] == arithmetic.solution(prompt)


def test_unrelated_negatives_are_answers_to_problems_of_another_form(run):
  here, data = retrieved(run, number=1, gold=True, negatives="unrelated")
  lines, strangers = told(here, 1), told(here, 1, "unrelated")
  assert len(strangers) == PROMPTS
  for (prompt, texts, _), stranger in zip(said(here, data), strangers, strict=True):
    assert texts[1:] == stranger["responses"]
    assert len(arithmetic.parse(prompt).operations) == 3
    assert len(arithmetic.parse(stranger["prompt"]).operations) == 2
  own = [sampled(line) for line in lines]
  assert [line["responses"] for line in own] != [line["responses"] for line in strangers]
  tokens = sum(sum(line["lengths"]) for line in own + strangers)
  assert retrieval.described(here, 1)["candidates/tokens"] == tokens


def test_another_prompt_is_the_next_that_differs():
  asked = [
    responders.Answered(n, np.zeros(1), question, [], [], [], [])
    for n, question in enumerate("aab")
  ]
  assert [retrieval._other(asked, place).row for place in range(3)] == [2, 2, 0]
  with pytest.raises(ValueError, match="needs two prompts that differ in a round"):
    retrieval._other(asked[:2], 0)


def test_a_world_knows_what_is_unrelated(seed):
  for steps, other in ((3, 2), (1, 2), ((1, 4), 5), ((2, 4), 1)):
    world = dict(name="arithmetic", steps=steps, slip=0.1)
    drawn = worlds.ask(world, "unrelated", 20, seed=seed, split="train")
    assert {len(problem.operations) for problem in drawn} == {other}
  assert arithmetic.solution(arithmetic.prompt(drawn[0])) == arithmetic.solution(drawn[0])
