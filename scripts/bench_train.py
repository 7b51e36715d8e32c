r"""Times training on the common work: the project's own loop, from one step to the next.

    python scripts/bench_train.py h256_v8k                           # DPO, reference cached
    python scripts/bench_train.py h256_v8k --reference live
    python scripts/bench_train.py h256_v8k --set data.groups_per_batch=4 --set data.responses=8 \
      --loss listwise.listmle --layout rows

The spec's weights are written as a Hugging Face checkpoint and loaded from it, its rows come out of
the memory-mapped store through the prefetching iterator, and `loop.fit` drives the step. So a step
has everything that a user waits for: collating, attaching cached reference log-probs, placing on
the device, forward and backward, metrics, AdamW, and every tenth step a row of metrics.jsonl and
TensorBoard, which is as often as TRL logs. A checkpoint is saved after the last step, untimed.

The policy starts from stream 0 of the spec's weights and the reference is stream 1, so that
implicit rewards are not 0. `--reference cached` scores the rows before training, `live` gives the
step the reference's weights, `none` is for losses that read none. `--layout rows` gives each
response of a list a prompt of its own: what sharing the prompt saves. `--model KEY=VALUE` sets an
option of the transformer, such as remat=full or attention=fused.

Prints one line of JSON: `timing` of the steps (`median_s`, `own_cpu_median_s`, contention),
`responses_per_s`, `tokens_per_s` (each response with its prompt, as the peers count), `losses` of
all steps, `peak_rss_mib` as the last step begins, `compile_s` (the first call of the step),
`compilations` in the loop and after its first step, `data_wait_share`, `flops`,
`minimum_gflops_per_s` and its `share_of_peak`: FLOPs with each prompt computed once, no padding and
a cached reference, over the time of a step, over a matmul's rate in this process. A live reference
does more than that minimum and is still divided by it. On a GPU `mfu` is that over the datasheet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import dataclasses
import functools
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import bench_work
import jax
import jax.numpy as jnp
import numpy as np

from larpo_jax import (
  checkpoints,
  compiler,
  hardware,
  lookup,
  loop,
  objective,
  optimizers,
  preemption,
  sharding,
  train_step,
  workdir,
  writers,
)
from larpo_jax.data import batching, reference
from larpo_jax.types import Batch

LOG_EVERY = 10
COMPILED = "/jax/core/compile/backend_compile_duration"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = bench_work.parser(__doc__ or "")
  parser.add_argument("--reference", choices=("cached", "live", "none"), default="cached")
  parser.add_argument("--loss", default="pairwise.dpo")
  parser.add_argument("--layout", choices=("lists", "rows"), default="lists")
  parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
  parser.add_argument("--warmup", type=int, default=5, help="steps before them, at least 1")
  parser.add_argument("--devices", type=int, default=0, help="0: all")
  return parser.parse_args(argv)


@dataclasses.dataclass
class Watch:
  """What is noted at the start of every step."""

  clock: Any
  compiled: int = 0  # programs, up to now
  calls: list[float] = dataclasses.field(default_factory=list)  # seconds that dispatching took
  programs: list[int] = dataclasses.field(default_factory=list)  # compiled before each step
  losses: list[jax.Array] = dataclasses.field(default_factory=list)
  peak_rss: float = 0.0

  def note(self, event: str, duration_secs: float, **others: Any) -> None:
    """Counts compilations."""
    self.compiled += event == COMPILED


@dataclasses.dataclass(frozen=True)
class Feed:
  """Endless batches in the spec's order, and the reference's weights where they are live."""

  batches: Any
  reference: Any


def watched(step: Callable[..., Any], watch: Watch, measure: Any) -> Callable[..., Any]:
  """The step, noting when each one begins; peak memory is before the save at the end."""

  def run(state: Any, batch: Batch) -> Any:
    watch.clock.tick()
    watch.peak_rss = measure.peak_rss_mib()
    watch.programs.append(watch.compiled)
    began = time.perf_counter()
    state, metrics = step(state, batch)
    watch.calls.append(time.perf_counter() - began)
    watch.losses.append(metrics["loss"])
    return state, metrics

  return run


def own_prompts(batch: Batch) -> Batch:
  """Each response with a prompt of its own, [B, K, P]."""
  K = batch.response.shape[1]
  prompt, mask = (np.repeat(x, K, axis=1) for x in (batch.prompt, batch.prompt_mask))
  tokens = mask.sum() + np.count_nonzero(batch.response_mask)
  room = (int(tokens) // len(prompt) // 16 + 1) * 16
  return dataclasses.replace(batch, prompt=prompt, prompt_mask=mask, room=room)


def feed(
  directory: pathlib.Path, data: Any, options: argparse.Namespace, size: int, mesh: Any,
  load: Callable[[], Any],
) -> Feed:  # fmt: skip
  """Batches of the data; load() gives the reference's model, which cached it does not outlive."""
  shape = own_prompts if options.layout == "rows" else lambda batch: batch
  ordered = functools.partial(
    batching.batches, data, batch_size=size, shuffle=False, shapes=1,
    rooms=8, split=(mesh.size, 1),
  )  # fmt: skip
  if options.reference == "none":
    return Feed(ordered(attach=shape), None)
  model, params, architecture = load()
  if options.reference == "live":
    return Feed(ordered(attach=shape), params)
  digest = reference.weights_digest(params, architecture)
  cache = reference.Cache(directory / "reference-cache", digest, options.dtype)
  score = train_step.make_score_step(model=model, scorer=scorer(), mesh=mesh)
  rows = ordered(epochs=1, attach=shape)
  reference.fill(rows, lambda batch: score(params, sharding.put(batch, mesh)), cache)
  attach = reference.attach(cache)
  return Feed(ordered(attach=lambda batch: attach(shape(batch))), None)


