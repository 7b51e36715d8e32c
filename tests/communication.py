"""What a compiled train step sends between devices, read off its HLO."""

import collections
import math
import re

import jax
import numpy as np
import optax
import tiny
import toy

from larpo_jax import sharding, train_step
from larpo_jax.losses import pairwise
from larpo_jax.scorers import tokens

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}
# Unrolled, so that what is sent for a layer stands there once a layer.
SHAPE = dict(num_hidden_layers=3, hidden_size=64, intermediate_size=128, vocab_size=512)
PROMPTS, ROOM = 16, 101  # no array of a parameter has an axis that is a multiple of ROOM


def of_step(mesh_shape):
  """[(kind, dimensions, bytes)] of a DPO step on that mesh, and the bytes of all parameters."""
  model, params, _ = tiny.model(0, "llama2", options=dict(scan=False), **SHAPE)
  batch = tiny.batch(0, B=PROMPTS, K=2, P=40, R=40, V=SHAPE["vocab_size"])
  batch = batch.replace(room=ROOM, reference=np.zeros(batch.response.shape, np.float32))
  mesh, optimizer = sharding.make_mesh(mesh_shape), optax.adamw(1e-3)
  make = lambda params: train_step.init(params, optimizer, pairwise.dpo)  # noqa: E731
  placed = sharding.named_shardings(jax.eval_shape(make, params), mesh, toy.RULES)
  step = train_step.make_train_step(
    model=model, scorer=tokens.causal, loss=pairwise.dpo, optimizer=optimizer, mesh=mesh,
    shardings=placed,
  )  # fmt: skip
  state = jax.jit(make, out_shardings=placed)(params)
  text = step.lower(state, None, sharding.put(batch, mesh)).compile().as_text()
  return sent(text), 4 * sum(leaf.size for leaf in jax.tree.leaves(params))


def sent(text):
  """[(kind, dimensions, bytes)] of the collectives of a compiled program."""
  found = []
  for shapes, kind in re.findall(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", text):
    for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
      dimensions = tuple(map(int, sizes.split(","))) if sizes else ()
      found.append((kind, dimensions, BYTES[dtype] * math.prod(dimensions)))
  return found


def totals(collectives):
  """kind -> (how many, bytes)."""
  count, size = collections.Counter(), collections.Counter()
  for kind, _, bytes_sent in collectives:
    count[kind] += 1
    size[kind] += bytes_sent
  return {kind: (count[kind], size[kind]) for kind in KINDS if count[kind]}
