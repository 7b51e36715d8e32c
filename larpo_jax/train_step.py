"""The train step: one loss for every method, exact under accumulation and on any mesh."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx, struct
import jax
import jax.numpy as jnp
import optax

from larpo_jax import compiler, micro_batches, sharding
from larpo_jax import objective as objectives
from larpo_jax.objective import Loss, Statistics
from larpo_jax.types import Array, Batch, LogProbs, Metrics, Scorer


@struct.dataclass
class TrainState:
  """Everything that training changes; arrays only."""

  params: Any
  opt_state: Any
  step: jax.Array  # int32 []: optimiser steps, the skipped ones included
  skipped: jax.Array  # int32 []: non-finite steps in a row, up to now
  statistics: Statistics = ()  # what each kernel of the loss carries from step to step
  reference: Any = None  # what params are at a reference that moves with them


class Sync(NamedTuple):
  """A reference that follows the policy: (1 - share) reference + share policy, now and then.

  Source: TR-DPO, https://arxiv.org/abs/2404.09656, soft updates, and with share 1 hard ones.
  """

  every: int  # steps
  share: float  # above 0, at most 1


def init(
  params: Any,
  optimizer: optax.GradientTransformation,
  loss: Loss | None = None,
  reference: Any = None,
) -> TrainState:
  """The state before the first step: copies, so that params may go on as the reference.

  A loss that carries statistics has to be given, and a reference that is to move.
  """
  params, reference = jax.tree.map(jnp.copy, (params, reference))
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    params=params,
    opt_state=optimizer.init(params),
    step=zero,
    skipped=zero + 0,
    statistics=() if loss is None else objectives.initial(loss),
    reference=reference,
  )


def objective(
  params: Any, reference_params: Any, batch: Batch, *, model: Any, scorer: Scorer, loss: Loss
) -> tuple[jax.Array, Metrics]:
  """The weighted mean loss over the prompts of a batch, and the weighted mean of each metric."""
  parts = dict(model=model, scorer=scorer, loss=loss)
  policy = policy_logprobs(params, reference_params, batch, **parts)
  reference = reference_logprobs(reference_params, batch, **parts)
  value, (metrics, _) = objectives.mean(loss, policy, reference, batch)
  return value, metrics


def policy_logprobs(
  params: Any, reference_params: Any, batch: Batch, *, model: Any, scorer: Scorer, loss: Loss
) -> LogProbs:
  """What the policy says of a batch, with the fields that kernels of the loss ask for."""
  asked: dict[str, Any] = {}
  if objectives.asks(loss, "kl"):
    if reference_params is None:
      raise ValueError("this loss needs the reference's weights: its cached log-probs do not do")
    asked["reference"] = reference_params
  if objectives.asks(loss, "collision"):
    asked["collision"] = True
  return scorer(model, params, batch, **asked)


def reference_logprobs(
  reference_params: Any, batch: Batch, *, model: Any, scorer: Scorer, loss: Loss
) -> LogProbs:
  """Cached in the batch, computed from the reference's weights, or zeros if no kernel reads it."""
  if batch.reference is not None:
    return _reference_of(batch, batch.reference)
  if not objectives.needs_reference(loss):
    return _reference_of(batch, jnp.zeros(batch.response_mask.shape, jnp.float32))
  if reference_params is None:
    raise ValueError("this loss needs a reference: give its weights, or its log-probs in the batch")
  return jax.lax.stop_gradient(scorer(model, reference_params, batch))


def _reference_of(batch: Batch, token: Array) -> LogProbs:
  mask = jnp.asarray(batch.response_mask, jnp.float32)
  return LogProbs(token=jnp.where(mask > 0, token, 0.0), mask=mask)


def join(params: Any, frozen: Any) -> Any:
  """The whole model's parameters from those that are trained and those that are not."""
  return params if frozen is None else nnx.merge_state(frozen, params)


