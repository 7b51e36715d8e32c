"""What XLA says of a train step that is compiled for fake devices and never run."""

import jax
import jax.numpy as jnp
import optax
import toy

from larpo_jax import estimate, sampling, sharding, train_step
from larpo_jax.losses import pairwise
from larpo_jax.models import config as configs
from larpo_jax.models import transformer
from larpo_jax.scorers import tokens
from larpo_jax.types import Batch

LLAMA = dict(
  model_type="llama", vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=6,
  num_attention_heads=8, num_key_value_heads=4, rms_norm_eps=1e-5, max_position_embeddings=2048,
  tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=1, hidden_act="silu",
)  # fmt: skip


def abstract_batch(work, mesh, padding=0.25):
  """A batch of that work, without numbers."""
  on = sharding.batch_sharding(mesh)
  array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype, sharding=on)  # noqa: E731
  B, K, P, R = work[:4]
  return Batch(
    prompt=array(B, 1, P, dtype=jnp.int32),
    prompt_mask=array(B, 1, P, dtype=jnp.bool_),
    response=array(B, K, R, dtype=jnp.int32),
    response_mask=array(B, K, R),
    label=array(B, K),
    valid=array(B, K, dtype=jnp.bool_),
    weight=array(B),
    row=array(B, dtype=jnp.int32),
    reference=None if work.live else array(B, K, R),
    room=int(work.room),
  )


def of_step(work, mesh_shape, remat="dots", chunk=288, scan=True, **changes):
  """(compiled step, its bytes of state as estimated, the architecture, the choices)."""
  architecture = configs.read(LLAMA | changes)
  model, params = transformer.abstract(architecture, remat=remat, scan=scan)
  mesh, optimizer = toy.mesh_of(**mesh_shape), optax.adamw(1e-3)
  make = lambda params: train_step.init(params, optimizer, pairwise.dpo)  # noqa: E731
  state = jax.eval_shape(make, params)
  placed = sharding.named_shardings(state, mesh, toy.RULES)
  lie = lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on)  # noqa: E731
  given = jax.tree.map(lie, state, placed)
  scorer = lambda *args, **asked: tokens.causal(*args, chunk=chunk, **asked)  # noqa: E731
  step = train_step.make_train_step(
    model=model, scorer=scorer, loss=pairwise.dpo, optimizer=optimizer, mesh=mesh, shardings=placed,
    accumulation=work.accumulation,
  )  # fmt: skip
  reference = given.params if work.live else None
  compiled = step.lower(given, reference, abstract_batch(work, mesh)).compile()
  held = estimate.state_bytes(state, placed)
  held += estimate.state_bytes(params, placed.params) if work.live else 0
  return compiled, held, architecture, estimate.Choices(4, remat, chunk)


def of_sampling(work, mesh_shape, dtype="float32", **changes):
  """(what XLA says of sampling, the architecture, the choices)."""
  architecture = configs.read(LLAMA | changes)
  model, params = transformer.abstract(architecture, dtype=jnp.dtype(dtype))
  mesh = toy.mesh_of(**mesh_shape)
  placed = sharding.named_shardings(params, mesh, toy.RULES)
  lie = lambda x, on: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on)  # noqa: E731
  asked = abstract_batch(work, mesh)
  how = dict(candidates=work.responses, max_tokens=work.response, eos=1, pad=0)
  with jax.set_mesh(mesh):
    draw = jax.jit(lambda params, *asked: sampling.sample(model, params, *asked, **how))
    given = jax.tree.map(lie, params, placed), asked.prompt, asked.prompt_mask, jax.random.key(0)
    compiled = draw.lower(*given).compile()
  return compiled.memory_analysis(), architecture, estimate.Choices(jnp.dtype(dtype).itemsize)
