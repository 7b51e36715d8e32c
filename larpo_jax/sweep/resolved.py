"""An experiment file whose argument is a config that was written as JSON: what a sweep launches.

python -m larpo_jax.main --config larpo_jax/sweep/resolved.py:DIR/configs/NAME.json --workdir ...
"""

import json

import ml_collections


def get_config(path):
  """The config of that file."""
  with open(path, encoding="utf-8") as file:
    return ml_collections.ConfigDict(_tuples(json.load(file)))


def _tuples(value):
  """JSON has no tuples; a config has no lists."""
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value