def value_and_gradient(
  params: Any,
  reference_params: Any,
  batch: Batch,
  accumulation: int = 1,
  statistics: Statistics = (),
  *,
  model: Any,
  scorer: Scorer,
  loss: Loss,
) -> tuple[jax.Array, Metrics, Any, Statistics]:
  """`objective`, its metrics, its gradient, and what the kernels carry on, in micro-batches.

  The number of micro-batches, `accumulation`, changes nothing. Raises ValueError when it does not
  divide the batch.
  """
  parts = dict(model=model, scorer=scorer, loss=loss)
  carries = any(statistics)
  if not carries and not objectives.couples_prompts(loss):
    mean = lambda params, batch: objective(params, reference_params, batch, **parts)  # noqa: E731
    return *micro_batches.summed(mean, params, batch, accumulation), statistics
  score = lambda params, batch: policy_logprobs(params, reference_params, batch, **parts)  # noqa: E731
  reference = lambda batch: reference_logprobs(reference_params, batch, **parts)  # noqa: E731
  whole = functools.partial(objectives.mean, loss, statistics=statistics if carries else None)
  value, (metrics, carried), gradient = micro_batches.coupled(
    score, reference, whole, params, batch, accumulation
  )
  return value, metrics, gradient, carried if carries else statistics


def update(
  state: TrainState,
  value: jax.Array,
  gradient: Any,
  optimizer: optax.GradientTransformation,
  statistics: Statistics = (),
) -> tuple[TrainState, jax.Array]:
  """The next state and the norm of the gradient, before any clipping.

  Where value or gradient are not finite, parameters, optimiser state and the kernels' statistics
  stay as they are.
  """
  norm = optax.tree.norm(gradient)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  finite = jnp.isfinite(value) & jnp.isfinite(norm)
  kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), params, state.params)
  # Moments wait for the parameters, which are made of the old ones: else XLA keeps copies of those.
  after = finite & ~jnp.isnan(sum(jnp.max(leaf) for leaf in jax.tree.leaves(kept)))
  keep = lambda new, old: jnp.where(after, new, old)  # noqa: E731
  new = TrainState(
    params=kept,
    opt_state=jax.tree.map(keep, opt_state, state.opt_state),
    step=state.step + 1,
    skipped=jnp.where(finite, 0, state.skipped + 1),
    statistics=jax.tree.map(keep, statistics, state.statistics),
    reference=state.reference,
  )
  return new, norm


def synced(state: TrainState, sync: Sync) -> TrainState:
  """The state after a step, its reference updated where that is due."""
  share = jnp.where(state.step % sync.every == 0, sync.share, 0.0)
  # In this form shares of 0 and 1 are exact: policy and reference are then one to the last bit.
  mixed = lambda old, new: ((1 - share) * old + share * new).astype(old.dtype)  # noqa: E731
  reference = jax.tree.map(mixed, state.reference, state.params)
  return dataclasses.replace(state, reference=reference)


def make_train_step(
  *, mesh: jax.sharding.Mesh, shardings: Any = None, **parts: Any
) -> Callable[..., tuple[TrainState, Metrics]]:
  """`make_step` of the same parts, jitted on a mesh; the old state is donated.

  shardings is the state's tree of shardings (default: as the first state's arrays lie on the mesh).
  step.lower(...) is what jax.jit's is.
  """
  return _on_mesh(make_step(**parts), mesh, shardings)


def make_step(
  *,
  model: Any,
  scorer: Scorer,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  accumulation: int = 1,
  sync: Sync | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """step(state, reference, batch, frozen=None) -> (state, metrics), a pure function.

  reference is what state.params were at the reference, or None where it is cached in the batch or
  not read, or where sync moves the state's own. frozen are the parameters that are not trained,
  such as those under adapters. accumulation is how many micro-batches a batch is cut into; it
  changes memory, and nothing else. A step whose loss or gradient is not finite leaves parameters,
  optimiser state and statistics as they were and counts as skipped. Raises ValueError when
  accumulation does not divide the batch, when the loss carries statistics and the state has none,
  and what `objective.evaluate` raises.
  """
  carries = any(objectives.initial(loss))

  def step(
    state: TrainState, reference: Any, batch: Batch, frozen: Any = None
  ) -> tuple[TrainState, Metrics]:
    if carries and not any(state.statistics):
      raise ValueError("this loss carries statistics: make the state with init(..., loss)")

    def whole(model: Any, params: Any, batch: Batch, **asked: Any) -> LogProbs:
      if "reference" in asked:
        asked["reference"] = join(asked["reference"], frozen)
      return scorer(model, join(params, frozen), batch, **asked)

    parts = dict(model=model, scorer=whole, loss=loss)
    against = reference if sync is None else state.reference
    value, metrics, gradient, statistics = value_and_gradient(
      state.params, against, batch, accumulation, state.statistics, **parts
    )
    new, norm = update(state, value, gradient, optimizer, statistics)
    new = new if sync is None else synced(new, sync)
    counted = (batch.response_mask > 0) & (batch.weight[:, None, None] > 0)
    return new, {
      **metrics,
      "loss": value,
      "grad_norm": norm,
      "skipped": new.skipped,
      "num_tokens": jnp.sum(counted.astype(jnp.float32)),
    }

  return step


def _on_mesh(step: Callable[..., Any], mesh: jax.sharding.Mesh, shardings: Any) -> Any:
  """The jitted step, whose first argument, the state, is donated and stays where it lies."""
  jitted = None

  def prepared(state):
    nonlocal jitted, shardings
    if jitted is None:
      shardings = shardings or jax.tree.map(lambda x: _lies(x, mesh), state)
      out = (shardings, sharding.replicated(mesh))
      told = compiler.large_products(jax.default_backend())
      jitted = jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=told)
    if state.step.sharding != shardings.step:  # fresh: placed here, so that one compilation does
      state = jax.device_put(state, shardings)
    return jitted, state

  def run(state, *arguments):
    with jax.set_mesh(mesh):
      function, state = prepared(state)
      return function(state, *arguments)

  def lower(state, *arguments):
    with jax.set_mesh(mesh):
      function, state = prepared(state)
      return function.lower(state, *arguments)

  run.lower = lower  # type: ignore[attr-defined]
  return run


