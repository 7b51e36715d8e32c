"""What a plan says on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
import math

import jax
from rich.console import Console
from rich.table import Table

from larpo_jax import hardware, sharding
from larpo_jax.plan import Job, Plan, fitting, held, meshes, plan, rounds


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
  console.print(_memory_table(_mesh_name(found.mesh), found.memory, machine))
  samples = rounds.sampling(config, job.model.architecture, held(job, chosen), chosen, job.works[0])
  if samples:
    console.print(_memory_table("while a round samples", samples, machine))
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
  if sum(samples.values()) > job.limit:
    console.print(
      "[bold red]sampling does not fit.[/] Lower config.rounds.batch_size, or split the weights "
      "that sampling makes whole: raise config.mesh.tensor"
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
  for path in rounds.absent(config):
    console.print(f"[yellow]{path} is not there yet[/]: what it will hold is not counted")


def _memory_table(title: str, memory: Mapping[str, float], machine: hardware.Machine) -> Table:
  table = Table("memory a device", "GiB", title=title, title_justify="left")
  for name, size in memory.items():
    table.add_row(name, f"{size / 2**30:.2f}")
  table.add_section()
  table.add_row("together", f"{sum(memory.values()) / 2**30:.2f}")
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
