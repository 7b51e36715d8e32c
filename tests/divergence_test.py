"""What the scorer gives only when asked: KL(reference || policy) of a token, and log sum p^2."""

import functools
import re

from draws import lists
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from larpo_jax.losses import tokenwise
from larpo_jax.scorers import _head, tokens

N, D, V = 22, 16, 37
QUICK = {"xla_backend_optimization_level": 0}


def draws(seed):
  """Hidden states and unembeddings of policy and reference, a mask and a cotangent."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  states = (draw(2, N // 2, D), draw(D, V), draw(2, N // 2, D), draw(D, V))
  return states, rng.random((2, N // 2)) < 0.7, draw(2, N // 2)


@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_divergence_is_pytorchs_in_float64(torch_peer, seed, chunk, softcap):
  states, mask, cotangent = draws(seed)
  inputs = [torch_peer.tensor(x, dtype=torch_peer.float64, requires_grad=True) for x in states]
  cap = (lambda x: x) if softcap is None else lambda x: softcap * torch_peer.tanh(x / softcap)
  policy, reference = (torch_peer.log_softmax(cap(h @ w), -1) for h, w in (inputs[:2], inputs[2:]))
  kl = torch_peer.nn.functional.kl_div(policy, reference, reduction="none", log_target=True)
  kl = kl.sum(-1) * torch_peer.tensor(mask)
  (kl * torch_peer.tensor(cotangent)).sum().backward()
  wanted = [kl.detach().numpy(), inputs[0].grad.numpy(), inputs[1].grad.numpy()]

  h, w, *fixed = states

  def total(h, w):
    found = _head.divergence(h, w, *fixed, mask, softcap, chunk)
    return jnp.sum(found * cotangent), found

  step = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), compiler_options=QUICK)
  (_, found), (d_hidden, d_matrix) = step(h, w)
  for one, other in zip((found, d_hidden, d_matrix), wanted, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)


def test_collision_is_that_of_the_softmax_in_float64(seed):
  (hidden, matrix, *_), mask, _ = draws(seed)
  target = np.zeros(mask.shape, np.int32)
  *_, found = _head.logprobs(hidden, matrix, target, mask, None, 4, True)
  logits = np.float64(hidden) @ np.float64(matrix)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  np.testing.assert_allclose(found, np.log((p**2).sum(-1)) * mask, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def scored(model, params, reference, batch):
  def total(params):
    found = tokens.causal(model, params, batch, chunk=8, reference=reference, collision=True)
    return jnp.sum(found.kl * found.mask), found

  (_, found), gradient = jax.value_and_grad(total, has_aux=True)(params)
  return found, gradient


@pytest.mark.parametrize("family", ["llama2", "gemma2"])
def test_the_scorer_gives_what_is_asked_for(family, seed):
  model, params, _ = tiny.model(seed, family, num_hidden_layers=1)
  _, reference, _ = tiny.model(seed + 1, family, num_hidden_layers=1)
  batch = tiny.batch(seed, B=2)
  found, gradient = scored(model, params, reference, batch)
  plain = jax.jit(tokens.causal, static_argnums=0, compiler_options=QUICK)(model, params, batch)
  assert plain.kl is None
  assert plain.collision is None
  np.testing.assert_allclose(found.token, plain.token, atol=1e-6)
  counted = plain.mask > 0
  assert (np.asarray(found.kl)[counted] > 1e-4).all()
  assert not np.any(np.asarray(found.kl)[~counted])
  # log sum p^2 lies between minus the entropy (Jensen) and the log-prob of the likeliest token.
  assert (np.asarray(found.collision + plain.entropy)[counted] > -1e-5).all()
  assert (np.asarray(found.collision)[counted] < 0).all()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
  same, none = scored(model, params, params, batch)
  np.testing.assert_allclose(same.kl, 0, atol=1e-6)
  for leaf in jax.tree.leaves(none):  # where the two are one, the divergence is at its least
    np.testing.assert_allclose(leaf, 0, atol=2e-5)


def test_no_array_of_tokens_by_vocabulary_is_compiled(seed):
  model, params, _ = tiny.model(seed, "llama2", num_hidden_layers=1)
  batch = tiny.batch(seed, B=4)
  rows = int(np.prod(batch.response.shape))
  compiled = scored.lower(model, params, params, batch).compile().as_text()
  vocabulary = params["embedding"][...].shape[0]
  shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", compiled)}
  widest = max(int(np.prod(shape)) for shape in shapes if shape[-1] == vocabulary)
  assert widest < rows * vocabulary


def test_what_pulls_at_the_divergence_of_which_response(seed):
  """Token log-probs are in the tests of formulas; a divergence has a slope of its own."""
  policy, reference, batch = lists(seed, K=2, tied=False, ragged=False)
  best = batch.label == batch.label.max(-1, keepdims=True)

  @functools.partial(jax.jit, static_argnums=0)
  def slope(kernel, kl):
    return jax.grad(lambda kl: kernel(policy.replace(kl=kl), reference, batch)[0].sum())(kl)

  both = lambda x: (np.sum(x * best, -1), np.sum(x * ~best, -1))  # noqa: E731
  (rho_w, rho_l), (kl_w, kl_l) = (
    both(x) for x in (policy.sequence - reference.sequence, policy.kl.sum(-1))
  )
  wrong = lambda ahead: 0.1 / (1 + np.exp(0.1 * ahead))  # noqa: E731
  first, second = (wrong(rho_w - rho_l - a * (kl_l - kl_w)) for a in (1.0, 0.5))
  pulls = {  # at the better response's tokens, and at the other's
    tokenwise.tdpo1: (-first, first),
    tokenwise.tdpo2: (0 * second, 0.5 * second),
    tokenwise.rrpo: (0.01 + 0 * first, 0 * first),
  }
  for kernel, (better, worse) in pulls.items():
    wanted = np.where(best, better[:, None], worse[:, None])[..., None] * policy.mask
    np.testing.assert_allclose(slope(kernel, policy.kl), wanted, rtol=1e-5, atol=1e-8)
