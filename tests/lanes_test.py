"""Lanes: who waits for whom, and that a step taken together is the step taken alone."""

import threading
import time

import jax
import pytest
import tiny
import toy

from larpo_jax import objective, optimizers, train_step, vectorised
from larpo_jax.lanes import Lanes
from larpo_jax.scorers import tokens


def in_threads(lanes, functions):
  """What each function returns or raises, in a thread of its own that leaves at its end."""
  found = [None] * len(functions)

  def run(i, function):
    try:
      found[i] = function()
    except RuntimeError as error:
      found[i] = error
    finally:
      lanes.leave()

  threads = [threading.Thread(target=run, args=each) for each in enumerate(functions)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(300)
  assert not any(thread.is_alive() for thread in threads), "a lane waits for ever"
  return found


def test_those_that_ask_for_the_same_are_answered_at_once():
  lanes, calls = Lanes(3), []

  def double(arguments):
    calls.append(sorted(arguments))
    return [2 * x for x in arguments]

  def lane(i):
    time.sleep(0.02 * i)
    first = lanes.together("a", double, i)
    return first, lanes.together("b" if i else "a", double, 10 * i)

  assert in_threads(lanes, [lambda i=i: lane(i) for i in range(3)]) == [(0, 0), (2, 20), (4, 40)]
  assert calls[0] == [0, 1, 2]
  assert sorted(calls[1:]) == [[0], [10, 20]]


def count(arguments):
  return [len(arguments)] * len(arguments)


def test_neither_who_ends_nor_who_is_away_keeps_the_others():
  lanes, asked = Lanes(3), threading.Event()

  def stays():
    answers = [lanes.together("a", count, 0) for _ in range(3)]
    asked.set()
    return answers

  def waits():
    with lanes.away():
      assert asked.wait(20)

  assert in_threads(lanes, [stays, lambda: None, waits])[0][-1] == 1


def test_who_is_back_is_waited_for_again():
  lanes, back = Lanes(2), threading.Event()

  def returns():
    with lanes.away():
      pass
    back.set()
    time.sleep(0.1)
    return lanes.together("a", count, 0)

  def stays():
    assert back.wait(20)
    return lanes.together("a", count, 0)

  assert in_threads(lanes, [returns, stays]) == [2, 2]


def test_an_error_is_that_of_all_who_asked_and_the_others_go_on():
  lanes = Lanes(3)

  def fails(arguments):
    raise RuntimeError("broken")

  ask = lambda what, function: lambda: lanes.together(what, function, 1)  # noqa: E731
  found = in_threads(lanes, [ask("a", fails), ask("a", fails), ask("b", lambda x: x)])
  assert [str(each) for each in found] == ["broken", "broken", "1"]


def test_what_is_made_once_is_made_once():
  lanes, made = Lanes(4), []
  make = lambda: made.append(1) or len(made)  # noqa: E731
  assert in_threads(lanes, [lambda: lanes.once("x", make)] * 4) == [1] * 4


def test_numbers_of_a_loss_are_its_floats_but_not_weights():
  inner = dict(name="pairwise.ipo", beta=0.2)
  loss = (
    dict(name="wrappers.robust", epsilon=0.1, kernel=inner, weight=0.5),
    dict(name="listwise.listmle", beta=0.3, reduction="sum", weight=1.0),
  )
  found = vectorised.numbers(loss, dict(learning_rate=1e-3))
  assert found == {
    "optimizer.learning_rate": 1e-3,
    "loss.0.epsilon": 0.1,
    "loss.0.kernel.beta": 0.2,
    "loss.1.beta": 0.3,
  }
  other = ({**loss[0], "epsilon": 0.2}, {**loss[1], "beta": 1.0})
  assert vectorised.without_numbers(loss) == vectorised.without_numbers(other)
  third = (loss[0], {**loss[1], "reduction": "mean"})
  assert vectorised.without_numbers(loss) != vectorised.without_numbers(third)


LOSSES = {
  "wrapped": lambda beta: dict(
    name="wrappers.robust", epsilon=beta / 4, kernel=dict(name="listwise.lambdarank", beta=beta)
  ),
  "sum": lambda beta: (
    dict(name="pairwise.dpo", beta=beta, weight=0.7),
    dict(name="batchwise.bco_pair_shift", beta=beta, weight=0.3),
  ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("at_once", [False, True], ids=["one after the other", "vmap"])
def test_a_step_taken_together_is_the_step_taken_alone(name, at_once, seed, monkeypatch):
  """Lanes of other parameters, numbers, lengths and rooms, over two steps."""
  monkeypatch.setattr(vectorised, "at_once", lambda: at_once)
  graphdef, first, _ = tiny.model(seed)
  draws = [(0.1, 1e-3, 7, 6, 0), (0.4, 3e-3, 5, 6, 23), (0.9, 1e-2, 6, 4, 19)]
  # Adam's first steps divide a gradient by its own size: where that is near zero, an eps of 1e-8
  # makes a whole step of a rounding.
  optimizer = dict(
    name="adamw", schedule="cosine", warmup=0.5, clip=1.0, weight_decay=0.01, eps=1e-4
  )
  parts = dict(model=graphdef, scorer=tokens.causal, accumulation=1, mesh=toy.mesh_of())
  lanes = Lanes(len(draws))

  def run(i, together):
    beta, rate, P, R, room = draws[i]
    batch = tiny.batch([seed, i], B=4, P=P, R=R).replace(room=room)
    reference = jax.tree.map(lambda x: x * (1 + 0.1 * i), first)
    spec, loss = {**optimizer, "learning_rate": rate}, LOSSES[name](beta)
    kernels = objective.resolve(loss)
    chain, _ = optimizers.build(spec, 4, first)
    state = train_step.init(reference, chain, kernels)
    if together:
      step = vectorised.step(lanes, loss=loss, optimizer=spec, steps=4, **parts)
    else:
      step = train_step.make_train_step(loss=kernels, optimizer=chain, **parts)
    for _ in range(2):
      state, metrics = step(state, reference, batch)
    return toy.host((state, metrics))

  found = in_threads(lanes, [lambda i=i: run(i, True) for i in range(len(draws))])
  for i, each in enumerate(found):
    toy.close(each, run(i, False))
