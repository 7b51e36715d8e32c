"""Names in configs become functions, and what is wrong with a spec is said in one sentence."""

import subprocess
import sys
import textwrap

import pytest

from larpo_jax import lookup


@pytest.fixture
def shelf(tmp_path, monkeypatch):
  """A package with two public modules, one private, one that cannot be imported."""
  files = {
    "__init__": "",
    "fruit": """
      from functools import lru_cache as borrowed
      def apple(x, *, size, colour="red"): return (x, size, colour)
      def pear(x): return x
      def _stone(x): return x
      apple.sweet = True
    """,
    "roots": "def beet(x, *, size=1): return x * size",
    "_soil": "def earth(x): return x",
  }
  folder = tmp_path / "shelf"
  folder.mkdir()
  for name, text in files.items():
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
  monkeypatch.syspath_prepend(tmp_path)
  yield "shelf"
  for name in [name for name in sys.modules if name.split(".")[0] == "shelf"]:
    del sys.modules[name]


def test_names_are_the_public_functions_of_public_modules(shelf):
  assert lookup.names(shelf) == ["fruit.apple", "fruit.pear", "roots.beet"]


def test_arguments_are_bound_and_attributes_kept(shelf):
  apple = lookup.resolve({"name": "fruit.apple", "size": 3}, shelf)
  assert apple(1) == (1, 3, "red")
  assert apple.sweet
  assert apple.__name__ == "apple"
  assert lookup.resolve({"name": "fruit.pear"}, shelf)(5) == 5
  spec = {"name": "roots.beet", "size": 2}
  assert lookup.resolve(spec, shelf)(4) == 8
  assert spec == {"name": "roots.beet", "size": 2}, "the spec is not changed"


@pytest.mark.parametrize(
  ("spec", "said"),
  [
    ({"name": "fruit.aple"}, ["'fruit.aple'", "did you mean 'fruit.apple'", "roots.beet"]),
    ({"name": "soup.apple"}, ["'soup.apple'", "fruit.apple"]),
    ({"name": "apple"}, ["'apple'", "fruit.apple"]),
    ({"name": "fruit._stone"}, ["no 'fruit._stone'"]),
    ({"name": "_soil.earth"}, ["no '_soil.earth'"]),
    ({"name": "fruit.borrowed"}, ["no 'fruit.borrowed'"]),
    ({"name": "..os.getcwd"}, ["no '..os.getcwd'"]),
    ({"name": "fruit..apple"}, ["no 'fruit..apple'"]),
    ({"name": ""}, ["needs a name", "fruit.apple"]),
    ({"name": None}, ["needs a name"]),
    ({"size": 3}, ["needs a name", "shelf"]),
    ({"name": "fruit.apple", "sise": 3}, ["no 'sise'", "did you mean 'size'", "size, colour"]),
    ({"name": "fruit.apple"}, ["fruit.apple needs size"]),
    ({"name": "fruit.pear", "x": 3}, ["fruit.pear takes no 'x'", "none"]),
  ],
)
def test_a_wrong_spec_is_answered_with_the_right_ones(spec, said, shelf):
  with pytest.raises(ValueError) as error:  # noqa: PT011
    lookup.resolve(spec, shelf)
  for words in said:
    assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_only_the_named_module_is_imported(shelf, tmp_path):
  (tmp_path / "shelf" / "heavy.py").write_text("raise ImportError('needs an accelerator')")
  assert lookup.resolve({"name": "roots.beet"}, shelf)(4) == 4
  with pytest.raises(ImportError, match="accelerator"):
    lookup.resolve({"name": "heavy.lead"}, shelf)


def test_kernels_come_without_readers_and_without_torch():
  heavy = "{'torch', 'trl', 'transformers', 'datasets', 'orbax', 'grain'}"
  code = f"""
    import sys
    from larpo_jax import lookup
    assert lookup.names("larpo_jax.losses")
    assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)
  """
  subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
