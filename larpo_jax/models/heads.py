"""Sequence classifiers, which reward models are: one linear score of the last real token."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from larpo_jax import sharding
from larpo_jax.models import config as config_lib
from larpo_jax.models import exporting, huggingface, names
from larpo_jax.models.config import Config
from larpo_jax.models.names import Path, Tensor
from larpo_jax.models.transformer import Transformer, Weight, parameter


class Classifier(nnx.Module):
  """transformers' *ForSequenceClassification."""

  def __init__(self, config: Config, *, rngs: nnx.Rngs, **options: Any):
    # Tied, because there is no unembedding to hold.
    body = dataclasses.replace(config, tie_embeddings=True)
    self.transformer = Transformer(body, rngs=rngs, **options)
    self.score = _fresh(config, rngs)

  def __call__(self, tokens: jax.Array, positions: jax.Array, valid: jax.Array) -> jax.Array:
    """float32 [B, J, labels] of int32 tokens [B, J, T], at the last valid token of each list."""
    hidden, _ = self.transformer(tokens, positions, valid)
    order = jnp.arange(tokens.shape[-1]).reshape(1, 1, -1)
    last = jnp.argmax(jnp.where(valid, order, -1), axis=-1)
    hidden = jnp.take_along_axis(hidden, last[..., None, None], axis=2)[:, :, 0]
    score = self.score[...].astype(hidden.dtype)
    return jnp.einsum("bjd,dn->bjn", hidden, score, preferred_element_type=jnp.float32)


def create(
  config: Config, key: jax.Array, **options: Any
) -> tuple[nnx.GraphDef[Classifier], nnx.State]:
  """A freshly initialised classifier; options are those of Transformer."""
  return nnx.split(Classifier(config, rngs=nnx.Rngs(params=key), **options))


def abstract(config: Config, **options: Any) -> tuple[nnx.GraphDef[Classifier], nnx.State]:
  """`create` without the numbers: parameters that have shapes only."""
  make = lambda: Classifier(config, rngs=nnx.Rngs(params=0), **options)  # noqa: E731
  return nnx.split(nnx.eval_shape(make))


def load(
  directory: str | os.PathLike, **options: Any
) -> tuple[nnx.GraphDef[Classifier], nnx.State, Config]:
  """As huggingface.load, for a *ForSequenceClassification checkpoint; ValueError for another."""
  config = config_lib.read(directory)
  if config.num_labels is None:
    raise ValueError(f"{directory} has no score head: its architectures name no classifier")
  weights = huggingface.read_model(directory, Classifier, config, _tensors(config), **options)
  return *weights, config


def begin(
  directory: str | os.PathLike,
  key: jax.Array,
  *,
  mesh: jax.sharding.Mesh,
  rules: Mapping[str, str],
  **options: Any,
) -> tuple[nnx.GraphDef[Classifier], nnx.State, Config]:
  """What a reward model starts from: a classifier's checkpoint, or a language model's and a head.

  The head of one label is then drawn from key, as in `create`, and what predicts tokens is dropped.
  mesh, rules and options are those of `huggingface.read_model`. ValueError where there are several
  labels.
  """
  config = config_lib.read(directory)
  if config.num_labels is not None:
    if config.num_labels != 1:
      raise ValueError(
        f"{directory} has {config.num_labels} labels, and a reward is one number: start from a "
        "classifier of one label, or from a language model"
      )
    return load(directory, mesh=mesh, rules=rules, **options)
  _, body, config = huggingface.load(directory, mesh=mesh, rules=rules, **options)
  config = dataclasses.replace(config, num_labels=1)
  model, shapes = abstract(config, **options)
  place = sharding.named_shardings(shapes, mesh, rules)["score"].get_value()
  draw = lambda key: _fresh(config, nnx.Rngs(params=key)).get_value()  # noqa: E731
  filled = {("transformer", *path): leaf for path, leaf in nnx.to_flat_state(body)}
  filled.pop(("transformer", "head"), None)
  head = dict(nnx.to_flat_state(shapes))["score",]
  filled["score",] = head.replace(jax.jit(draw, out_shardings=place)(key))
  return model, nnx.from_flat_state(filled), config


def save(directory: str | os.PathLike, params: nnx.State, config: Config, **options: Any) -> None:
  """As huggingface.save, with the score head in place of the unembedding.

  transformers scores the last token that is not the pad token. Where that is the token that ends a
  response too, it would score the one before: then no pad token is named, and it scores the last.
  """
  text = "Text" if config.model_type == "gemma3_text" else ""
  architecture = f"{exporting.CLASSES[config.model_type]}{text}ForSequenceClassification"
  settings = exporting.settings_of(config, architecture)
  settings["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels or 1)}
  settings["label2id"] = {label: int(i) for i, label in settings["id2label"].items()}
  ends = settings.get("eos_token_id")
  if settings.get("pad_token_id") in (ends if isinstance(ends, list) else [ends]):
    settings["pad_token_id"] = None
  exporting.write(directory, params, _tensors(config), settings, **options)


def _fresh(config: Config, rngs: nnx.Rngs) -> nnx.Param:
  """A new head."""
  shape = (config.hidden_size, config.num_labels or 1)
  return parameter(rngs, Weight(shape, ("embed", "labels"), config.initializer_range))


def _tensors(config: Config) -> dict[Path, Tensor]:
  body = names.tensors(dataclasses.replace(config, tie_embeddings=True))
  return {("transformer", *path): tensor for path, tensor in body.items()} | {
    ("score",): Tensor("score.weight", inputs=1)
  }
