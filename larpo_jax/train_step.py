"""The train step: one loss for every method, exact under accumulation and on any mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import nnx, struct
import jax
import jax.numpy as jnp
import optax

from larpo_jax import masked, micro_batches, sharding
from larpo_jax.types import Array, Batch, Kernel, LogProbs, Metrics, Scorer

Loss = Kernel | Sequence[tuple[float, Kernel]]  # one kernel, or a weighted sum of several


@struct.dataclass
class TrainState:
  """Everything that training changes; arrays only."""

  params: Any
  opt_state: Any
  step: jax.Array  # int32 []: optimiser steps, the skipped ones included
  skipped: jax.Array  # int32 []: non-finite steps in a row, up to now


def init(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step: copies, so that params may go on as the reference."""
  params = jax.tree.map(jnp.copy, params)
  zero = jnp.zeros((), jnp.int32)
  return TrainState(params=params, opt_state=optimizer.init(params), step=zero, skipped=zero + 0)


def objective(
  params: Any, reference_params: Any, batch: Batch, *, model: Any, scorer: Scorer, loss: Loss
) -> tuple[jax.Array, Metrics]:
  """The weighted mean loss over the prompts of a batch, and the weighted mean of each metric."""
  policy = scorer(model, params, batch)
  reference = reference_logprobs(reference_params, batch, model=model, scorer=scorer, loss=loss)
  return reduced(loss, policy, reference, batch)


def reduced(
  loss: Loss, policy: LogProbs, reference: LogProbs, batch: Batch
) -> tuple[jax.Array, Metrics]:
  """The one place where anything is reduced over prompts: the mean, by their weights."""
  per_prompt, metrics = evaluate(loss, policy, reference, batch)
  mean = lambda x: masked.weighted_mean(x, batch.weight)  # noqa: E731
  return mean(per_prompt), jax.tree.map(mean, metrics)


def reference_logprobs(
  reference_params: Any, batch: Batch, *, model: Any, scorer: Scorer, loss: Loss
) -> LogProbs:
  """Cached in the batch, computed from the reference's weights, or zeros if no kernel reads it."""
  if batch.reference is not None:
    return _reference_of(batch, batch.reference)
  if not needs_reference(loss):
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


def kernels(loss: Loss) -> list[tuple[float, Kernel]]:
  """A loss as weighted kernels."""
  return [(1.0, loss)] if callable(loss) else list(loss)


def needs_reference(loss: Loss) -> bool:
  """Whether any kernel of the loss reads the reference."""
  return any(getattr(kernel, "needs_reference", True) for _, kernel in kernels(loss))


def couples_prompts(loss: Loss) -> bool:
  """Whether the loss of one prompt depends on the other prompts of the batch."""
  return any(getattr(kernel, "couples_prompts", False) for _, kernel in kernels(loss))


def evaluate(
  loss: Loss, policy: LogProbs, reference: LogProbs, batch: Batch
) -> tuple[jax.Array, Metrics]:
  """The weighted sum of the kernels, [B], and the metrics of all of them, {name: [B]}.

  Raises ValueError when a kernel returns anything that is not one number a prompt.
  """
  total = jnp.zeros(batch.weight.shape, jnp.float32)
  gathered: Metrics = {}
  for weight, kernel in kernels(loss):
    per_prompt, metrics = kernel(policy, reference, batch)
    for name, value in {"the loss": per_prompt, **metrics}.items():
      if jnp.shape(value) != jnp.shape(batch.weight):
        raise ValueError(
          f"{name} of {getattr(kernel, '__name__', kernel)} has shape {jnp.shape(value)}, and has "
          f"to be one number a prompt, {jnp.shape(batch.weight)}; the step takes the mean"
        )
    total += weight * per_prompt
    gathered = {**metrics, **gathered}
  return total, gathered


