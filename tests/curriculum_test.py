"""Stages of a round: lists by difficulty, an optimiser that goes on, a reference that moves."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_rounds
from tiny_rounds import lists

from larpo_jax import difficulty, inputs, loop, optimizers, retrieval, rounds, stage, writers
from larpo_jax.data import batching, curriculum
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.rewards import rules

BEFORE = {"gold/reward": 0.25}


CURRY = dict(candidates=4, lists=dict(name="lists.best_each"), count=1)


def stages_of(run, learnt, **settings):
  """What each stage of one round was given."""
  here, params = run(**CURRY, **settings)
  prompts = inputs.prompts(here)
  learnt.clear()
  rounds.learn(
    here, params, prompts, rules.brevity, before=BEFORE, evaluate=lambda _: Evaluation(BEFORE, [])
  )
  return [call | dict(rows=lists(call["data"])) for call in learnt]


@pytest.mark.parametrize("reference", ["round", "stage", "start"])
def test_a_curriculum_learns_all_lists_once_from_easy_to_hard(reference, run, learnt):
  easy = dict(name="curriculum.easy_to_hard", stages=3)
  found = stages_of(run, learnt, curriculum=easy, reference=reference, steps_per_round=7)
  assert [call["name"] for call in found] == ["round_0_0", "round_0_1", "round_0_2"]
  assert [call["settings"]["steps"] for call in found] == [2, 2, 3]
  gaps = [[max(labels) - min(labels) for *_, labels in call["rows"]] for call in found]
  flat = [gap for each in gaps for gap in each]
  assert flat == sorted(flat, reverse=True)
  assert len(set(flat)) > 1
  sizes = [len(each) for each in gaps]
  assert max(sizes) - min(sizes) <= 1
  (whole,) = stages_of(run, learnt, steps_per_round=7)
  rows = [row for call in found for row in call["rows"]]
  assert sorted(map(repr, rows)) == sorted(map(repr, whole["rows"]))
  used = [call["settings"]["reference"] for call in found]
  begun = [call["params"] for call in found]
  assert all(x is y for x, y in zip(used, begun)) == (reference == "stage")
  assert all(x is begun[0] for x in used) == (reference != "stage")


def test_the_controls_of_a_curriculum_have_the_same_lists_in_another_order(run, learnt):
  def order(name):
    spec = dict(name=f"curriculum.{name}", stages=3)
    found = stages_of(run, learnt, curriculum=spec, steps_per_round=3)
    return [json.dumps(row) for call in found for row in call["rows"]]

  easy, hard, mixed = map(order, ("easy_to_hard", "hard_to_easy", "shuffled"))
  assert sorted(easy) == sorted(hard) == sorted(mixed)
  gap = lambda row: np.ptp(json.loads(row)[2])  # noqa: E731
  assert [gap(row) for row in hard] == sorted(map(gap, hard))
  assert mixed not in (easy, hard)
  assert order("shuffled") == mixed, "a run that is resumed draws the same parts"


def test_parts_of_one_difficulty_each_come_in_any_order(seed):
  hard = np.random.default_rng(seed).permutation(9).astype(float)
  plain = [part.tolist() for part in curriculum.easy_to_hard(hard, None)]
  orders = set()
  for number in range(60):
    drawn = curriculum.random_stages(hard, np.random.default_rng([seed, number]))
    assert sorted(part.tolist() for part in drawn) == sorted(plain)
    orders.add(tuple(plain.index(part.tolist()) for part in drawn))
  assert len(orders) == 6


def test_difficulty_is_what_it_says_of_chosen_and_rejected(run, learnt):
  here, params = run(**CURRY)
  start = jax.tree.map(lambda x: 0.5 * x, params)
  prompts = inputs.prompts(here)
  pools = {0: retrieval.retrieve(here, params, 0, prompts, rules.brevity)}
  built = rounds.build(here, 0, pools)
  ask = lambda by: difficulty.measure(here, built, by, params, start)  # noqa: E731
  assert (ask("label_gap") < 0).all()
  place = ask("place")
  for row in range(1, len(built)):
    same = built.prompts[row] == built.prompts[row - 1]
    assert place[row] == (place[row - 1] + 1 if same else 0)
  feed = dict(batch_size=len(built), shuffle=False, epochs=1, shapes=1, rooms=1)
  (batch,) = batching.batches(built, **feed)
  sums = lambda p: np.asarray(here.score(here.whole(p), here.put(batch)).token).sum(-1)  # noqa: E731
  chosen, rejected = batch.label.argmax(1), batch.label.argmin(1)
  gap = lambda x: x[range(len(x)), chosen] - x[range(len(x)), rejected]  # noqa: E731
  np.testing.assert_allclose(ask("logp_gap"), -gap(sums(params)), atol=1e-3)
  ratio = sums(params) - sums(start)
  np.testing.assert_allclose(ask("implicit_gap"), -gap(ratio), atol=1e-3)
  with pytest.raises(ValueError, match="needs scores beside the labels"):
    ask("score_gap")


@pytest.mark.parametrize("optimizer", ["kept", "reset"])
def test_the_stages_of_all_rounds_are_one_course_or_each_its_own(optimizer, run, learnt):
  shuffled = dict(name="curriculum.shuffled", stages=2)
  settings = dict(count=2, steps_per_round=5, curriculum=shuffled, optimizer=optimizer)
  here, params = run(**settings)
  prompts, answer = inputs.prompts(here), Evaluation(BEFORE, [])
  rounds.learn(here, params, prompts, rules.brevity, before=BEFORE, evaluate=lambda _: answer)
  given = [call["settings"]["course"] for call in learnt]
  if optimizer == "reset":
    assert given == [None] * 4
  else:
    names = [call["name"] for call in learnt]
    states = [None, *(f"moments of {name}" for name in names[:-1])]
    done = zip((0, 2, 5, 7), states, strict=True)
    assert given == [stage.Course(10, steps, state) for steps, state in done]


def test_a_kept_optimizer_goes_on_where_the_last_round_left_it(run):
  """Two rounds that learn the same lists are one stage of as many steps."""
  same = dict(steps_per_round=3, optimizer="kept", count=2)
  here, params = run(**same)
  prompts = inputs.prompts(here)
  pool = retrieval.retrieve(here, params, 0, prompts, rules.brevity)
  data = rounds.build(here, 0, {0: pool})
  config = here.config
  how = dict(loss=config.loss, batch_size=2, reference=params)
  adam = {**config.optimizer, "learning_rate": 1e-3, "schedule": "cosine", "warmup": 2}
  course, ended = stage.Course(6), params
  for name in ("round_0", "round_1"):
    settings = how | dict(optimizer=adam, steps=3, course=course)
    state = stage.train(here, name, ended, data, **settings)
    ended, course = state.params, course._replace(done=course.done + 3, state=state.opt_state)
  counts = [x for x in jax.tree.leaves(state.opt_state) if x.dtype == np.int32]
  assert counts
  assert all(int(x) == 6 for x in counts)
  rows = writers.read(here.workdir)
  rates = [row["learning_rate"] for row in rows if row["stage"] in ("round_0", "round_1")]
  _, rate = optimizers.build(adam, 6, params)
  np.testing.assert_allclose(rates, [float(rate(step)) for step in range(6)], rtol=1e-6)
  fresh = stage.train(here, "fresh", params, data, **how, optimizer=adam, steps=3)
  assert all(int(x) == 3 for x in jax.tree.leaves(fresh.opt_state) if x.dtype == np.int32)


def test_a_reference_that_moves_is_resumed_to_the_same_bits(run, tmp_path):
  """And moving it does something, at the step where it is due."""
  here, params = run()
  pool = retrieval.retrieve(here, params, 0, inputs.prompts(here), rules.brevity)
  data = rounds.build(here, 0, {0: pool})
  adam = {**here.config.optimizer, "learning_rate": 1e-2}
  how = dict(loss=dict(name="pairwise.dpo", beta=1.0), optimizer=adam, batch_size=2, steps=5)

  def trained(name, every, poll=10**9):
    config = here.config.copy_and_resolve_references().unlock()
    config.reference.update(sync_every=every, sync_share=0.5)
    guard = tiny_rounds.StopsAt(poll)
    there = dataclasses.replace(here, config=config, workdir=tmp_path / name, guard=guard)
    return stage.train(there, "moves", params, data, **how)

  with pytest.raises(loop.Preempted):
    trained("stopped", 2, poll=3)
  resumed, whole, fixed = trained("stopped", 2), trained("whole", 2), trained("fixed", 0)
  same = jax.tree.map(lambda x, y: bool((x == y).all()), resumed, whole)
  assert all(jax.tree.leaves(same))
  assert fixed.reference is None
  moved = jax.tree.map(lambda x, y: float(abs(x - y).max()), whole.params, fixed.params)
  assert max(jax.tree.leaves(moved)) > 0
