"""One stage of training: what is logged, evaluated and saved when, and what a stop changes."""

import time

import jax.numpy as jnp
import numpy as np
import pytest

from larpo_jax import checkpoints, loop, writers
from larpo_jax.train_step import TrainState
from larpo_jax.types import Batch

STEPS = 7


class Numbered:
  """Batch n holds n, from row 10 n on."""

  def __init__(self):
    self.next = 0

  def __next__(self):
    number, self.next = self.next, self.next + 1
    return Batch(
      prompt=np.ones((2, 1, 3), np.int32),
      prompt_mask=np.ones((2, 1, 3), bool),
      response=np.full((2, 2, 4), number, np.int32),
      response_mask=np.ones((2, 2, 4), np.float32),
      label=np.zeros((2, 2), np.float32),
      valid=np.ones((2, 2), bool),
      weight=np.ones(2, np.float32),
      row=np.asarray([10 * number, -1], np.int32),
    )

  def get_state(self):
    return {"next": self.next}

  def set_state(self, state):
    self.next = state["next"]


class Guard:
  """Asked to stop at one step, or never."""

  def __init__(self, stop=0):
    self.stop = stop

  def poll(self, step):
    return step == self.stop


def step(state, batch, bad=()):
  """The parameters remember the order in which batches came. As long as a step of a model."""
  time.sleep(0.02)
  number = int(batch.response[0, 0, 0])
  good = number not in bad
  new = TrainState(
    params=state.params * 3 + number if good else state.params,
    opt_state=state.opt_state,
    step=state.step + 1,
    skipped=jnp.where(good, 0, state.skipped + 1),
  )
  return new, {"loss": float(number), "skipped": new.skipped}


def fit(directory, *, stop=0, bad=(), evaluate=None, **plan):
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(params=jnp.ones((), jnp.int32), opt_state=(), step=zero, skipped=zero)
  store = checkpoints.Store(directory / "checkpoints")
  writer = writers.Writer(directory)
  try:
    return loop.fit(
      "stage",
      state,
      step=lambda state, batch: step(state, batch, bad),
      batches=Numbered(),
      put=lambda batch: batch,
      plan=loop.Plan(STEPS, **({"log_every": 1, "save_every": 2} | plan)),
      outlet=loop.Outlet(store, writer, Guard(stop)),
      rate=lambda step: 0.5**step,
      evaluate=evaluate,
    )
  finally:
    store.close()
    writer.close()


def rows(directory):
  known = [row for row in writers.read(directory) if row["stage"] == "stage"]
  return {row["step"]: row for row in known}


def after(steps):
  """The parameters after so many steps."""
  params = 1
  for number in range(steps):
    params = params * 3 + number
  return params


def test_each_step_is_logged_once_with_its_own_rate(tmp_path):
  state = fit(tmp_path)
  assert int(state.params) == after(STEPS)
  assert int(state.step) == STEPS
  known = rows(tmp_path)
  assert list(known) == list(range(1, STEPS + 1))
  assert [known[n]["loss"] for n in known] == [n - 1.0 for n in known]
  assert [known[n]["learning_rate"] for n in known] == [0.5 ** (n - 1) for n in known]
  # Two batches of 22 tokens in 0.04 s at most, also where two steps are read one after the other.
  assert all(0 < row["throughput/tokens_per_second"] <= 44 / 0.02 for row in known.values())
  store = checkpoints.Store(tmp_path / "checkpoints")
  assert store.steps() == [4, 6, 7]  # the last three of 2, 4, 6 and the end
  store.close()


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_stopped_and_started_again_it_ends_the_same(stop, tmp_path):
  fit(tmp_path / "whole")
  with pytest.raises(loop.Preempted, match=f"at step {stop} of {STEPS}; the same command resumes"):
    fit(tmp_path / "parts", stop=stop)
  assert max(rows(tmp_path / "parts")) == stop
  state = fit(tmp_path / "parts")
  assert int(state.params) == after(STEPS)
  plain = lambda row: {k: v for k, v in row.items() if "throughput" not in k}  # noqa: E731
  found, wanted = (rows(tmp_path / name) for name in ("parts", "whole"))
  assert [plain(row) for row in found.values()] == [plain(row) for row in wanted.values()]


def test_what_was_logged_after_the_checkpoint_is_logged_once(tmp_path):
  with pytest.raises(RuntimeError, match="killed"):
    fit(tmp_path, evaluate=killed_at_five, evaluate_every=5)
  assert max(rows(tmp_path)) == 5
  assert int(fit(tmp_path).params) == after(STEPS)
  lines = (tmp_path / writers.METRICS).read_text().splitlines()
  assert len(lines) == STEPS


def killed_at_five(params):
  assert int(params) == after(5)
  raise RuntimeError("killed")


def test_a_stop_at_the_last_step_is_no_stop(tmp_path):
  assert int(fit(tmp_path, stop=STEPS).params) == after(STEPS)


def test_evaluations_see_the_parameters_of_their_step(tmp_path):
  seen = []
  fit(
    tmp_path, evaluate=lambda params: seen.append(int(params)) or {"x": seen[-1]}, evaluate_every=3
  )
  assert seen == [after(3), after(6)]
  found = {n: row["eval_x"] for n, row in rows(tmp_path).items() if "eval_x" in row}
  assert found == {3: after(3), 6: after(6)}


def test_three_skipped_steps_in_a_row_stop_the_run_and_name_their_rows(tmp_path):
  state = fit(tmp_path / "two", bad=(0, 2, 3, 5, 6))  # never three in a row
  assert int(state.step) == STEPS
  said = r"3 steps in a row, last at step 5 .*\[20\], \[30\], \[40\]"
  with pytest.raises(loop.Diverged, match=said):
    fit(tmp_path / "three", bad=(0, 2, 3, 4))
