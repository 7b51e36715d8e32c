"""A few steps on a mesh of all devices; started once by each process of distributed_test."""

import os
import sys

from flax import nnx
import jax
from jax.experimental import multihost_utils
import numpy as np
import optax
import tiny
import toy

from larpo_jax import processes, sharding, train_step
from larpo_jax.losses import pairwise
from larpo_jax.scorers import tokens

STEPS = 3
LOSS = ((0.5, pairwise.dpo), (0.5, toy.sorted_pairs))  # the second reads the whole batch


def run(seed, mesh):
  """{name: array}: metrics of each step, and the parameters in the end."""
  model, params, _ = tiny.model(seed, "llama2", num_hidden_layers=1)
  _, reference, _ = tiny.model(seed + 1, "llama2", num_hidden_layers=1)
  optimizer = optax.adamw(1e-3, eps=1e-4)
  state = train_step.init(params, optimizer)
  placed = sharding.named_shardings(state, mesh, toy.RULES)
  state, reference = jax.device_put((state, reference), (placed, placed.params))
  step = train_step.make_train_step(
    model=model,
    scorer=tokens.causal,
    loss=LOSS,
    optimizer=optimizer,
    mesh=mesh,
    shardings=placed,
    accumulation=2,
  )
  found = {}
  here, count = jax.process_index(), jax.process_count()
  for index in range(STEPS):
    batch = tiny.batch(seed + index, B=8)
    mine = jax.tree.map(lambda x: np.split(x, count)[here], batch)
    state, metrics = step(state, reference, sharding.put(mine, mesh))
    found |= {f"{index} {name}": np.asarray(value) for name, value in metrics.items()}
  whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
  leaves = jax.tree_util.tree_leaves_with_path(whole(state.params))
  return found | {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def refuses_shared_prompts():
  """A tensor axis across processes would let each give other prompts for the same rows."""
  try:
    sharding.put(nnx.State({"x": np.zeros((8, 1))}), sharding.make_mesh(dict(tensor=-1)))
  except ValueError as error:
    return "the tensor axis must not be larger" in str(error)
  return False


if __name__ == "__main__":
  jax.config.update("jax_default_matmul_precision", "highest")
  processes.start(os.environ)
  assert jax.process_count() == 2
  assert refuses_shared_prompts()
  found = run(int(sys.argv[1]), sharding.make_mesh(dict(data=2, fsdp=2, tensor=2)))
  multihost_utils.sync_global_devices("done")
  if jax.process_index() == int(sys.argv[2]):
    np.savez(sys.argv[3], **found)
