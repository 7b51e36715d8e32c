"""One stage of training: restore, step, log, evaluate, save. Knows no method and no config."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
import dataclasses
import time
from typing import Any, Protocol

import jax
import numpy as np

from larpo_jax import checkpoints, preemption, writers
from larpo_jax.train_step import TrainState
from larpo_jax.types import Batch, Metrics

SKIPS_ALLOWED = 3  # non-finite steps in a row; the last of them stops the run


class Batches(Protocol):
  """An endless iterator of numpy batches that can say where it is."""

  def __next__(self) -> Batch:
    """The next batch: this process's rows."""

  def get_state(self) -> Any:
    """Where the iterator stands, as JSON."""

  def set_state(self, state: Any) -> None:
    """Goes there, in constant time."""


class Diverged(RuntimeError):
  """Loss or gradient was not finite three steps in a row; the parameters are the last good ones."""


class Preempted(RuntimeError):
  """A signal asked the run to stop; everything is saved."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How long a stage is and how often what happens, in optimiser steps; 0 is never."""

  steps: int
  log_every: int = 10
  save_every: int = 100
  evaluate_every: int = 0

  def saves(self, done: int) -> bool:
    """Whether to save after so many steps: now and then, and at the end."""
    return done == self.steps or (self.save_every > 0 and done % self.save_every == 0)

  def evaluates(self, done: int) -> bool:
    """Whether to evaluate after so many steps."""
    return self.evaluate_every > 0 and done % self.evaluate_every == 0


@dataclasses.dataclass(frozen=True)
class Outlet:
  """Where a stage writes and what may stop it."""

  store: checkpoints.Store
  writer: writers.Writer
  guard: preemption.Guard


@dataclasses.dataclass
class _Late:
  """A dispatched step whose metrics nobody has read yet."""

  step: int
  metrics: Metrics
  rows: np.ndarray
  tokens: int
  responses: int


def fit(
  name: str,
  state: TrainState,
  *,
  step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
  batches: Batches,
  put: Callable[[Batch], Batch],
  plan: Plan,
  outlet: Outlet,
  rate: Callable[[int], Any],
  evaluate: Callable[[Any], Mapping[str, float]] | None = None,
  flops_per_token: float = 0.0,
  peak_flops: float = 0.0,
  meta: Mapping[str, str] | None = None,
) -> TrainState:
  """Trains from the latest good checkpoint, or from state, to plan.steps.

  name is the stage that metrics are written under, rate the learning rate of a step, meta what
  every checkpoint says of itself. Metrics are read one step late, so that the device never waits
  for the host. Raises Diverged, or Preempted once all is saved.
  """
  state, start = _resume(state, batches, outlet, name)
  log = _Log(name, plan, outlet.writer, rate, flops_per_token, peak_flops)
  with writers.Progress(name, total=plan.steps, start=start) as progress:
    for done in range(start + 1, plan.steps + 1):
      batch = log.timed(batches)
      outlet.store.check()  # a save that failed stops the run now, not at the next one
      state, metrics = step(state, put(batch))
      log.follow(done, metrics, batch, progress)
      stop = outlet.guard.poll(done)
      evaluates = evaluate is not None and plan.evaluates(done)
      saves = stop or plan.saves(done)
      if evaluates or saves:
        log.catch_up(progress)
      if evaluates:
        outlet.writer.write(done, named(evaluate(state.params)), stage=name)  # type: ignore[misc]
      if saves:
        about = {"stage": name, **(meta or {})}
        outlet.store.save(done, state, data=batches.get_state(), meta=about)
      if stop and done < plan.steps:
        outlet.store.wait()
        raise Preempted(
          f"stopped in {name} at step {done} of {plan.steps}; the same command resumes"
        )
  outlet.store.wait()
  return state


def _resume(
  state: TrainState, batches: Batches, outlet: Outlet, name: str
) -> tuple[TrainState, int]:
  """Where the latest good checkpoint stands, or step 0; batches and metrics go there with it."""
  restored = outlet.store.restore(state)
  start = 0
  if restored is not None:
    state, start = restored.state, restored.step
    batches.set_state(restored.data)
  outlet.writer.rewind(start, stage=name)
  return state, start


