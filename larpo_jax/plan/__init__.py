r"""What a config will need, before a job is launched: memory a device, seconds a step, hours.

    python -m larpo_jax.plan --config experiments/real/ranked_answers.py --chip h100 --devices 8
    python -m larpo_jax.plan --config FILE.py --chip v5p --devices 256 --tokens 512,512

Needs no accelerator and no weights, only their config.json. Without --tokens it prepares the data
as a run does and plans its largest batch; with it, prompts and responses of so many tokens. Without
--chip it plans for the devices that are here.

The state's bytes are exact, what a step or the sampling of a round needs beside it is a formula
(larpo_jax/estimate.py) within 15 % of what XLA allocates on CPUs. A step takes its arithmetic at
--share of the datasheet's rate, plus what devices send each other, as if neither hid the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from larpo_jax import (
  estimate,
  hardware,
  lookup,
  objective,
  optimizers,
  session,
  sharding,
  train_step,
)
from larpo_jax.data import batching, dataset, grouping
from larpo_jax.estimate import Choices, Work
from larpo_jax.models import config as config_lib
from larpo_jax.models import heads, lora, transformer
from larpo_jax.plan import rounds

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
  kind = heads if classifies(config) else transformer
  params = kind.abstract(architecture)[1]
  if not config.model.lora.rank:
    return Model(architecture, params, None)
  node, key = config.model.lora, jax.random.key(0)
  adapters = dict(rank=node.rank, alpha=node.alpha, targets=tuple(node.targets))
  shape = lambda params: lora.add(params, architecture, key, **adapters)[1]  # noqa: E731
  frozen, trained = lora.split(jax.eval_shape(shape, params))
  return Model(architecture, trained, frozen)


def classifies(config: Any) -> bool:
  """Whether the model scores texts and has no logits."""
  scorer = lookup.resolve(config.scorer, "larpo_jax.scorers")
  return getattr(scorer, "classifies", False)


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
    scored = 0 if classifies(config) else K * R
    return [Work(responses=K, prompt=P, response=R, room=P + K * R, scored=scored, **same)], 0
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
    room, scored = room or P + K * R, 0 if classifies(config) else responses
    found.append(Work(responses=K, prompt=P, response=R, room=room, scored=scored, **same))
  return found, order.per_epoch


def held(job: Job, mesh: Mapping[str, int]) -> dict[str, float]:
  """Bytes a device of what is there between steps."""
  config, model = job.config, job.model
  on = AbstractMesh(tuple(mesh.values()), tuple(mesh))
  chain, _ = optimizers.build(config.optimizer, 1, model.params)
  kernels = objective.resolve(config.loss)
  make = lambda params: train_step.init(params, chain, kernels)  # noqa: E731
  place = lambda tree: sharding.named_shardings(tree, on, config.rules)  # noqa: E731
  bytes_of = lambda tree: float(estimate.state_bytes(tree, place(tree)))  # noqa: E731
  state = jax.eval_shape(make, model.params)
  trained = bytes_of(state.params)
  moves = config.reference.sync_every and objective.needs_reference(kernels)
  return {
    "parameters": trained + (0.0 if model.frozen is None else bytes_of(model.frozen)),
    "optimizer": bytes_of(state.opt_state),
    "where it starts, the reference": trained,
    **({"a reference that moves": trained} if moves else {}),
    **({"reward model": size} if (size := rounds.reward_model(config)) else {}),
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


def job_of(config: Any, machine: hardware.Machine, tokens: tuple[int, int] | None) -> Job:
  """The job that a validated config names; raises what its parts raise."""
  tokenizer = session.load_tokenizer(config)
  sizes = sharding.mesh_sizes(config.mesh, machine.devices)
  works, per_epoch = batches(config, tokenizer, tokens, sizes[0] * sizes[1])
  return Job(config, abstract_model(config, tokenizer), works, machine, per_epoch)
