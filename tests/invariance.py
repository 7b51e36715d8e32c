"""The invariance matrix: every kernel, computed in every way that has to change nothing.

Two halves, as a real decoder for each kernel and way would have to be compiled for an hour:

* `Decoder` is the real model and scorer. A way of computing is compiled once, as the log-probs and
  their pull-back; every kernel's loss and slope are taken on the log-probs of that way, in its own
  order and padding, and the slopes are pulled back to the parameters.
* `Steps` is the real `train_step.value_and_gradient`, in micro-batches and on meshes, of a model of
  bigrams. Its loss is the sum of all kernels with weights that are arguments, so that one
  compilation serves them all; each kernel is run with a weight of 1 and the others of 0.

Errors are relative: those of a loss to max(1, |loss|), those of a gradient to its largest number.
"""

import dataclasses
import functools

from draws import reordered
import jax
import jax.numpy as jnp
import kernels
import numpy as np
import tiny
import toy

from larpo_jax import objective, sharding, train_step
from larpo_jax.scorers import tokens

SIZE = 104  # of the toy's vocabulary: every mesh here divides it
MESHES = {"1x1x1": (1, 1, 1), "2x1x1": (2, 1, 1), "8x1x1": (8, 1, 1)}
MESHES |= {"2x2x2": (2, 2, 2), "1x4x2": (1, 4, 2)}
DEPTH = dict(num_hidden_layers=2)


def lists(seed, B):
  """A batch with everything that kernels tell apart: ties, zeros, short lists, weights, spans."""
  rng = np.random.default_rng(seed)
  batch = toy.weighted(tiny.batch(seed, B=B, K=4), seed)
  label = rng.integers(-1, 2, batch.label.shape)
  label[0] = rng.permutation(4) - 1
  label[3] = 1  # a list that orders nothing
  valid = batch.valid & (np.arange(4) < rng.integers(1, 5, (B, 1)))
  valid[0], valid[4], valid[5] = True, [True, False, False, False], False
  prompt_mask = batch.prompt_mask.copy()
  prompt_mask[6] = False
  return batch.replace(
    prompt_mask=prompt_mask,
    label=label.astype(np.float32),
    valid=valid,
    response_mask=batch.response_mask * valid[..., None],
    row=np.where(batch.weight > 0, rng.permutation(1000)[:B], -1).astype(np.int32),
    score=(1.3 * label + rng.normal(size=label.shape)).astype(np.float32),
    importance=(rng.uniform(0.2, 12, label.shape) * (rng.random(label.shape) < 0.8)).astype(
      np.float32
    ),
    span=rng.integers(0, 3, batch.response.shape).astype(np.int32),
  )


