"""Optimisers against their formulas in float64, and schedules at the steps that matter."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from larpo_jax import optimizers

STEPS, PEAK = 7, 0.03


def parameters(seed):
  """A matrix of two layers, their norms, and a bias; what each is stands in its axes."""
  rng = np.random.default_rng(seed)
  axes = {
    "matrix": ((2, 3, 4), ("layers", "embed", "mlp")),
    "norm": ((2, 3), ("layers", "embed")),
    "bias": ((2, 2, 2), ("layers", "heads", "head_dim")),
    "adapter": ((2, 2), ("lora", "mlp")),
  }
  return nnx.State(
    {
      name: nnx.Param(jnp.asarray(rng.normal(size=shape), jnp.float32), logical_axes=names)
      for name, (shape, names) in axes.items()
    }
  )


DECAYED = {"matrix", "adapter"}


def trained(spec, seed):
  """({name: value}, [gradients]) after STEPS steps of random gradients, some of them large."""
  params = parameters(seed)
  optimizer, rate = optimizers.build(spec, STEPS, params)
  state, rng = optimizer.init(params), np.random.default_rng(seed + 1)
  gradients, rates = [], [float(rate(step)) for step in range(STEPS)]

  @jax.jit
  def step(params, state, gradient):
    updates, state = optimizer.update(gradient, state, params)
    return jax.tree.map(jnp.add, params, updates), state

  for index in range(STEPS):
    draw = lambda x, size=3.0 ** (index % 3): np.float32(rng.normal(size=x.shape) * size)  # noqa: E731
    gradients.append(jax.tree.map(draw, params))
    params, state = step(params, state, gradients[-1])
  flat = lambda tree: {name: np.float64(tree[name][...]) for name in tree}  # noqa: E731
  return flat(params), [flat(gradient) for gradient in gradients], rates


def clipped(gradient, most):
  norm = math.sqrt(sum(np.sum(np.square(x)) for x in gradient.values()))
  return {name: x * min(1.0, most / norm) for name, x in gradient.items()}


def adamw(gradients, rates, start, *, b1, b2, eps, decay, clip):
  value = dict(start)
  first = {name: np.zeros_like(x) for name, x in value.items()}
  second = dict(first)
  for count, (gradient, rate) in enumerate(zip(gradients, rates), 1):
    for name, g in clipped(gradient, clip).items():
      first[name] = b1 * first[name] + (1 - b1) * g
      second[name] = b2 * second[name] + (1 - b2) * g * g
      step = first[name] / (1 - b1**count) / (np.sqrt(second[name] / (1 - b2**count)) + eps)
      value[name] = value[name] - rate * (step + decay * (name in DECAYED) * value[name])
  return value


def lion(gradients, rates, start, *, b1, b2, decay):
  value = dict(start)
  mean = {name: np.zeros_like(x) for name, x in value.items()}
  for gradient, rate in zip(gradients, rates):
    for name, g in gradient.items():
      step = np.sign(b1 * mean[name] + (1 - b1) * g)
      mean[name] = b2 * mean[name] + (1 - b2) * g
      value[name] = value[name] - rate * (step + decay * (name in DECAYED) * value[name])
  return value


def start(seed):
  params = parameters(seed)
  return {name: np.float64(params[name][...]) for name in params}


def test_adamw_with_clipping_and_warm_up_is_its_formula(seed):
  spec = dict(name="adamw", learning_rate=PEAK, schedule="cosine", warmup=0.3, clip=2.0)
  spec |= dict(b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1)
  found, gradients, rates = trained(spec, seed)
  hyper = dict(b1=0.8, b2=0.95, eps=1e-6, decay=0.1, clip=2.0)
  wanted = adamw(gradients, rates, start(seed), **hyper)
  for name in wanted:
    np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_lion_is_its_formula(seed):
  spec = dict(name="lion", learning_rate=PEAK, schedule="linear", b1=0.9, b2=0.97, weight_decay=0.2)
  found, gradients, rates = trained(spec, seed)
  wanted = lion(gradients, rates, start(seed), b1=0.9, b2=0.97, decay=0.2)
  for name in wanted:
    np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_rmsprop_is_that_of_pytorch(seed):
  """With the arguments that make optax's the same: beta-DPO's optimiser."""
  torch = pytest.importorskip("torch")
  spec = dict(name="rmsprop", learning_rate=PEAK, decay=0.99, eps=1e-8, eps_in_sqrt=False)
  found, gradients, _ = trained(spec, seed)
  wanted = {name: torch.tensor(value, requires_grad=True) for name, value in start(seed).items()}
  peer = torch.optim.RMSprop(wanted.values(), lr=PEAK, alpha=0.99, eps=1e-8)
  for gradient in gradients:
    for name, value in wanted.items():
      value.grad = torch.tensor(gradient[name])
    peer.step()
  for name, value in wanted.items():
    np.testing.assert_allclose(found[name], value.detach().numpy(), 1e-5, 1e-6, err_msg=name)


def test_adafactor_descends_and_holds_less(seed):
  width = 256
  params = nnx.State({"matrix": nnx.Param(jnp.ones((width, width)), logical_axes=("embed", "mlp"))})
  target = jax.random.normal(jax.random.key(seed), (width, width))
  optimizer, _ = optimizers.build(dict(name="adafactor", learning_rate=0.03), 1, params)
  state = optimizer.init(params)
  held = sum(x.size for x in jax.tree.leaves(state))
  assert held < width * width / 20  # AdamW holds twice the parameters
  loss = lambda params: jnp.mean(jnp.square(params["matrix"][...] - target))  # noqa: E731

  @jax.jit
  def step(params, state):
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return jax.tree.map(jnp.add, params, updates), state

  before = loss(params)
  for _ in range(30):
    params, state = step(params, state)
  assert loss(params) < 0.8 * before


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor"])
def test_without_a_gradient_only_matrices_decay(seed, name):
  key = "weight_decay_rate" if name == "adafactor" else "weight_decay"
  params = parameters(seed)
  optimizer, _ = optimizers.build({"name": name, "learning_rate": 0.1, key: 0.5}, 1, params)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(optimizer.update)(zero, optimizer.init(params), params)
  for kind in params:
    assert bool(jnp.any(updates[kind][...] != 0)) == (kind in DECAYED), kind


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 5, 1])
def test_schedule_rises_to_its_peak_and_falls_to_zero(name, warmup):
  steps = 40
  rate = optimizers.schedule(name, PEAK, steps, warmup=warmup)
  rates = np.array([float(rate(step)) for step in range(steps)])
  rising = int(warmup if warmup >= 1 else warmup * steps)
  rest, falling = rates[rising:], steps - rising
  # Every step of the warm-up trains, and the last of them at the peak.
  np.testing.assert_allclose(rates[:rising], PEAK * np.arange(1, rising + 1) / max(rising, 1), 1e-5)
  done = np.arange(falling) / falling
  wanted = {
    "constant": np.ones(falling),
    "linear": 1 - done,
    "cosine": 0.5 * (1 + np.cos(np.pi * done)),
  }[name]
  np.testing.assert_allclose(rest, PEAK * wanted, rtol=1e-5, atol=1e-8)
  if name != "constant":
    assert abs(float(rate(steps))) < 1e-9


def test_no_clipping_is_no_clipping(seed):
  for clip in (None, 0, 0.0):
    spec = dict(name="sgd", learning_rate=1.0, clip=clip)
    found, gradients, _ = trained(spec, seed)
    before = start(seed)
    for name, value in found.items():
      moved = before[name] - sum(gradient[name] for gradient in gradients)
      np.testing.assert_allclose(value, moved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("spec", "named"),
  [
    (dict(name="adamm", learning_rate=1.0), "no optimizer 'adamm'; there are: adamw, adafactor"),
    (dict(name="adamw", learning_rate=1.0, beta1=0.9), "adamw takes no 'beta1'; .*b1, b2, eps"),
    (dict(name="adamw", learning_rate=1.0, schedule="step"), "no schedule 'step'; .*cosine"),
    (dict(name="adamw"), "needs a learning_rate"),
    (dict(learning_rate=1.0), "needs a name"),
  ],
)
def test_a_mistake_is_named_with_what_there_is(spec, named):
  with pytest.raises(ValueError, match=named):
    optimizers.build(spec, 1, parameters(0))