def loss_of(name: str, beta: float) -> Any:
  """The kernel with the spec's beta, where it takes one."""
  takes = lookup.keywords(lookup.find(name, objective.PACKAGE))
  return objective.resolve({"name": name, **({"beta": beta} if "beta" in takes else {})})


def scorer() -> Any:
  """The scorer of a language model, by name, as a config gives it."""
  return lookup.resolve({"name": "tokens.causal"}, "larpo_jax.scorers")


def optimizer_of(spec: dict[str, Any], steps: int, params: Any) -> Any:
  """AdamW as the spec has it, at a constant rate, and the rate."""
  node = {"name": "adamw", "learning_rate": spec["lr"], "schedule": "constant"}
  node |= {key: spec[key] for key in ("b1", "b2", "eps", "weight_decay", "clip")}
  return optimizers.build(node, steps, params)


def train(
  directory: pathlib.Path, options: argparse.Namespace, spec: dict[str, Any], batches: Any,
  workload: Any, measure: Any, watch: Watch,
) -> list[dict[str, Any]]:  # fmt: skip
  """Runs the loop to its end; the rows of metrics that it wrote."""
  mesh = sharding.make_mesh({"data": -1}, jax.devices()[: options.devices or None])
  how = {"mesh": mesh, "dtype": options.dtype, **bench_work.model_options(options.model)}
  weights = functools.partial(workload.make_weights, spec)
  load = lambda name, stream: bench_work.load(directory / name, spec, weights(stream), **how)  # noqa: E731
  data = bench_work.tokenized(directory / "data", batches)
  size = spec["data"]["groups_per_batch"]
  loss = loss_of(options.loss, spec["dpo"]["beta"])
  fed = feed(directory, data, options, size, mesh, lambda: load("reference", 1))
  model, params, _ = load("policy", 0)
  steps = options.warmup + options.steps
  optimizer, rate = optimizer_of(spec["optim"], steps, params)
  make = functools.partial(train_step.init, optimizer=optimizer, loss=loss)
  placed = sharding.named_shardings(jax.eval_shape(make, params), mesh, {})
  state = jax.jit(make, out_shardings=placed)(params)
  # A run holds one more copy of the weights: where it starts, which is its reference as well.
  start = params if fed.reference is None else fed.reference
  del params
  step = train_step.make_train_step(
    model=model, scorer=scorer(), loss=loss, optimizer=optimizer, mesh=mesh, shardings=placed
  )
  run = watched(lambda state, batch: step(state, fed.reference, batch), watch, measure)
  store = checkpoints.Store(directory / "run" / "checkpoints")
  writer = writers.Writer(directory / "run")
  with preemption.Guard() as guard:
    outlet = loop.Outlet(store, writer, guard)
    plan = loop.Plan(steps, log_every=LOG_EVERY, save_every=0)
    put = functools.partial(sharding.put, mesh=mesh)
    loop.fit("bench", state, step=run, batches=fed.batches, put=put, plan=plan, outlet=outlet,
             rate=rate)  # fmt: skip
  del start
  store.close()
  writer.close()
  return writers.read(directory / "run")