def near(params, seed, scale):
  """Other parameters, so near that log-ratios are a few nats, as in training."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape).astype(np.float32), params)


def errors(found, wanted):
  """Of (loss, gradient, ...) against the same of another way: two relative numbers."""
  loss, other = float(found[0]), float(wanted[0])
  pairs = [
    (np.asarray(x), np.asarray(y))
    for x, y in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wanted[1]), strict=True)
  ]
  largest = max(float(np.max(np.abs(y))) for _, y in pairs)
  apart = max(float(np.max(np.abs(x - y))) for x, y in pairs)
  return abs(loss - other) / max(1.0, abs(other)), apart / largest


# The real decoder.


@dataclasses.dataclass(frozen=True)
class Way:
  """How the decoder is computed: its mesh, what is done to the batch, how model and scorer work."""

  mesh: tuple[int, int, int] = (1, 1, 1)
  change: str = "same"
  options: tuple = ()
  chunk: int = 1024
  cached: bool = False


def padded_right(batch):
  """The same prompts with their padding on the other side."""
  order = np.argsort(~batch.prompt_mask, axis=-1, kind="stable")
  move = lambda x: np.take_along_axis(x, order, -1)  # noqa: E731
  return batch.replace(prompt=move(batch.prompt), prompt_mask=move(batch.prompt_mask))


def wider(batch):
  """The same batch, padded to longer prompts and responses, with another token for padding."""
  left, right = [(0, 0), (0, 0), (5, 0)], [(0, 0), (0, 0), (0, 4)]
  junk = lambda x, width: np.pad(x, width, constant_values=9)  # noqa: E731
  return batch.replace(
    prompt=junk(batch.prompt, left),
    prompt_mask=np.pad(batch.prompt_mask, left),
    response=junk(batch.response, right),
    response_mask=np.pad(batch.response_mask, right),
    span=np.pad(batch.span, right),
  )


def candidates(batch):
  """Every list in an order of its own."""
  B, K = batch.label.shape
  return reordered(batch, np.random.default_rng(B).permuted(np.tile(np.arange(K), (B, 1)), axis=1))


def prompts(batch):
  """The prompts in another order."""
  order = np.random.default_rng(1).permutation(len(batch.weight))
  return jax.tree.map(lambda x: x[order], batch)


CHANGES = dict(padded_right=padded_right, wider=wider, candidates=candidates, prompts=prompts)
CHANGES["same"] = lambda batch: batch
WAYS = {
  **{f"mesh {name}": Way(mesh=shape) for name, shape in MESHES.items() if name != "1x1x1"},
  "prompts padded right": Way(change="padded_right"),
  "padded wider": Way(change="wider"),
  "candidates reordered": Way(change="candidates"),
  "prompts reordered": Way(change="prompts"),
  "cached reference": Way(cached=True),
  "remat none": Way(options=(("remat", "none"),)),
  "remat full": Way(options=(("remat", "full"),)),
  "chunks of 5": Way(chunk=5),
  "layers unrolled": Way(options=(("scan", False),)),
}


class Kernels:
  """Mean loss of every kernel, and its slope in the log-probs: compiled once for both halves."""

  def __init__(self, names=kernels.SUBJECTS):
    self.names = tuple(names)
    self.compiled = jax.jit(lambda *given: {name: self._one(name, *given) for name in self.names})
    # One traces a kernel once for all steps that it is part of.
    self.losses = {name: _traced_once(kernels.kernel(name)) for name in self.names}

  def __call__(self, policy, reference, batch, statistics):
    """{kernel: (loss, {"token" and "kl": slope}, new statistics)}, on the host."""
    return toy.host(self.compiled(*toy.host((policy, reference)), batch, statistics))

  def before(self, policy, reference, batch):
    """Statistics of a step that was: their first values would hide what is not carried."""
    moved = jax.jit(lambda name, *x: objective.evaluate(self.losses[name], *x)[2], static_argnums=0)
    carry = [name for name in self.names if kernels.attribute(name, "statistics", None)]
    new = {name: moved(name, *toy.host((policy, reference)), batch) for name in carry}
    return toy.host({name: new.get(name, ({},)) for name in self.names})

  def _one(self, name, policy, reference, batch, statistics):
    def mean(outputs):
      state = [x for x in statistics[name] if x]  # of a kernel that carries any
      given = (policy.replace(**outputs), reference, batch, *state)
      each, _, *carried = self.losses[name](*given)
      there = jnp.where(batch.weight > 0, each * batch.weight, 0.0)
      return jnp.sum(there) / jnp.sum(batch.weight), tuple(carried) or ({},)

    slope = jax.value_and_grad(mean, has_aux=True)
    (value, carried), slopes = slope({"token": policy.token, "kl": policy.kl})
    return value, slopes, carried


def _traced_once(kernel):
  return functools.wraps(kernel)(jax.jit(lambda *arguments: kernel(*arguments)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(scorer, model, params, reference, batch):
  """Log-probs of policy and reference, and what pulls slopes in the first back to params."""

  def outputs(params):
    policy = scorer(model, params, batch, reference=reference, collision=True)
    return {"token": policy.token, "kl": policy.kl}, policy

  _, back, policy = jax.vjp(outputs, params, has_aux=True)
  return (policy, scorer(model, reference, batch)), back


@jax.jit
def _pulled(back, slopes):
  """The gradient of each of several slopes."""
  return jax.lax.map(lambda slope: back(slope)[0], slopes)


def gradients(back, found):
  """{kernel: (loss, gradient, statistics)} of what `Kernels` found, by the chain rule."""
  stacked = jax.tree.map(lambda *x: np.stack(x), *(slopes for _, slopes, _ in found.values()))
  every = toy.host(_pulled(back, stacked))
  each = lambda i: jax.tree.map(lambda x: x[i], every)  # noqa: E731
  return {name: (x[0], each(i), x[2]) for i, (name, x) in enumerate(found.items())}


def placed(params, mesh):
  return jax.device_put(params, sharding.named_shardings(params, mesh, toy.RULES))


class Decoder:
  """All kernels on a real model, in any way of computing it."""

  def __init__(self, seed, every):
    _, self.params, _ = tiny.model(seed, "llama2", **DEPTH)
    self.reference, self.batch = near(self.params, seed, 0.04), lists(seed, 8)
    self.every, self.statistics = every, None

  def run(self, way):
    """{kernel: (loss, gradient, statistics)}."""
    model = tiny.model(0, "llama2", options=dict(way.options), **DEPTH)[0]
    mesh, batch = toy.mesh_of(*way.mesh), CHANGES[way.change](self.batch)
    reference, scorer = placed(self.reference, mesh), _causal(way.chunk)
    with jax.set_mesh(mesh):
      there = sharding.put(batch, mesh)
      arguments = (scorer, model, placed(self.params, mesh), reference, there)
      (policy, fixed), back = _forward(*arguments)
    if way.cached:
      score = train_step.make_score_step(model=model, scorer=scorer, mesh=mesh)
      cached = batch.replace(reference=np.asarray(score(reference, there).token))
      read = train_step.reference_logprobs(None, cached, model=None, scorer=None, loss=())
      fixed = fixed.replace(token=read.token, mask=read.mask, entropy=fixed.entropy * np.nan)
    if self.statistics is None:
      self.statistics = self.every.before(fixed, policy, batch)
    # Not on the mesh, so that kernels are compiled once for all ways.
    found = self.every(policy, fixed, batch, self.statistics)
    with jax.set_mesh(mesh):
      return gradients(back, found)


@functools.cache
def _causal(chunk):
  return functools.partial(tokens.causal, chunk=chunk)


# The real step.


class Steps:
  """All kernels through the step, on bigrams, in micro-batches and on meshes."""

  def __init__(self, seed, every):
    self.every, self.params = every, toy.params(seed, SIZE)
    self.reference, self.batch = near(self.params, seed + 1, 0.7), lists(seed, 32)
    ends = (toy.bigrams(None, x, self.batch) for x in (self.reference, self.params))
    self.statistics = every.before(*ends, self.batch)
    self.compiled = jax.jit(self._split, static_argnums=(0, 1))
    couples = lambda name: kernels.attribute(name, "couples_prompts", False)  # noqa: E731
    carries = lambda name: kernels.attribute(name, "statistics", None)  # noqa: E731
    self.groups = ([], [])  # in one pass, in two
    for name in every.names:
      self.groups[bool(couples(name) or carries(name))].append(name)

  def wanted(self):
    """{kernel: (loss, gradient, statistics)} of each kernel alone, by plain differentiation."""
    arguments = (toy.bigrams, None, self.params, self.reference, self.batch)
    (policy, fixed), back = _forward(*arguments)
    return gradients(back, self.every(policy, fixed, self.batch, self.statistics))

  def run(self, accumulation=1, shape=(1, 1, 1), cached=False):
    """The same through the step: in micro-batches, on a mesh, with the reference in the batch."""
    mesh, batch, found = toy.mesh_of(*shape), self.batch, {}
    if cached:
      batch = batch.replace(reference=np.asarray(toy.bigrams(None, self.reference, batch).token))
    with jax.set_mesh(mesh):
      given = (placed(self.params, mesh), placed(self.reference, mesh), sharding.put(batch, mesh))
      for group, names in enumerate(self.groups):
        for index, name in enumerate(names):
          weights = np.float32(np.arange(len(names)) == index)
          value, gradient, new = self.compiled(group, accumulation, weights, *given)
          found[name] = toy.host((value, gradient, (new[index],)))
    return found

  def _split(self, group, count, weights, params, reference, batch):
    names = self.groups[group]
    loss = [(weights[i], self.every.losses[name]) for i, name in enumerate(names)]
    statistics = tuple(self.statistics[name][0] for name in names)
    parts = dict(model=None, scorer=toy.bigrams, loss=loss)
    value, _, gradient, carried = train_step.value_and_gradient(
      params, reference, batch, count, statistics, **parts
    )
    return value, gradient, carried
