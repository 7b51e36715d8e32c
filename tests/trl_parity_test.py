"""Against TRL's own code, run in the same test: losses, metrics, gradients, two AdamW steps."""

from draws import lists
import jax
import numpy as np
import optax
import pytest
from tiny_models import SIZES
import trl_reference

from larpo_jax import sharding, train_step
from larpo_jax.losses import pairwise, pointwise
from larpo_jax.models import huggingface
from larpo_jax.scorers import tokens
from larpo_jax.types import Batch

pytestmark = pytest.mark.usefixtures("trl_peer")

SHARED = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"]
SHARED += ["logps/chosen", "logps/rejected", "entropy"]


def pairs(seed, **draw):
  """policy, reference and batch of pairs, and the same log-probs as TRL wants them, [2, B, R]."""
  policy, reference, batch = lists(seed, K=2, tied=False, **draw)
  full = np.ones_like(batch.valid)
  batch = batch.replace(valid=full, label=np.tile(np.float32([1, 0]), (8, 1)))
  mask = np.maximum(policy.mask, np.arange(policy.mask.shape[-1]) == 0)  # no empty responses
  policy, reference = policy.replace(mask=mask), reference.replace(mask=mask)
  first = lambda x: np.moveaxis(x, 1, 0)  # noqa: E731
  peer = dict(token=policy.token, reference=reference.token, mask=mask, entropy=policy.entropy)
  return policy, reference, batch, jax.tree.map(first, peer)


def ours(kernel, policy, reference, batch):
  """Mean loss, d mean loss / d token as TRL orders it, mean metrics."""

  def mean(token):
    loss, metrics = kernel(policy.replace(token=token), reference, batch)
    return loss.mean(), jax.tree.map(lambda x: x.mean(), metrics)

  (loss, metrics), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(policy.token)
  return loss, np.moveaxis(gradient, 1, 0), metrics


@pytest.mark.parametrize("spread", [0.3, 3.0, 300.0])
def test_dpo_loss_gradient_and_metrics(spread, seed):
  policy, reference, batch, peer = pairs(seed, spread=spread)
  loss, gradient, metrics = ours(pairwise.dpo, policy, reference, batch)
  expected, slope, logged = trl_reference.dpo_loss(**peer)
  np.testing.assert_allclose(loss, expected, 1e-5)
  np.testing.assert_allclose(gradient * peer["mask"], slope * peer["mask"], 1e-4, 1e-7 * spread)
  for name in SHARED[:-1]:
    np.testing.assert_allclose(metrics[name], logged[name], 1e-5, 1e-6 * spread, err_msg=name)


def test_sft_is_trls_where_responses_are_of_one_length(seed):
  policy, reference, batch, peer = pairs(seed, ragged=False)
  loss, gradient, metrics = ours(pointwise.sft, policy, reference, batch)
  expected, slope, logged = trl_reference.dpo_loss(**peer, loss_type="sft")
  np.testing.assert_allclose(loss, expected, 1e-5)
  np.testing.assert_allclose(gradient, slope, 1e-5)
  for name in ("logps/chosen", "entropy"):
    np.testing.assert_allclose(metrics[name], logged[name], 1e-5)


def rows(rng, count=8, total=12):
  """Pairs of token ids, chosen and rejected together always of one length: then the mean over
  tokens that TRL logs as the entropy is the mean over prompts."""
  draw = lambda n: rng.integers(3, SIZES["vocab_size"], n).tolist()  # noqa: E731
  lengths = rng.integers(1, total - 1, count)
  return [
    {
      "prompt_ids": draw(rng.integers(1, 6)),
      "chosen_ids": [*draw(n), SIZES["eos_token_id"]],
      "rejected_ids": [*draw(total - n - 1), SIZES["eos_token_id"]],
    }
    for n in lengths
  ]


def padded(sequences, width, side):
  """Token ids and their mask, int32 and bool [N, width]."""
  ids = np.zeros((len(sequences), width), np.int32)
  mask = np.zeros((len(sequences), width), bool)
  for i, sequence in enumerate(sequences):
    place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
    ids[i, place], mask[i, place] = sequence, True
  return ids, mask


def as_batch(data):
  """The Batch of exactly these token ids, prompts padded on the left, responses on the right."""
  prompt, prompt_mask = padded([row["prompt_ids"] for row in data], 7, "left")
  both = [row[name] for row in data for name in ("chosen_ids", "rejected_ids")]
  response, mask = padded(both, 13, "right")
  count = len(data)
  return Batch(
    prompt=prompt[:, None],
    prompt_mask=prompt_mask[:, None],
    response=response.reshape(count, 2, -1),
    response_mask=mask.reshape(count, 2, -1).astype(np.float32),
    label=np.tile(np.float32([1, 0]), (count, 1)),
    valid=np.ones((count, 2), bool),
    weight=np.ones(count, np.float32),
    row=np.arange(count, dtype=np.int32),
  )


def checkpoints(directory, seed):
  """A policy and another reference, written by PyTorch; large weights, so that nothing is flat."""
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  for name in ("policy", "reference"):
    torch.manual_seed(seed % 2**31 + len(name))
    config = LlamaConfig(**SIZES | {"num_hidden_layers": 2, "initializer_range": 0.1})
    LlamaForCausalLM(config).save_pretrained(directory / name)
  return directory / "policy", directory / "reference"


def test_training_is_trls(tmp_path, seed):
  """The same checkpoints and token ids through both: the start, and after one and two steps."""
  data, steps, rate = rows(np.random.default_rng(seed)), 3, 1e-3
  folders = checkpoints(tmp_path, seed)
  logged = trl_reference.dpo_training(
    *folders, data, tmp_path / "out", steps=steps, learning_rate=rate
  )

  mesh = sharding.make_mesh({"data": -1})  # every device there is: 8 here
  model, params, _ = huggingface.load(folders[0], mesh=mesh, rules={})
  _, reference_params, _ = huggingface.load(folders[1], mesh=mesh, rules={})
  # Torch's AdamW with TRL's defaults: no weight decay, betas 0.9 and 0.999, epsilon 1e-8.
  optimizer = optax.adamw(rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
  step = train_step.make_train_step(
    model=model, scorer=tokens.causal, loss=pairwise.dpo, optimizer=optimizer, mesh=mesh
  )
  state, batch = train_step.init(params, optimizer), sharding.put(as_batch(data), mesh)
  for number, expected in enumerate(logged):
    state, found = step(state, reference_params, batch)
    for name in ("loss", "grad_norm", *SHARED):
      # A reward is a tenth of the difference of two sums near 30, so its error is an absolute one.
      small = 1e-5 if name.startswith("rewards/") else 0.0
      np.testing.assert_allclose(
        found[name], expected[name], 1e-5, small, err_msg=f"{name}, step {number}"
      )
