"""Adapters: nothing at first, the merged weights later, and PEFT's files by hand."""

import functools
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tiny_models import FAMILIES, FAST, inputs, padded, random_model, randomise, torch_model

from larpo_jax.models import config, huggingface, lora


def adapted(family, seed, **options):
  """(plain graphdef, params, config) and the same with adapters that are not zero."""
  settings = config.read(FAMILIES[family] | {"num_hidden_layers": 2})
  graphdef, params = random_model(settings, seed)
  with_adapters = lora.add(params, settings, jax.random.key(seed), rank=3, alpha=7.0, **options)
  return (graphdef, params, settings), with_adapters


def logits_of(graphdef, params, batch):
  @functools.partial(jax.jit, compiler_options=FAST)
  def run(params):
    model = nnx.merge(graphdef, params)
    return model.logits(model(*batch)[0])

  return run(params)


def moved(params, seed):
  """The same weights with random adapters."""
  base, adapters = lora.split(params)
  return lora.join(base, randomise(adapters, seed + 1))


def test_new_adapters_change_nothing_and_only_their_outputs_have_a_gradient(seed):
  (plain, params, _), (graphdef, more, _) = adapted("qwen2_sliding", seed)
  batch = inputs(seed, 1, 6)
  np.testing.assert_array_equal(logits_of(graphdef, more, batch), logits_of(plain, params, batch))
  base, adapters = lora.split(more)
  jax.tree.map(np.testing.assert_array_equal, base, params)

  def loss(adapters):
    model = nnx.merge(graphdef, lora.join(base, adapters))
    return jnp.sum(jnp.sin(model.logits(model(*batch)[0])))

  gradients = jax.jit(jax.grad(loss), compiler_options=FAST)(adapters)
  for path, gradient in nnx.to_flat_state(gradients):
    largest = float(jnp.max(jnp.abs(gradient.get_value())))
    assert (largest > 0) == path[-1].endswith("_b"), path
  jax.tree.map(np.testing.assert_array_equal, lora.split(lora.join(base, adapters))[1], adapters)


@pytest.mark.parametrize("targets", [lora.TARGETS, ("v", "q")])
def test_merging_gives_the_plain_model_of_the_same_function(targets, seed):
  (plain, params, settings), (graphdef, more, extended) = adapted("gemma3", seed, targets=targets)
  more, batch = moved(more, seed), inputs(seed, 1, 6)
  merged, plain_again = lora.merge(more, extended)
  assert plain_again == settings
  wanted = logits_of(graphdef, more, batch)
  np.testing.assert_allclose(logits_of(plain, merged, batch), wanted, atol=2e-5)
  assert np.max(np.abs(wanted - logits_of(plain, params, batch))) > 1e-2
  changed = {
    path[-1]
    for (path, a), (_, b) in zip(nnx.to_flat_state(merged), nnx.to_flat_state(params), strict=True)
    if not np.array_equal(a.get_value(), b.get_value())
  }
  assert changed == set(targets)


def test_adapters_know_their_axes_and_are_a_small_part(seed):
  _, (graphdef, more, extended) = adapted("llama3", seed)
  fresh, _ = random_model(extended, seed)
  assert fresh == graphdef
  for path, adapter in nnx.to_flat_state(lora.split(more)[1]):
    assert len(adapter.logical_axes) == adapter.ndim, path
    assert adapter.shape[adapter.logical_axes.index("lora")] == 3


def test_exported_adapters_added_by_hand_in_pytorch_give_the_same_logits(
  torch_peer, seed, tmp_path
):
  peer = torch_model(torch_peer, FAMILIES["qwen3"], seed)
  peer.save_pretrained(tmp_path / "peer")
  _, params, settings = huggingface.load(tmp_path / "peer")
  graphdef, params, settings = lora.add(params, settings, jax.random.key(seed), rank=3, alpha=7.0)
  params = moved(params, seed)
  lora.save_peft(tmp_path / "adapters", params, settings, base_model="peer")

  written = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
  stored = safetensors.numpy.load_file(tmp_path / "adapters" / "adapter_model.safetensors")
  modules = dict(peer.named_modules())
  matched = 0
  with torch_peer.no_grad():
    for name, module in modules.items():
      if name.rpartition(".")[2] not in written["target_modules"]:
        continue
      down = stored[f"base_model.model.{name}.lora_A.weight"]  # [rank, inputs]
      up = stored[f"base_model.model.{name}.lora_B.weight"]  # [outputs, rank]
      module.weight += torch_peer.tensor(written["lora_alpha"] / written["r"] * up @ down)
      matched += 2
  assert matched == len(stored)
  tokens, mask, positions = padded(seed)
  arguments = {"attention_mask": mask.astype(int), "position_ids": positions}
  wanted = peer(
    torch_peer.tensor(tokens), **{k: torch_peer.tensor(v) for k, v in arguments.items()}
  ).logits.detach()
  batch = [jnp.asarray(x)[:, None] for x in (tokens, positions, mask)]
  ours = logits_of(graphdef, params, batch)[:, 0]
  scale = np.max(np.abs(wanted.numpy()))
  np.testing.assert_allclose(ours[mask] / scale, wanted.numpy()[mask] / scale, atol=1e-5)


def test_adapters_must_be_merged_before_an_export_and_added_once(seed, tmp_path):
  (_, params, settings), (_, more, extended) = adapted("llama2", seed)
  with pytest.raises(ValueError, match=r"merge them with models\.lora\.merge"):
    huggingface.save(tmp_path, more, extended)
  with pytest.raises(ValueError, match="adapters already"):
    lora.add(more, extended, jax.random.key(0))
  with pytest.raises(ValueError, match=r"add them with models\.lora\.add"):
    lora.save_peft(tmp_path, params, settings)
  with pytest.raises(ValueError, match="not embedding"):
    lora.add(params, settings, jax.random.key(0), targets=("q", "embedding"))
  with pytest.raises(ValueError, match="rank of at least 1, not 0"):
    lora.add(params, settings, jax.random.key(0), rank=0)
