"""What every stage of a run shares, and how a stage is put together from the config."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from larpo_jax import (
  lookup,
  loop,
  preemption,
  sampling,
  sharding,
  train_step,
  vectorised,
  worlds,
  writers,
)
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.lanes import Lanes
from larpo_jax.models import config as config_lib
from larpo_jax.models import heads, huggingface, lora, transformer
from larpo_jax.types import Batch, Scorer


@dataclasses.dataclass(frozen=True)
class Session:
  """One run: its config, its mesh, its model, and where it writes."""

  config: Any
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  model: nnx.GraphDef
  architecture: config_lib.Config
  tokenizer: Any
  frozen: Any  # parameters under adapters, or None where all are trained
  scorer: Scorer
  score: Callable[..., Any]  # jitted (params, batch) -> LogProbs
  writer: writers.Writer
  guard: preemption.Guard
  lanes: Lanes | None = None  # where several runs share this process
  lane: int = 0  # which of them this is

  def put(self, batch: Batch) -> Batch:
    """Global arrays from this process's rows."""
    return sharding.put(batch, self.mesh)

  def wait(self, seconds: float) -> None:
    """Lets time pass while another run is at work; raises Preempted as poll does.

    This one's lane does not keep the others meanwhile.
    """
    self.poll()
    with contextlib.nullcontext() if self.lanes is None else self.lanes.away():
      time.sleep(seconds)

  @property
  def classifies(self) -> bool:
    """Whether the model scores texts, as reward models do, and writes none."""
    return getattr(self.scorer, "classifies", False)

  @property
  def layout(self) -> dict[str, Any]:
    """How `batching.batches` lays rows out for this mesh."""
    devices = math.prod(self.mesh.shape[axis] for axis in sharding.BATCH_AXES)
    sizes = {name: self.config.data[name] for name in ("shapes", "rooms")}
    return {**sizes, "split": (devices, self.config.accumulation)}

  def poll(self) -> None:
    """Raises Preempted where a signal has asked the run to stop; for loops outside of training."""
    if self.guard.poll(0):
      raise loop.Preempted("stopped between training steps; the same command resumes")

  def key(self, *path: int) -> jax.Array:
    """A random key that depends on the seed and on what it is for, never on the history."""
    return functools.reduce(jax.random.fold_in, path, jax.random.key(self.config.seed))

  def whole(self, params: Any) -> Any:
    """All parameters, where params are those that are trained."""
    return train_step.join(params, self.frozen)

  def sample(self, params: Any, ids: Any, mask: Any, key: jax.Array, **how: Any) -> Any:
    """K responses a prompt, on the mesh; see `sampling.sample`."""
    alone = contextlib.nullcontext() if self.lanes is None else self.lanes.alone
    with alone, jax.set_mesh(self.mesh):
      return sampling.sample(self.model, self.whole(params), ids, mask, key, **how)

  def decode(self, response: Any, mask: Any) -> list[list[str]]:
    """The texts of ids [B, K, R], special tokens left out."""
    keep = [[ids[on > 0] for ids, on in zip(*row)] for row in zip(response, mask)]
    return [self.tokenizer.batch_decode(row, skip_special_tokens=True) for row in keep]


def start(
  config: Any,
  workdir: pathlib.Path,
  writer: writers.Writer,
  guard: preemption.Guard,
  lanes: Lanes | None = None,
  lane: int = 0,
) -> tuple[Session, Any]:
  """The session, and the parameters that its first stage trains."""
  mesh = sharding.make_mesh(config.mesh)
  tokenizer = load_tokenizer(config)
  options = model_options(config)
  scorer = lookup.resolve(config.scorer, "larpo_jax.scorers")
  kind = heads if getattr(scorer, "classifies", False) else transformer
  key = jax.random.key(config.seed)
  place = functools.partial(sharding.named_shardings, mesh=mesh, rules=config.rules)
  if config.model.path:
    load = functools.partial(heads.begin, key=key) if kind is heads else huggingface.load
    model, params, architecture = load(config.model.path, mesh=mesh, rules=config.rules, **options)
  else:
    architecture = config_lib.read({**from_scratch(tokenizer), **config.model.shape})
    make = lambda key: kind.create(architecture, key, **options)[1]  # noqa: E731
    model, abstract = kind.abstract(architecture, **options)
    draw = lambda: jax.jit(make, out_shardings=place(abstract)).lower(key).compile()  # noqa: E731
    params = (draw() if lanes is None else lanes.once("parameters", draw))(key)
  frozen = None
  if config.model.lora.rank:
    adapters = dict(rank=config.model.lora.rank, alpha=config.model.lora.alpha)
    adapters["targets"] = tuple(config.model.lora.targets)
    drawn = jax.random.fold_in(key, 1)
    model, params, architecture = lora.add(params, architecture, drawn, **adapters, **options)
    frozen, params = lora.split(params)
  if len(tokenizer) > architecture.vocab_size:
    raise ValueError(
      f"the tokenizer has {len(tokenizer)} tokens and the model {architecture.vocab_size}: set "
      "tokenizer.path to the one that the model was trained with"
    )
  score = train_step.make_score_step(model=model, scorer=scorer, mesh=mesh)
  if lanes is not None:
    score = vectorised.score(lanes, lanes.once("score", lambda: score))
  parts = (config, workdir, mesh, model, architecture, tokenizer, frozen, scorer, score)
  return Session(*parts, writer, guard, lanes, lane), params


def model_options(config: Any) -> dict[str, Any]:
  """How the config's model computes."""
  options = {name: config.model[name] for name in ("attention", "remat", "scan")}
  return options | {"dtype": jnp.dtype(config.model.dtype)}


def load_tokenizer(config: Any) -> Any:
  """The config's tokenizer, its model's, or its world's."""
  if config.tokenizer.path or config.model.path:
    path = config.tokenizer.path or config.model.path
    return tokenizers.load(path, chat_template=config.tokenizer.chat_template)
  if config.world is None:
    raise ValueError("no tokenizer: set model.path or tokenizer.path, or choose a world")
  return worlds.find(config.world["name"]).tokenizer()


def from_scratch(tokenizer: Any) -> dict[str, Any]:
  """What a model from scratch takes from its tokenizer, and the usual of its kind."""
  return {
    "vocab_size": len(tokenizer),
    "bos_token_id": tokenizer.bos_token_id,
    "eos_token_id": tokenizer.eos_token_id,
    "pad_token_id": tokenizer.pad_token_id,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
  }