def utilisation(options: argparse.Namespace, flops: float, step: float) -> Any:
  """What the minimum of FLOPs over the time of a step is worth on this machine."""
  size = 2048 if jax.default_backend() == "cpu" else None
  count = options.devices or jax.device_count()
  every = hardware.peak_flops(jnp.dtype(options.dtype), size=size, repeats=10)  # of all devices
  peak = every if jax.default_backend() == "cpu" else every * count / jax.device_count()
  found = {
    "minimum_gflops_per_s": flops / step / 1e9,
    "matmul_gflops_per_s": peak / 1e9,
    "share_of_peak": flops / step / peak,
  }
  sheet = hardware.chip_of(jax.devices()[0].device_kind)
  if sheet:
    found["mfu"] = flops / step / sheet.flops / count
  stats = jax.devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    found["peak_device_mib"] = stats["peak_bytes_in_use"] / 2**20
  return found


def measured(options: argparse.Namespace) -> dict[str, Any]:
  """One run, as what is printed."""
  bench = bench_work.find(options.bench)
  workload, measure = bench_work.modules(bench, "workload", "measure")
  spec = workload.load_spec(bench_work.spec_path(bench, options.spec), options.set)
  batches = workload.make_batches(spec)
  watch = Watch(measure.StepClock())
  rss_before = measure.rss_mib()
  jax.monitoring.register_event_duration_secs_listener(watch.note)
  try:
    with tempfile.TemporaryDirectory() as scratch:
      rows = train(pathlib.Path(scratch), options, spec, batches, workload, measure, watch)
  finally:
    jax.monitoring.unregister_event_duration_listener(watch.note)
  watch.clock.drop(options.warmup - 1)
  timing, flops = watch.clock.summary(), workload.flops_per_batch(spec, batches)
  step, shape = timing["median_s"], workload.describe_batches(batches)
  waits = [row["throughput/data_wait"] for row in rows if "throughput/data_wait" in row]
  return {
    "bench": "larpo_jax",
    "spec": spec["name"],
    "variant": "_".join((options.reference, options.layout, options.dtype, options.loss)),
    "options": {"set": options.set, "model": options.model},
    "versions": workdir.versions(),
    "hardware": workdir.hardware(),
    "timing": timing,
    "responses_per_s": spec["data"]["groups_per_batch"] * spec["data"]["responses"] / step,
    "tokens_per_s": shape["tokens_concat"] / step,
    "peak_rss_mib": watch.peak_rss,
    "rss_before_mib": rss_before,
    "compile_s": watch.calls[0],
    "compilations": {
      "loop": watch.programs[-1] - watch.programs[0],
      "after_first_step": watch.programs[-1] - watch.programs[1],
    },
    "data_wait_share": waits[-1] if len(waits) > 1 else None,  # the first row has the compilation
    "flops": flops,
    **utilisation(options, flops["minimum"], step),
    "losses": [float(loss) for loss in watch.losses],
    "env": measure.environment(),
  }


def main(argv: list[str] | None = None) -> None:
  """Trains, measures, prints."""
  compiler.set_flags(os.environ)  # as a run does; XLA reads them when it first computes
  options = arguments(argv)
  if options.warmup < 1 or options.steps < 1:
    raise SystemExit("--steps and --warmup are at least 1: a step is timed from the one before it")
  reads = objective.needs_reference(loss_of(options.loss, 0.1))
  if reads and options.reference == "none":
    raise SystemExit(f"{options.loss} reads a reference: --reference cached or live")
  print(json.dumps(measured(options)), flush=True)


if __name__ == "__main__":
  main()
