"""Sequence classifiers, which reward models are: one linear score of the last real token."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

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
    shape = (config.hidden_size, config.num_labels or 1)
    self.score = parameter(rngs, Weight(shape, ("embed", "labels"), config.initializer_range))

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


def load(
  directory: str | os.PathLike, **options: Any
) -> tuple[nnx.GraphDef[Classifier], nnx.State, Config]:
  """As huggingface.load, for a *ForSequenceClassification checkpoint; ValueError for another."""
  config = config_lib.read(directory)
  if config.num_labels is None:
    raise ValueError(f"{directory} has no score head: its architectures name no classifier")
  weights = huggingface.read_model(directory, Classifier, config, _tensors(config), **options)
  return *weights, config


def save(directory: str | os.PathLike, params: nnx.State, config: Config, **options: Any) -> None:
  """As huggingface.save, with the score head in place of the unembedding."""
  text = "Text" if config.model_type == "gemma3_text" else ""
  architecture = f"{exporting.CLASSES[config.model_type]}{text}ForSequenceClassification"
  settings = exporting.settings_of(config, architecture)
  settings["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_labels or 1)}
  settings["label2id"] = {label: int(i) for i, label in settings["id2label"].items()}
  exporting.write(directory, params, _tensors(config), settings, **options)


def _tensors(config: Config) -> dict[Path, Tensor]:
  body = names.tensors(dataclasses.replace(config, tie_embeddings=True))
  return {("transformer", *path): tensor for path, tensor in body.items()} | {
    ("score",): Tensor("score.weight", inputs=1)
  }
