"""Checkpoints against PyTorch's own models: logits, gradients, export, and what is refused."""

import dataclasses
import json
import shutil

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest
import safetensors.numpy
from tiny_models import FAMILIES, FAST, SIZES, padded, torch_model

from larpo_jax import sharding
from larpo_jax.models import config as config_lib
from larpo_jax.models import heads, huggingface, rope, transformer

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def checkpoint(tmp_path):
  """A checkpoint directory written by this package, [llama], and its parameters."""
  config = config_lib.read(FAMILIES["llama2"])
  _, params = transformer.create(config, jax.random.key(0))
  huggingface.save(tmp_path / "model", params, config)
  return tmp_path / "model"


def weights_of(directory):
  return {
    name: array
    for path in directory.glob("*.safetensors")
    for name, array in safetensors.numpy.load_file(path).items()
  }


def torch_run(torch, model, tokens, mask, positions):
  arguments = {"attention_mask": mask.astype(int), "position_ids": positions}
  return model(torch.tensor(tokens), **{k: torch.tensor(v) for k, v in arguments.items()}).logits


@every_family
def test_logits_gradients_and_export_are_those_of_pytorch(family, torch_peer, seed, tmp_path):
  import transformers

  peer = torch_model(torch_peer, FAMILIES[family], seed)
  peer.save_pretrained(tmp_path / "peer")
  tokens, mask, positions = padded(seed)
  wanted = torch_run(torch_peer, peer, tokens, mask, positions)
  weight = np.random.default_rng(seed).normal(size=wanted.shape) * mask[..., None]
  (wanted * torch_peer.tensor(weight, dtype=torch_peer.float32)).sum().backward()

  graphdef, params, config = huggingface.load(tmp_path / "peer")

  def run(params):
    model = nnx.merge(graphdef, params)
    hidden, _ = model(*(jnp.asarray(x)[:, None] for x in (tokens, positions, mask)))
    logits = model.logits(hidden)[:, 0]
    return jnp.sum(logits * jnp.asarray(weight, jnp.float32)), logits

  (_, logits), gradients = jax.jit(jax.value_and_grad(run, has_aux=True), compiler_options=FAST)(
    params
  )
  np.testing.assert_allclose(logits[mask], wanted.detach().numpy()[mask], atol=2e-5)

  huggingface.save(tmp_path / "gradients", gradients, config)  # gives them their names
  ours = weights_of(tmp_path / "gradients")
  theirs = {name: p.grad.numpy() for name, p in peer.named_parameters()}
  assert ours.keys() == theirs.keys()
  for name, gradient in theirs.items():
    scale = np.max(np.abs(gradient))
    assert scale > 0, name
    np.testing.assert_allclose(ours[name] / scale, gradient / scale, atol=1e-4, err_msg=name)

  # The config that a user writes, with the keys of older versions, is exported for every version.
  written = config_lib.read(FAMILIES[family])
  assert dataclasses.replace(written, source="") == dataclasses.replace(config, source="")
  huggingface.save(tmp_path / "ours", params, written)
  assert dataclasses.replace(config_lib.read(tmp_path / "ours"), source=written.source) == written
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "ours", attn_implementation="eager"
  )
  assert type(again) is type(peer)
  for name, tensor in peer.state_dict().items():
    assert torch_peer.equal(again.state_dict()[name], tensor), name
  assert torch_peer.equal(torch_run(torch_peer, again, tokens, mask, positions), wanted)


@pytest.mark.parametrize(
  ("family", "labels"),
  [("llama3", 1), ("mistral", 1), ("qwen2_sliding", 3), ("gemma2", 2), ("gemma3", 1)],
)
def test_a_score_head_is_that_of_pytorch(family, labels, torch_peer, seed, tmp_path):
  kind = "AutoModelForSequenceClassification"
  settings = FAMILIES[family] | {"num_labels": labels}
  peer = torch_model(torch_peer, settings, seed, kind)
  peer.save_pretrained(tmp_path / "peer")
  tokens, mask, positions = padded(seed)
  wanted = torch_run(torch_peer, peer, tokens, mask, positions).detach().numpy()
  graphdef, params, config = heads.load(tmp_path / "peer")
  scores = nnx.merge(graphdef, params)(
    *(jnp.asarray(x)[:, None] for x in (tokens, positions, mask))
  )
  assert scores.shape == (3, 1, labels)
  np.testing.assert_allclose(scores[:, 0], wanted, atol=2e-5)
  heads.save(tmp_path / "ours", params, config)
  import transformers

  again = getattr(transformers, kind).from_pretrained(
    tmp_path / "ours", attn_implementation="eager"
  )
  np.testing.assert_array_equal(
    torch_run(torch_peer, again, tokens, mask, positions).detach().numpy(), wanted
  )
  with pytest.raises(ValueError, match=r"heads\.load"):
    huggingface.load(tmp_path / "peer")


