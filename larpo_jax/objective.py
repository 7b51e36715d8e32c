"""A loss as the step sees it: kernels with weights, what they ask for, the mean over prompts."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import inspect
import json
import re
from typing import Any

import jax
import jax.numpy as jnp

from larpo_jax import lookup, masked
from larpo_jax.types import Batch, Kernel, LogProbs, Metrics

PACKAGE = "larpo_jax.losses"
Loss = Kernel | Sequence[tuple[float, Kernel]]  # one kernel, or a weighted sum of several
Statistics = tuple[dict[str, jax.Array], ...]  # of each kernel; {} where it carries none


def resolve(spec: Any) -> list[tuple[float, Kernel]]:
  """The kernels that a spec node, or a sequence of nodes with a `weight` each, names."""
  found = []
  for node in _nodes(spec):
    arguments = dict(node)
    weight = float(arguments.pop("weight", 1.0))
    found.append((weight, lookup.resolve(arguments, PACKAGE)))
  return found


def describe(spec: Any) -> tuple[str, str]:
  """The formula that a spec names with all its hyper-parameters, and 12 digits that stand for it.

  The digits depend on names, weights, hyper-parameters and formulas, and on nothing else.
  """
  weight = lambda node: float(dict(node).get("weight", 1.0))  # noqa: E731
  text = "\n".join(f"{weight(node):g} x {_described(node)}" for node in _nodes(spec))
  return text, hashlib.sha256(text.encode()).hexdigest()[:12]


def kernels(loss: Loss) -> list[tuple[float, Kernel]]:
  """A loss as weighted kernels."""
  return [(1.0, loss)] if callable(loss) else list(loss)


def needs_reference(loss: Loss) -> bool:
  """Whether any kernel of the loss reads the reference."""
  return any(getattr(kernel, "needs_reference", True) for _, kernel in kernels(loss))


def couples_prompts(loss: Loss) -> bool:
  """Whether the loss of one prompt depends on the other prompts of the batch."""
  return any(getattr(kernel, "couples_prompts", False) for _, kernel in kernels(loss))


def asks(loss: Loss, field: str) -> bool:
  """Whether a kernel needs that field of the policy's LogProbs: "kl" or "collision"."""
  return any(field in getattr(kernel, "needs", ()) for _, kernel in kernels(loss))


def initial(loss: Loss) -> Statistics:
  """What the kernels carry from step to step, as it is before the first one."""
  return tuple(getattr(kernel, "statistics", dict)() for _, kernel in kernels(loss))


def evaluate(
  loss: Loss,
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  statistics: Statistics | None = None,
) -> tuple[jax.Array, Metrics, Statistics]:
  """The weighted sum of the kernels [B], the metrics of all {name: [B]}, their new statistics.

  statistics default to those before the first step. Raises ValueError when a kernel returns
  anything that is not one number a prompt.
  """
  total = jnp.zeros(batch.weight.shape, jnp.float32)
  gathered: Metrics = {}
  carried: list[dict[str, jax.Array]] = []
  before = initial(loss) if statistics is None else statistics
  for (weight, kernel), old in zip(kernels(loss), before, strict=True):
    given: tuple[Any, ...] = (policy, reference, batch, *([old] if old else []))
    found: Any = kernel(*given)
    per_prompt, metrics = found[:2]
    for name, value in {"the loss": per_prompt, **metrics}.items():
      if jnp.shape(value) != jnp.shape(batch.weight):
        raise ValueError(
          f"{name} of {getattr(kernel, '__name__', kernel)} has shape {jnp.shape(value)}, and has "
          f"to be one number a prompt, {jnp.shape(batch.weight)}; the step takes the mean"
        )
    total += weight * per_prompt
    gathered = {**metrics, **gathered}
    carried.append(found[2] if len(found) > 2 else {})
  return total, gathered, jax.lax.stop_gradient(tuple(carried))


def mean(
  loss: Loss,
  policy: LogProbs,
  reference: LogProbs,
  batch: Batch,
  statistics: Statistics | None = None,
) -> tuple[jax.Array, tuple[Metrics, Statistics]]:
  """The one place where anything is reduced over prompts: the mean, by their weights."""
  per_prompt, metrics, carried = evaluate(loss, policy, reference, batch, statistics)
  average = lambda x: masked.weighted_mean(x, batch.weight)  # noqa: E731
  return average(per_prompt), (jax.tree.map(average, metrics), carried)


def _nodes(spec: Any) -> list[Any]:
  return [spec] if hasattr(spec, "keys") else list(spec)


def _described(node: Any) -> str:
  """`pairwise.dpo(beta=0.1): -log sigmoid(...)`, a wrapper's kernel inside of it."""
  arguments = {key: value for key, value in dict(node).items() if key not in ("name", "weight")}
  kernel = lookup.find(str(node["name"]), PACKAGE)
  inner = arguments.pop("kernel", None)
  shown = [_described(inner)] if inner is not None else []
  values = {**lookup.keywords(kernel), **arguments}
  shown += [f"{key}={json.dumps(value, default=str)}" for key, value in values.items()]
  return f"{node['name']}({', '.join(shown)}): {formula(kernel)}"


def formula(kernel: Any) -> str:
  """What a kernel's docstring says after `Formula:`, on one line."""
  return section(kernel, "Formula")


def section(kernel: Any, title: str) -> str:
  """A titled paragraph of a docstring on one line; "" where it has none."""
  text = inspect.getdoc(kernel) or ""
  found = re.search(rf"^{title}: (.*?)(?=^\w+: |\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
  return " ".join(found[1].split()) if found else ""
