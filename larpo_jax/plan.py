r"""What a config will need, before a job is launched: memory a device, seconds a step, hours.

    python -m larpo_jax.plan --config experiments/real/ranked_answers.py --chip h100 --devices 8
    python -m larpo_jax.plan --config FILE.py --chip v5p --devices 256 --tokens 512,512

Needs no accelerator and no weights, only their config.json. Without --tokens it prepares the data
as a run does and plans its largest batch; with it, prompts and responses of so many tokens. Without
--chip it plans for the devices that are here.

The state's bytes are exact, what a step needs beside it is a formula (larpo_jax/estimate.py) within
15 % of what XLA allocates on CPUs. A step takes its arithmetic at --share of the datasheet's rate,
plus what devices send each other, as if neither hid the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from rich.console import Console
from rich.table import Table

from larpo_jax import estimate, hardware, objective, optimizers, session, sharding, train_step
from larpo_jax.data import batching, dataset, grouping
from larpo_jax.estimate import Choices, Work
from larpo_jax.models import config as config_lib
from larpo_jax.models import lora, transformer

ROOM_LEFT = 0.92  # of a device's memory: what a plan may fill
LONGEST = 2000  # batches that are looked at for the largest


class Model(NamedTuple):
  """A model without its numbers."""

  architecture: config_lib.Config
  params: Any  # abstract; those that are trained
  frozen: Any  # abstract; those under adapters, or None


class Job(NamedTuple):
  """What is planned."""

  config: Any
  model: Model
  works: list[Work]  # the batches of an epoch, or as many of them as are looked at
  machine: hardware.Machine
  per_epoch: int = 0  # batches; 0 where that is not known

  @property
  def limit(self) -> float:
    """Bytes of a device that a plan may fill."""
    return ROOM_LEFT * self.machine.chip.memory


class Plan(NamedTuple):
  """What one way to run a job needs."""

  mesh: dict[str, int]
  remat: str
  accumulation: int
  memory: dict[str, float]  # bytes a device, by what they are for
  compute: float  # seconds a step
  sending: float  # seconds a step

  @property
  def total(self) -> float:
    """Bytes a device."""
    return sum(self.memory.values())

  @property
  def seconds(self) -> float:
    """Of a step."""
    return self.compute + self.sending

  @property
  def flags(self) -> str:
    """What runs it so."""
    flags = [f"--config.mesh.{axis}={size}" for axis, size in self.mesh.items()]
    flags += [f"--config.accumulation={self.accumulation}", f"--config.model.remat={self.remat}"]
    return " ".join(flags)


def abstract_model(config: Any, tokenizer: Any) -> Model:
  """The model that a config names, from its config.json alone."""
  if config.model.path:
    architecture = config_lib.read(config.model.path)
  else:
    architecture = config_lib.read({**session.from_scratch(tokenizer), **config.model.shape})
  params = transformer.abstract(architecture)[1]
  if not config.model.lora.rank:
    return Model(architecture, params, None)
  node, key = config.model.lora, jax.random.key(0)
  adapters = dict(rank=node.rank, alpha=node.alpha, targets=tuple(node.targets))
  shape = lambda params: lora.add(params, architecture, key, **adapters)[1]  # noqa: E731
  frozen, trained = lora.split(jax.eval_shape(shape, params))
  return Model(architecture, trained, frozen)


def batches(
  config: Any, tokenizer: Any, tokens: tuple[int, int] | None, parts: int
) -> tuple[list[Work], int]:
  """The first batches of an epoch, and how many it has; with tokens (P, R) one batch, and 0."""
  loss, rounds = objective.resolve(config.loss), config.rounds
  reads = objective.needs_reference(loss)
  cached = config.reference.cache and not config.reference.sync_every
  live = reads and (not cached or objective.asks(loss, "kl"))
  same = dict(prompts=config.data.batch_size, accumulation=config.accumulation, live=live)
  if tokens is None and rounds is not None:
    begun = rounds.max_tokens if rounds.steps is not None else 0  # an answer's beginning
    tokens = config.data.max_prompt + begun, rounds.max_tokens
  if tokens is not None:
    P, R = tokens
    last = rounds and grouping.widest(rounds, rounds.count - 1)
    K = last or config.data.candidates or 2
    return [Work(responses=K, prompt=P, response=R, room=P + K * R, scored=K * R, **same)], 0
  data = dataset.from_node(config.data.to_dict(), tokenizer, "train")
  order = batching.schedule(
    data, batch_size=config.data.batch_size, seed=config.seed, shapes=config.data.shapes,
    rooms=config.data.rooms, split=(parts, config.accumulation),
  )  # fmt: skip
  found = []
  for step in range(min(order.per_epoch, LONGEST)):
    rows, (P, R), room = order[step]
    rows, K = rows[rows >= 0], data.candidates
    responses = (data.row_lengths[rows] - data.prompt_lengths[rows]).sum() / len(rows)
    room = room or P + K * R
    found.append(Work(responses=K, prompt=P, response=R, room=room, scored=responses, **same))
  return found, order.per_epoch


def held(job: Job, mesh: Mapping[str, int]) -> dict[str, float]:
  """Bytes a device of what is there between steps."""
  config, model = job.config, job.model
  on = AbstractMesh(tuple(mesh.values()), tuple(mesh))
  chain, _ = optimizers.build(config.optimizer, 1, model.params)
  kernels = objective.resolve(config.loss)
  make = lambda params: train_step.init(params, chain, kernels)  # noqa: E731
  place = lambda tree: sharding.named_shardings(tree, on, config.rules)  # noqa: E731
  size = lambda tree: float(estimate.state_bytes(tree, place(tree)))  # noqa: E731
  state = jax.eval_shape(make, model.params)
  trained = size(state.params)
  moves = config.reference.sync_every and objective.needs_reference(kernels)
  return {
    "parameters": trained + (0.0 if model.frozen is None else size(model.frozen)),
    "optimizer": size(state.opt_state),
    "where it starts, the reference": trained,
    **({"a reference that moves": trained} if moves else {}),
  }


def plan(
  job: Job, mesh: Mapping[str, int], remat: str, accumulation: int, state: Mapping[str, float]
) -> Plan:
  """Memory for the largest batch and time for the mean one; state is what `held` gives."""
  architecture, machine = job.model.architecture, job.machine
  how = Choices(jnp.dtype(job.config.model.dtype).itemsize, remat)
  works = [work._replace(accumulation=accumulation) for work in job.works]
  largest = max(works, key=lambda work: work.prompts * work.room)
  mean = largest._replace(
    room=sum(w.room for w in works) / len(works), scored=sum(w.scored for w in works) / len(works)
  )
  gradient = state["where it starts, the reference"]  # as large as what is trained
  memory = {**state, **estimate.activations(architecture, largest, how, mesh, gradient)}
  whole = 4.0 * sum(x.size for x in jax.tree.leaves((job.model.params, job.model.frozen)))
  share = 0.0 if job.model.frozen is not None else 1.0
  flops = estimate.flops(architecture, mean, trained=share, remat=remat)
  rate = machine.chip.flops * machine.share * machine.devices
  if machine.name != "cpu" and job.config.model.dtype == "float32":
    rate /= 2.0  # as TF32 has it
  moved = 2.0 * (memory["parameters"] + memory["optimizer"]) / machine.chip.bandwidth
  far, near = estimate.sent(architecture, mean, mesh, whole, how)
  apart = math.prod(mesh.values()) > machine.chip.beside  # tensor is the innermost axis
  sending = far / (machine.chip.network if apart else machine.chip.link) + near / machine.chip.link
  return Plan(dict(mesh), remat, accumulation, memory, flops / rate + moved, sending)


def meshes(devices: int, prompts: int) -> Iterator[dict[str, int]]:
  """Ways to use so many devices, the simplest first."""
  for tensor in (size for size in (1, 2, 4, 8) if devices % size == 0):
    left = devices // tensor
    for fsdp in sorted({1, min(8, left), left}):
      if left % fsdp == 0 and prompts % left == 0:
        yield dict(data=left // fsdp, fsdp=fsdp, tensor=tensor)


def fitting(job: Job) -> list[Plan]:
  """For each mesh and remat the fewest micro-batches that fit, the fastest first."""
  found = []
  prompts = job.config.data.batch_size
  for mesh in meshes(job.machine.devices, prompts):
    state, parts = held(job, mesh), mesh["data"] * mesh["fsdp"]
    for remat in ("dots", "full"):
      for accumulation in (2**n for n in range(16) if prompts % (parts * 2**n) == 0):
        each = plan(job, mesh, remat, accumulation, state)
        if each.total <= job.limit:
          found.append(each)
          break
  return sorted(found, key=lambda each: each.seconds)


def show(job: Job, console: Console) -> None:
  """Prints the plan of a config, of other meshes, and what to change where it does not fit."""
  config, machine = job.config, job.machine
  sizes = sharding.mesh_sizes(config.mesh, machine.devices)
  chosen = dict(zip(sharding.AXES, sizes))
  ask = lambda mesh: plan(  # noqa: E731
    job, mesh, config.model.remat, config.accumulation, held(job, mesh)
  )
  found = ask(chosen)
  _header(job, console)
  console.print(_memory_table(found, machine))
  _time(job, found, console)
  if machine.devices > 1:
    others = [ask(mesh) for mesh in meshes(machine.devices, config.data.batch_size)]
    console.print(_mesh_table(others, job.limit))
  if found.total > job.limit:
    better = fitting(job)
    console.print(
      f"[bold red]does not fit.[/] {better[0].total / 2**30:.1f} GiB and {better[0].seconds:.3g} s "
      f"a step with {better[0].flags}"
      if better
      else "[bold red]does not fit[/], and no mesh, accumulation or remat=full makes it: use more "
      "devices, fewer tokens, or adapters (--config.model.lora.rank=16)"
    )


def _mesh_table(plans: list[Plan], limit: float) -> Table:
  table = Table("mesh", "GiB a device", "s a step", "of it sending", title="other meshes")
  for each in plans:
    mark = "" if each.total <= limit else " (does not fit)"
    size = f"{each.total / 2**30:.2f}{mark}"
    table.add_row(_mesh_name(each.mesh), size, f"{each.seconds:.3g}", f"{each.sending:.3g}")
  return table


def _header(job: Job, console: Console) -> None:
  config, model, machine = job.config, job.model, job.machine
  work = max(job.works, key=lambda work: work.prompts * work.room)
  count = sum(x.size for x in jax.tree.leaves((model.params, model.frozen)))
  trained = sum(x.size for x in jax.tree.leaves(model.params))
  console.print(
    f"model    {model.architecture.model_type}, {count / 1e6:,.1f} M parameters, "
    f"{trained / 1e6:,.1f} M of them trained, computes in {config.model.dtype}, "
    f"remat={config.model.remat}"
  )
  console.print(
    f"batch    {work.prompts} prompts of {work.responses} responses, at most {work.prompt} + "
    f"{work.responses} x {work.response} tokens, {work.room:.0f} a prompt computed; "
    f"{work.accumulation} micro-batch(es); reference {'live' if work.live else 'cached or none'}"
  )
  memory = machine.chip.memory / 2**30
  console.print(
    f"machine  {machine.devices} x {machine.name}, {memory:.0f} GiB and "
    f"{machine.chip.flops / 1e12:.3g} TFLOP/s each, {machine.share:.0%} of it reached"
  )


def _memory_table(found: Plan, machine: hardware.Machine) -> Table:
  table = Table("memory a device", "GiB", title=_mesh_name(found.mesh), title_justify="left")
  for name, size in found.memory.items():
    table.add_row(name, f"{size / 2**30:.2f}")
  table.add_section()
  table.add_row("together", f"{found.total / 2**30:.2f}")
  table.add_row("there is", f"{machine.chip.memory / 2**30:.2f}")
  return table


def _time(job: Job, found: Plan, console: Console) -> None:
  steps, works = job.config.steps, job.works
  if steps < 0 and job.per_epoch:
    steps = max(1, math.ceil(job.config.epochs * job.per_epoch))
  tokens = sum(work.prompts * work.room for work in works) / len(works) / found.seconds
  text = f"a step takes about {found.seconds:.3g} s ({found.sending:.2g} s of it sending), "
  text += f"{tokens:,.0f} tokens/s"
  if steps >= 0:
    text += f"; {steps} steps take {steps * found.seconds / 3600:.2g} h"
  console.print(text)


def _mesh_name(mesh: Mapping[str, int]) -> str:
  return " ".join(f"{axis}={size}" for axis, size in mesh.items())


def job_of(config: Any, machine: hardware.Machine, tokens: tuple[int, int] | None) -> Job:
  """The job that a validated config names; raises what its parts raise."""
  tokenizer = session.load_tokenizer(config)
  sizes = sharding.mesh_sizes(config.mesh, machine.devices)
  works, per_epoch = batches(config, tokenizer, tokens, sizes[0] * sizes[1])
  return Job(config, abstract_model(config, tokenizer), works, machine, per_epoch)


if __name__ == "__main__":
  from absl import app, flags
  from ml_collections import config_flags

  from larpo_jax import config as configs

  _CONFIG = config_flags.DEFINE_config_file("config", help_string="FILE.py[:ARGUMENT]")
  _CHIP = flags.DEFINE_string("chip", "", f"One of {', '.join(hardware.CHIPS)}; '': what is here.")
  _DEVICES = flags.DEFINE_integer("devices", 0, "How many; 0: as many as are here.")
  _TOKENS = flags.DEFINE_list("tokens", [], "P,R: instead of the data's lengths.")
  _SHARE = flags.DEFINE_float("share", 0.0, "Of the rate that is reached; 0: what is known.")

  def main(argv: list[str]) -> int:
    """A user's mistake ends in one sentence."""
    if len(argv) > 1:
      raise app.UsageError(f"stray words: {' '.join(argv[1:])}; an override is --config.KEY=VALUE")
    try:
      tokens = tuple(int(word) for word in _TOKENS.value) or None
      if tokens is not None and (len(tokens) != 2 or min(tokens) < 1):
        raise ValueError(f"--tokens={','.join(_TOKENS.value)} must be two lengths, such as 512,512")
      machine = hardware.machine(_CHIP.value, _DEVICES.value, _SHARE.value)
      show(job_of(configs.validate(_CONFIG.value), machine, tokens), Console())
    except (ValueError, OSError) as error:
      print(f"larpo_jax: error: {error}", file=sys.stderr)
      return 1
    return 0

  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=configs.parse_flags)