def named(results: Mapping[str, float]) -> dict[str, float]:
  """Results of an evaluation under the names that training metrics do not have: eval_..."""
  return {f"eval_{name}": value for name, value in results.items()}


class _Log:
  """Reads finished steps: the non-finite guard's host side, throughput, and what is written."""

  def __init__(
    self,
    name: str,
    plan: Plan,
    writer: writers.Writer,
    rate: Callable[[int], Any],
    flops_per_token: float,
    peak_flops: float,
  ) -> None:
    self.name, self.plan, self.writer, self.rate = name, plan, writer, rate
    self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
    self.late: _Late | None = None
    self.stepped = False  # whether a step began since the rates were last taken
    self.rates: dict[str, float] = {}
    self.skipped_rows: deque[list[int]] = deque(maxlen=SKIPS_ALLOWED)
    self.since, self.tokens, self.responses, self.data_wait = time.perf_counter(), 0, 0, 0.0

  def timed(self, batches: Batches) -> Batch:
    """The next batch; the wait for it is logged."""
    waited = time.perf_counter()
    batch = next(batches)
    self.data_wait += time.perf_counter() - waited
    return batch

  def follow(self, step: int, metrics: Metrics, batch: Batch, progress: writers.Progress) -> None:
    """Reads the step before this one, which was just dispatched."""
    self.stepped = True
    self.catch_up(progress)
    rows, responses = np.asarray(batch.row), int(np.sum(batch.valid))
    self.late = _Late(step, metrics, rows, _tokens(batch), responses)

  def catch_up(self, progress: writers.Progress) -> None:
    """Reads the step that nobody has read yet, if there is one."""
    late, self.late = self.late, None
    if late is not None:
      self._read(late, progress)

  def _read(self, late: _Late, progress: writers.Progress) -> None:
    """Blocks until that step is done; raises Diverged at the third non-finite one in a row."""
    metrics = {key: float(value) for key, value in jax.device_get(dict(late.metrics)).items()}
    self._guard(late, int(metrics["skipped"]))
    self.tokens += late.tokens * jax.process_count()
    self.responses += late.responses * jax.process_count()
    progress.update(late.step, tokens=late.tokens, responses=late.responses, loss=metrics["loss"])
    if self.plan.log_every and late.step % self.plan.log_every == 0:
      metrics["learning_rate"] = float(self.rate(late.step - 1))
      self.writer.write(late.step, {**metrics, **self._throughput()}, stage=self.name)

  def _guard(self, late: _Late, skipped: int) -> None:
    if skipped == 0:
      self.skipped_rows.clear()
      return
    self.skipped_rows.append([int(row) for row in late.rows if row >= 0])
    if skipped >= SKIPS_ALLOWED:
      raise Diverged(
        f"loss or gradient was not finite {skipped} steps in a row, last at step {late.step} of "
        f"{self.name}, on rows {list(self.skipped_rows)}; the parameters are untouched since: "
        "lower the learning rate, or look at these rows with python -m larpo_jax.inspect"
      )

  def _throughput(self) -> dict[str, float]:
    """Rates since they were last taken; the same again for steps that are read in one go."""
    if self.rates and not self.stepped:
      return self.rates
    seconds = max(time.perf_counter() - self.since, 1e-9)
    self.rates = {
      "throughput/tokens_per_second": self.tokens / seconds,
      "throughput/responses_per_second": self.responses / seconds,
      "throughput/data_wait": self.data_wait / seconds,
    }
    if self.peak_flops:
      self.rates["throughput/mfu"] = self.tokens * self.flops_per_token / seconds / self.peak_flops
    self.since, self.tokens, self.responses, self.data_wait = time.perf_counter(), 0, 0, 0.0
    self.stepped = False
    return self.rates


def _tokens(batch: Batch) -> int:
  """Real tokens that the step computes: each prompt once, and every response."""
  return int(np.sum(batch.prompt_mask)) + int(np.sum(batch.response_mask > 0))
