"""What a config is refused for."""

import pytest

from larpo_jax import config as config_lib


def put(tree, name, value):
  *path, last = name.split(".")
  for part in path:
    tree = tree[part]
  tree[last] = value


def refused(tree):
  with pytest.raises(ValueError, match="config") as caught:
    config_lib.validate(tree)
  text = str(caught.value)
  assert "\n" not in text
  return text