def test_frequencies_are_those_of_llama_3_1(torch_peer):
  from transformers import LlamaConfig
  from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

  scaling = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  settings = SIZES | {"rope_theta": 5e5, "head_dim": 128, "max_position_embeddings": 131072}
  config = LlamaConfig(**settings, rope_scaling=dict(scaling))
  wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
  (ours,) = rope.read(settings | {"rope_scaling": scaling}, "llama")
  np.testing.assert_allclose(rope.inverse_frequencies(ours, 128), wanted.numpy(), rtol=1e-6)


def test_many_files_and_few_devices_give_the_same_weights(checkpoint, tmp_path):
  _, params, config = huggingface.load(checkpoint)
  huggingface.save(tmp_path / "sharded", params, config, shard_bytes=20_000)
  assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
  mesh = sharding.make_mesh({"data": -1, "fsdp": 2, "tensor": 2})
  rules = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "head_dim": "data"}
  _, again, _ = huggingface.load(tmp_path / "sharded", mesh=mesh, rules=rules)
  assert again["layers"]["q"].get_value().sharding.spec == PartitionSpec(
    None, "fsdp", "tensor", "data"
  )
  jax.tree.map(np.testing.assert_array_equal, again, params)
  huggingface.save(tmp_path / "whole", again, config)
  for name, array in weights_of(checkpoint).items():
    np.testing.assert_array_equal(weights_of(tmp_path / "whole")[name], array)


def test_weights_come_and_go_in_the_precision_that_was_asked_for(checkpoint, tmp_path):
  graphdef, params, config = huggingface.load(
    checkpoint, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
  model = nnx.merge(graphdef, params)
  tokens, mask, positions = padded(0)
  hidden, _ = model(*(jnp.asarray(x)[:, None] for x in (tokens, positions, mask)))
  assert (hidden.dtype, model.logits(hidden).dtype) == (jnp.bfloat16, jnp.float32)
  huggingface.save(tmp_path / "half", params, config, dtype=jnp.bfloat16)
  assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
  assert {a.dtype for a in weights_of(tmp_path / "half").values()} == {np.dtype(jnp.bfloat16)}


def test_a_second_export_leaves_nothing_of_the_first(checkpoint):
  _, params, config = huggingface.load(checkpoint)
  huggingface.save(checkpoint, params, config, shard_bytes=20_000)
  assert not (checkpoint / "model.safetensors").exists()
  huggingface.load(checkpoint)
  huggingface.save(checkpoint, params, config)
  assert not list(checkpoint.glob("*index*"))
  assert {p.name for p in checkpoint.iterdir()} == {
    "model.safetensors",
    "config.json",
    "generation_config.json",
  }


def _without(name):
  def change(directory):
    weights = weights_of(directory)
    del weights[name]
    safetensors.numpy.save_file(weights, directory / "model.safetensors")

  return change


def _with(name, shape):
  def change(directory):
    weights = weights_of(directory) | {name: np.zeros(shape, np.float32)}
    safetensors.numpy.save_file(weights, directory / "model.safetensors")

  return change


def _truncate(directory):
  path = directory / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def _pickled(directory):
  (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _lost_shard(directory):
  index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
  (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _setting(**changes):
  def change(directory):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

  return change


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (_without("model.layers.1.mlp.up_proj.weight"), "lacks model.layers.1.mlp.up_proj.weight"),
    (_with("model.layers.0.extra.weight", (3,)), "unexpected model.layers.0.extra.weight"),
    (_with("model.norm.weight", (33,)), r"model.norm.weight has shape \(33,\)"),
    (_truncate, "model.safetensors is damaged"),
    (_pickled, "pytorch_model.bin, a pickle.*convert it to safetensors"),
    (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
    (_lost_shard, "lacks model-00002-of-00002.safetensors"),
    (shutil.rmtree, "no config.json"),
    (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
    (_setting(model_type="mamba"), "unknown architecture 'mamba'.*llama, mistral"),
    (_setting(auto_map={"AutoModel": "x.Y"}), "auto_map"),
    (_setting(architectures=["LlamaForTokenClassification"]), "LlamaForTokenClassification"),
  ],
)
def test_a_bad_checkpoint_is_refused_in_one_sentence(checkpoint, damage, message):
  damage(checkpoint)
  with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
    huggingface.load(checkpoint)
  assert "\n" not in str(error.value)


def test_a_tied_matrix_that_is_stored_twice_must_be_the_same(tmp_path):
  config = config_lib.read(FAMILIES["qwen2_sliding"])
  _, params = transformer.create(config, jax.random.key(0))
  huggingface.save(tmp_path, params, config)
  weights = weights_of(tmp_path)
  twice = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
  safetensors.numpy.save_file(twice, tmp_path / "model.safetensors")
  huggingface.load(tmp_path)
  safetensors.numpy.save_file(
    twice | {"lm_head.weight": twice["lm_head.weight"] + 1}, tmp_path / "model.safetensors"
  )
  with pytest.raises(ValueError, match=r"lm_head\.weight"):
    huggingface.load(tmp_path)
