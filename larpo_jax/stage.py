"""One stage of a run: data, loss and optimiser to trained parameters, resumed where it stood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
import math
import textwrap
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from larpo_jax import (
  checkpoints,
  hardware,
  lanes,
  loop,
  objective,
  optimizers,
  sharding,
  train_step,
  vectorised,
  workdir,
)
from larpo_jax.data import batching, dataset, reference
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.models import transformer
from larpo_jax.objective import Loss
from larpo_jax.session import Session
from larpo_jax.types import Batch, LogProbs


class Course(NamedTuple):
  """An optimiser that goes on from stage to stage, its schedule over all of their steps."""

  total: int  # steps of all stages
  done: int = 0  # of them so far
  state: Any = None  # of the optimiser after those


def train(
  session: Session,
  name: str,
  params: Any,
  data: batching.Data,
  *,
  loss: Any,
  optimizer: Mapping[str, Any],
  batch_size: int,
  steps: int = -1,
  epochs: float = 1,
  evaluate: Callable[[Any], Mapping[str, float]] | None = None,
  reference: Any = None,
  course: Course | None = None,
) -> train_step.TrainState:
  """The state after the stage; at once where its last checkpoint is there already.

  params are where it starts and, where no reference is given, that of the kernels that read one.
  steps < 0 means as many as the epochs take. Without a course the optimiser is new. Raises what
  `loop.fit` raises, and ValueError where the loss is not what it has to be where policy and
  reference are one.
  """
  config = session.config
  order = batching.schedule(data, batch_size=batch_size, shapes=config.data.shapes)
  steps = steps if steps >= 0 else max(1, math.ceil(epochs * order.per_epoch))
  kernels, about = objective.resolve(loss), _announced(name, loss)
  course = Course(steps) if course is None else course
  chain, rate = optimizers.build(optimizer, course.total, params)
  fixed = params if reference is None else reference
  sync = _sync(session, kernels)
  state, placed = _initial(session, params, chain, kernels, fixed if sync else None)
  if course.state is not None:
    state = dataclasses.replace(state, opt_state=course.state)
  store = _store(session, name)
  try:
    ended = _ended(store, state, steps)
    if ended is not None:
      return ended
    batches, live = _feed(session, fixed, data, kernels, batch_size)
    specs: dict[str, Any] = dict(loss=loss, optimizer=optimizer, steps=course.total)
    step = _step(session, specs, kernels, chain=chain, sync=sync, placed=placed)
    return loop.fit(
      name,
      state,
      step=lambda state, batch: step(state, live, batch, session.frozen),
      batches=batches,
      put=session.put,
      plan=loop.Plan(steps, config.log_every, config.checkpoint.every, config.evaluate.every),
      outlet=loop.Outlet(store, session.writer, session.guard),
      rate=lambda step: rate(step + course.done),
      evaluate=evaluate,
      meta=about,
      flops_per_token=6.0 * transformer.matmul_params(session.architecture),
      peak_flops=hardware.peak_flops(jnp.dtype(config.model.dtype)),
    )
  finally:
    store.close()


def _ended(store: Any, state: train_step.TrainState, steps: int) -> train_step.TrainState | None:
  """The state after so many steps, where a good checkpoint of them is there."""
  restored = store.restore(state) if (store.steps() or [-1])[-1] >= steps else None
  return restored.state if restored is not None and restored.step >= steps else None


def _step(
  session: Session, specs: Mapping[str, Any], kernels: Loss,
  *, chain: Any, sync: train_step.Sync | None, placed: Any,
) -> Callable[..., Any]:  # fmt: skip
  """The jitted step, of this run alone or of all lanes, each with specs of its own."""
  parts: dict[str, Any] = dict(model=session.model, scorer=session.scorer, mesh=session.mesh)
  parts |= dict(accumulation=session.config.accumulation, sync=sync)
  if session.lanes is None:
    return train_step.make_train_step(loss=kernels, optimizer=chain, shardings=placed, **parts)
  return vectorised.step(session.lanes, **specs, **parts)


def _store(session: Session, name: str) -> Any:
  """Where the checkpoints of a stage lie."""
  directory = session.workdir / "checkpoints" / name
  store = checkpoints.Store(directory, keep=session.config.checkpoint.keep)
  return store if session.lanes is None else lanes.Turns(store, session.lanes.alone)


def _announced(name: str, loss: Any) -> dict[str, str]:
  """What every checkpoint of a stage says of its objective; printed as the stage starts."""
  formula, digest = objective.describe(loss)
  if jax.process_index() == 0:
    print(f"{name}: objective {digest}\n{textwrap.indent(formula, '  ')}", flush=True)
  return {"objective": formula, "objective_digest": digest}


def _sync(session: Session, kernels: Loss) -> train_step.Sync | None:
  """How the reference follows the policy; None where it stays, or is not read."""
  node = session.config.reference
  moves = node.sync_every and objective.needs_reference(kernels)
  return train_step.Sync(node.sync_every, node.sync_share) if moves else None


def _feed(
  session: Session, params: Any, data: batching.Data, kernels: Loss, batch_size: int
) -> tuple[Any, Any]:
  """The batches of a stage, and the weights of the reference where cached log-probs will not do."""
  config = session.config
  reads = objective.needs_reference(kernels)
  # In lanes the weights: runs that start alike would wait for each other's pass over the data.
  moves = bool(config.reference.sync_every)
  cached = reads and config.reference.cache and session.lanes is None and not moves
  attach = cache_reference(session, params, data) if cached else None
  feed = dict(batch_size=batch_size, seed=config.seed, attach=attach, **session.layout)
  start = functools.partial(batching.batches, data, shard=shard(), **feed)
  if reads and session.lane == 0:  # the runs of other lanes are like the first one
    _preflight(session, params, session.put(next(start())), kernels)
  live = reads and not moves and (attach is None or objective.asks(kernels, "kl"))
  return start(), params if live else None


def cache_reference(session: Session, params: Any, data: batching.Data) -> Callable[[Batch], Batch]:
  """Scores what the cache lacks of the data, once, and returns what puts it into batches."""
  config = session.config
  whole = session.whole(params)
  precision = f"{config.model.dtype}-{config.model.attention}-{jax.default_backend()}"
  directory = dataset.cache_directory(config.reference.cache_dir) / "reference"
  cache = reference.Cache(
    directory, reference.weights_digest(whole, session.architecture), precision
  )
  feed = dict(batch_size=config.data.batch_size, shuffle=False, **session.layout)
  total = batching.schedule(data, **feed).per_epoch

  def score(batch: Batch) -> LogProbs:
    session.poll()
    return session.score(whole, session.put(batch))

  rows = batching.batches(data, epochs=1, shard=shard(), **feed)
  reference.fill(rows, score, cache, total=total, wait=session.wait)
  return reference.attach(cache)


def _initial(
  session: Session, params: Any, chain: Any, loss: Loss, reference: Any
) -> tuple[train_step.TrainState, Any]:
  """A fresh state, made where it lives, and its shardings. It shares no memory with params."""
  make = lambda params, reference: train_step.init(params, chain, loss, reference)  # noqa: E731
  abstract = jax.eval_shape(make, params, reference)
  placed = sharding.named_shardings(abstract, session.mesh, session.config.rules)
  return jax.jit(make, out_shardings=placed)(params, reference), placed


def _preflight(session: Session, params: Any, batch: Batch, kernels: Loss) -> None:
  policy = session.score(session.whole(params), batch)
  with jax.set_mesh(session.mesh):
    tolerance = 1e-4 if session.config.model.dtype == "float32" else 1e-2
    train_step.preflight(policy, batch, kernels, tolerance=tolerance)


def shard() -> tuple[int, int]:
  """Which process this is, and of how many."""
  return jax.process_index(), jax.process_count()


def remembered(session: Session, name: str, compute: Callable[[], Evaluation]) -> dict[str, float]:
  """An evaluation's numbers, computed once in a workdir and read from then on.

  Beside results/NAME.json lie its lines, NAME.jsonl.
  """
  path = session.workdir / "results" / f"{name}.json"
  if path.exists():
    return json.loads(path.read_text())
  found = compute()
  numbers = {key: float(value) for key, value in found.numbers.items()}
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(workdir.plain(line), ensure_ascii=False) for line in found.lines)
    workdir.write_text(path.with_suffix(".jsonl"), "".join(f"{line}\n" for line in lines))
    workdir.write_json(path, numbers)
  return numbers


def lines(session: Session, name: str) -> list[dict[str, Any]]:
  """What an evaluation that is remembered found of each prompt."""
  return workdir.read_jsonl(session.workdir / "results" / f"{name}.jsonl")


def gathered(tree: Any) -> Any:
  """The whole of arrays that are sharded, as NumPy, on every process."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(tree, tiled=True)
  return jax.tree.map(np.asarray, tree)


def together(reason: str) -> None:
  """Waits for every process."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(reason)
