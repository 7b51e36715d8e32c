"""The train step: one loss for every method, exact under accumulation and on any mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import nnx, struct
import jax
import jax.numpy as jnp
import optax

from larpo_jax import masked, sharding
from larpo_jax.types import Batch, Kernel, LogProbs, Metrics, Scorer

Loss = Kernel | Sequence[tuple[float, Kernel]]  # one kernel, or a weighted sum of several


@struct.dataclass
class TrainState:
  """Everything that training changes; arrays only."""

  params: Any
  opt_state: Any
  step: jax.Array  # int32 []: optimiser steps, the skipped ones included
  skipped: jax.Array  # int32 []: non-finite steps in a row, up to now


def init(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(
    params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
  )


def objective(
  params: Any, reference_params: Any, batch: Batch, *, model: Any, scorer: Scorer, loss: Loss
) -> tuple[jax.Array, Metrics]:
  """The weighted mean loss over the prompts of a batch, and the weighted mean of each metric."""
  policy = scorer(model, params, batch)
  reference = reference_logprobs(reference_params, batch, model=model, scorer=scorer, loss=loss)
  per_prompt, metrics = evaluate(loss, policy, reference, batch)
  mean = lambda x: masked.weighted_mean(x, batch.weight)  # noqa: E731
  return mean(per_prompt), jax.tree.map(mean, metrics)


def reference_logprobs(
  reference_params: Any, batch: Batch, *, model: Any, scorer: Scorer, loss: Loss
) -> LogProbs:
  """Cached in the batch, computed from the reference's weights, or zeros if no kernel reads it."""
  mask = jnp.asarray(batch.response_mask, jnp.float32)
  if batch.reference is not None:
    return LogProbs(token=jnp.where(mask > 0, batch.reference, 0.0), mask=mask)
  if not needs_reference(loss):
    return LogProbs(token=jnp.zeros(mask.shape, jnp.float32), mask=mask)
  if reference_params is None:
    raise ValueError("this loss needs a reference: give its weights, or its log-probs in the batch")
  return jax.lax.stop_gradient(scorer(model, reference_params, batch))


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

  shardings is the state's tree of shardings (default: as the arrays come). accumulation is how many
  micro-batches a batch is cut into; it changes memory, and nothing else. A step whose loss or
  gradient is not finite leaves parameters and optimiser state as they were and counts as skipped.
  """
  differentiate = _coupled_gradient if couples_prompts(loss) else _summed_gradient

  def step(
    state: TrainState, reference: Any, batch: Batch, frozen: Any = None
  ) -> tuple[TrainState, Metrics]:
    def whole(model: Any, params: Any, batch: Batch) -> LogProbs:
      return scorer(model, join(params, frozen), batch)

    value, metrics, gradient = differentiate(
      state.params, reference, batch, accumulation, model=model, scorer=whole, loss=loss
    )
    norm = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    skipped = jnp.where(finite, 0, state.skipped + 1)
    new = TrainState(
      params=jax.tree.map(keep, params, state.params),
      opt_state=jax.tree.map(keep, opt_state, state.opt_state),
      step=state.step + 1,
      skipped=skipped,
    )
    counted = jnp.sum(batch.response_mask * batch.weight[:, None, None])
    return new, {
      **metrics,
      "loss": value,
      "grad_norm": norm,
      "skipped": skipped,
      "num_tokens": counted,
    }

  out = None if shardings is None else (shardings, sharding.replicated(mesh))
  jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
  return lambda *arguments: _on(mesh, jitted, *arguments)


def make_score_step(
  *, model: Any, scorer: Scorer, mesh: jax.sharding.Mesh
) -> Callable[[Any, Batch], LogProbs]:
  """score(params, batch) -> LogProbs, jitted, for the reference cache and for evaluation."""
  jitted = jax.jit(lambda params, batch: scorer(model, params, batch))
  return lambda *arguments: _on(mesh, jitted, *arguments)


def preflight(policy: LogProbs, batch: Batch, loss: Loss) -> float:
  """The loss where policy and reference are one; ValueError, with the likely causes, if it is off.

  The reference is the batch's, or the policy itself where it is not cached. A kernel that reads the
  reference depends on log-ratios, so the value there is the kernel's own on zeros: log 2 for a
  pair, log K! for ListMLE. A loss that holds a kernel without a reference is not checked.
  """
  value, known = (float(x) for x in _values_at_reference(policy, batch, tuple(kernels(loss))))
  checked = all(getattr(kernel, "needs_reference", True) for _, kernel in kernels(loss))
  if checked and not abs(value - known) <= 1e-3 * max(1.0, abs(known)):
    raise ValueError(
      f"before the first step the loss is {value:.6g}, and has to be {known:.6g}, as policy and "
      "reference are the same there: the reference is not what training starts from (another "
      "checkpoint, adapters left out, another precision), or its cached log-probs are of other "
      "tokens or masks"
    )
  return value


@functools.partial(jax.jit, static_argnums=2)
def _values_at_reference(policy: LogProbs, batch: Batch, loss: Loss) -> tuple[jax.Array, jax.Array]:
  """The loss as it is, and as it is where all log-probs are 0."""
  token = policy.token if batch.reference is None else batch.reference
  zeros = policy.replace(token=jnp.zeros_like(policy.token))
  pairs = ((policy, policy.replace(token=token)), (zeros, zeros))
  found = (masked.weighted_mean(evaluate(loss, *pair, batch)[0], batch.weight) for pair in pairs)
  return tuple(found)  # type: ignore[return-value]


def _micro(batch: Batch, count: int) -> Batch:
  """[B, ...] -> [count, B / count, ...], strided, so that each part lies on all devices."""
  cut = lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)  # noqa: E731
  return jax.tree.map(cut, batch)


def _whole(tree: Any) -> Any:
  """Undoes _micro."""
  join = lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])  # noqa: E731
  return jax.tree.map(join, tree)


def _summed_gradient(params, reference_params, batch, accumulation, *, model, scorer, loss):
  """One pass: sums over micro-batches, divided once by the batch's weight."""

  def summed(params, part):
    value, metrics = objective(
      params, reference_params, part, model=model, scorer=scorer, loss=loss
    )
    weight = jnp.sum(part.weight)
    return value * weight, jax.tree.map(lambda m: m * weight, metrics)

  total = jnp.sum(batch.weight)
  total = jnp.where(total > 0, total, 1.0)
  gradient_of = jax.value_and_grad(summed, has_aux=True)
  if accumulation == 1:
    sums = gradient_of(params, batch)
  else:
    parts = _micro(batch, accumulation)
    shapes = jax.eval_shape(gradient_of, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    add = lambda sums, part: (jax.tree.map(jnp.add, sums, gradient_of(params, part)), None)  # noqa: E731
    sums, _ = jax.lax.scan(add, zeros, parts)
  (value, metrics), gradient = jax.tree.map(lambda x: x / total, sums)
  return value, metrics, gradient


def _coupled_gradient(params, reference_params, batch, accumulation, *, model, scorer, loss):
  """Two passes: log-probs of all micro-batches, the loss on the whole batch, then one VJP each."""
  parts = _micro(batch, accumulation)
  policy = _whole(jax.lax.map(lambda part: scorer(model, params, part), parts))
  frozen = lambda part: reference_logprobs(  # noqa: E731
    reference_params, part, model=model, scorer=scorer, loss=loss
  )
  reference = _whole(jax.lax.map(frozen, parts))

  def whole(token):
    per_prompt, metrics = evaluate(loss, policy.replace(token=token), reference, batch)
    mean = lambda x: masked.weighted_mean(x, batch.weight)  # noqa: E731
    return mean(per_prompt), jax.tree.map(mean, metrics)

  (value, metrics), cotangent = jax.value_and_grad(whole, has_aux=True)(policy.token)

  def add(gradient, part_and_cotangent):
    part, pulled = part_and_cotangent
    _, backward = jax.vjp(lambda p: scorer(model, p, part).token, params)
    return jax.tree.map(jnp.add, gradient, backward(pulled)[0]), None

  zeros = jax.tree.map(jnp.zeros_like, params)
  gradient, _ = jax.lax.scan(add, zeros, (parts, _micro(cotangent, accumulation)))
  return value, metrics, gradient


def _on(mesh, function, *arguments):
  with jax.set_mesh(mesh):
    return function(*arguments)