def value_and_gradient(
  params: Any,
  reference_params: Any,
  batch: Batch,
  accumulation: int = 1,
  *,
  model: Any,
  scorer: Scorer,
  loss: Loss,
) -> tuple[jax.Array, Metrics, Any]:
  """`objective` and its gradient, computed in so many micro-batches; their number changes nothing.

  Raises ValueError when accumulation does not divide the batch.
  """
  parts = dict(model=model, scorer=scorer, loss=loss)
  if not couples_prompts(loss):
    mean = lambda params, batch: objective(params, reference_params, batch, **parts)  # noqa: E731
    return micro_batches.summed(mean, params, batch, accumulation)
  score = functools.partial(scorer, model)
  reference = lambda batch: reference_logprobs(reference_params, batch, **parts)  # noqa: E731
  whole = functools.partial(reduced, loss)
  return micro_batches.coupled(score, reference, whole, params, batch, accumulation)


def update(
  state: TrainState, value: jax.Array, gradient: Any, optimizer: optax.GradientTransformation
) -> tuple[TrainState, jax.Array]:
  """The next state and the norm of the gradient, before any clipping.

  Where value or gradient are not finite, parameters and optimiser state stay as they are.
  """
  norm = optax.tree.norm(gradient)
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  finite = jnp.isfinite(value) & jnp.isfinite(norm)
  keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
  new = TrainState(
    params=jax.tree.map(keep, params, state.params),
    opt_state=jax.tree.map(keep, opt_state, state.opt_state),
    step=state.step + 1,
    skipped=jnp.where(finite, 0, state.skipped + 1),
  )
  return new, norm


def make_train_step(
  *,
  model: Any,
  scorer: Scorer,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
  shardings: Any = None,
  accumulation: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """step(state, reference, batch, frozen=None) -> (state, metrics); the old state is donated.

  reference is what state.params were at the reference, or None where it is cached in the batch or
  not read. frozen are the parameters that are not trained, such as those under adapters.

  shardings is the state's tree of shardings (default: as the first state's arrays lie on the mesh).
  accumulation is how many micro-batches a batch is cut into; it changes memory, and nothing else.
  A step whose loss or gradient is not finite leaves parameters and optimiser state as they were
  and counts as skipped. step.lower(...) is what jax.jit's is. Raises ValueError when accumulation
  does not divide the batch, and what `evaluate` raises.
  """

  def step(
    state: TrainState, reference: Any, batch: Batch, frozen: Any = None
  ) -> tuple[TrainState, Metrics]:
    def whole(model: Any, params: Any, batch: Batch) -> LogProbs:
      return scorer(model, join(params, frozen), batch)

    value, metrics, gradient = value_and_gradient(
      state.params, reference, batch, accumulation, model=model, scorer=whole, loss=loss
    )
    new, norm = update(state, value, gradient, optimizer)
    counted = (batch.response_mask > 0) & (batch.weight[:, None, None] > 0)
    return new, {
      **metrics,
      "loss": value,
      "grad_norm": norm,
      "skipped": new.skipped,
      "num_tokens": jnp.sum(counted.astype(jnp.float32)),
    }

  return _on_mesh(step, mesh, shardings)


def _on_mesh(step: Callable[..., Any], mesh: jax.sharding.Mesh, shardings: Any) -> Any:
  """The jitted step, whose first argument, the state, is donated and stays where it lies."""
  jitted = None

  def prepared(state):
    nonlocal jitted, shardings
    if jitted is None:
      shardings = shardings or jax.tree.map(lambda x: _lies(x, mesh), state)
      out = (shardings, sharding.replicated(mesh))
      jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
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
  jitted = jax.jit(lambda params, batch: scorer(model, params, batch))

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
  value, known, gap, row = jax.device_get(_at_reference(policy, batch, tuple(kernels(loss))))
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
  same = _reference_of(batch, policy.token)
  reference = same if batch.reference is None else _reference_of(batch, batch.reference)
  value, known = (reduced(loss, policy, other, batch)[0] for other in (reference, same))
  gap = jnp.max(jnp.abs(same.token - reference.token), axis=(1, 2))  # [B]
  gap = jnp.where(batch.weight > 0, gap, 0.0)
  return value, known, jnp.max(gap), batch.row[jnp.argmax(gap)]