def _lies(array: Any, mesh: jax.sharding.Mesh) -> jax.sharding.Sharding:
  """Where an array lies on the mesh; on all of it, if it does not yet."""
  there = getattr(array, "sharding", None)
  on_mesh = isinstance(there, jax.sharding.NamedSharding) and there.mesh == mesh
  return there if on_mesh else sharding.replicated(mesh)  # type: ignore[return-value]


def make_score_step(
  *, model: Any, scorer: Scorer, mesh: jax.sharding.Mesh
) -> Callable[[Any, Batch], LogProbs]:
  """score(params, batch) -> LogProbs, jitted, for the reference cache and for evaluation."""
  told = compiler.large_products(jax.default_backend())
  jitted = jax.jit(lambda params, batch: scorer(model, params, batch), compiler_options=told)

  def score(params, batch):
    with jax.set_mesh(mesh):
      return jitted(params, batch)

  return score


def preflight(policy: LogProbs, batch: Batch, loss: Loss, *, tolerance: float = 1e-4) -> float:
  """The loss where policy and reference are one; ValueError, with the likely causes, if it is off.

  policy is what training starts from, scored on the batch; the reference is the batch's, or the
  policy itself where it is not cached. The value there is known: log 2 for a pair, log K! for
  ListMLE; in general it is the loss of the policy against itself, which a kernel that reads no
  reference has anyway. tolerance is relative; 1e-3 and more is right for a model that computes in
  bfloat16.
  """
  several = tuple(objectives.kernels(loss))
  value, known, gap, row = jax.device_get(_at_reference(policy, batch, several))
  if not abs(value - known) <= tolerance * max(1.0, abs(known)):
    raise ValueError(
      f"before the first step the loss is {value:.6g}, and has to be {known:.6g}, as policy and "
      f"reference are the same there; a token's log-prob differs by up to {gap:.3g}, most on row "
      f"{row} of the data: the reference is not what training starts from (another checkpoint, "
      "adapters left out, another precision, dropout), or its cached log-probs are stale or of "
      "other tokens or masks; clear the cache or give the right reference"
    )
  return float(value)


@functools.partial(jax.jit, static_argnums=2)
def _at_reference(policy: LogProbs, batch: Batch, loss: Loss) -> tuple[jax.Array, ...]:
  """The loss, what it has to be, and the largest difference of a token with its row."""
  # What only training asks a scorer for is the same here on both sides: no KL, and a collision with
  # which WPO weighs every pair by 1, as weights near 0 would hide that anything is off.
  filled = {"kl": jnp.zeros_like(policy.token), "collision": policy.token}
  policy = policy.replace(**filled)  # type: ignore[attr-defined]
  same = _reference_of(batch, policy.token)
  reference = same if batch.reference is None else _reference_of(batch, batch.reference)
  value, known = (objectives.mean(loss, policy, other, batch)[0] for other in (reference, same))
  gap = jnp.max(jnp.abs(same.token - reference.token), axis=(1, 2))  # [B]
  gap = jnp.where(batch.weight > 0, gap, 0.0)
  return value, known, jnp.max(gap), batch.row[jnp.argmax(gap)]
