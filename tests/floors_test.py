"""The shape of the package: who may import whom, and how long a file may be."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "larpo_jax"
# A module imports from its own floor (without going in a circle) and from the floors below.
FLOORS = [
  {"types", "masked"},
  {"losses", "models", "data", "rewards", "worlds", "sharding", "lookup"}
  | {"hardware", "processes", "compiler"},
  {"scorers", "optimizers", "checkpoints", "workdir", "writers", "preemption", "config"}
  | {"objective", "tracking"},
  {"train_step", "micro_batches", "evaluators", "sampling", "estimate", "lanes", "vectorised"}
  | {"repetition"},
  {"train", "session", "stage", "loop", "rounds", "retrieval", "responders", "difficulty"}
  | {"inputs", "evaluation", "pools", "pool_curves", "curves", "starts", "cost"}
  | {"novelty", "coverage", "pretrained", "step_pairs"},
  {"main", "inspect", "plan", "explain", "sweep", "report", "runs", "winrate"}
  | {"answer", "harness"},
]
FLOOR = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
MODULES = sorted(PACKAGE.rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))
SOURCES = [*MODULES, *EXPERIMENTS, *sorted((ROOT / "scripts").rglob("*.py"))]
SOURCES += sorted((ROOT / "tests").rglob("*.py"))


def named(paths):
  return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def imports(path):
  """Every dotted name that a file imports, wherever in it: "from a import b" is both a and a.b."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(path):
  """The part of the package that a file belongs to; None for larpo_jax/__init__.py."""
  first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
  return None if first == "__init__" else first


def uses(path):
  """The other parts of the package that a file imports."""
  split = [name.split(".") for name in imports(path)]
  found = {parts[1] for parts in split if parts[0] == "larpo_jax" and len(parts) > 1}
  return found - {unit(path), "__version__"}


@named(MODULES)
def test_imports_come_from_the_same_floor_or_below(path):
  mine, used = unit(path), uses(path)
  if mine is None:
    assert not used, "importing larpo_jax imports nothing else of it"
    return
  assert mine in FLOOR, f"{mine} has no floor: put it in FLOORS"
  above = {name for name in used if FLOOR[name] > FLOOR[mine]}
  assert not above, f"{mine} is on floor {FLOOR[mine]} and imports {above} from above"


def test_no_circles():
  graph = {}
  for path in MODULES:
    if unit(path):
      graph.setdefault(unit(path), set()).update(uses(path))
  assert list(graphlib.TopologicalSorter(graph).static_order())


@named(MODULES)
def test_the_package_needs_neither_torch_nor_trl(path):
  assert not {name.split(".")[0] for name in imports(path)} & {"torch", "trl", "tests", "scripts"}


@named([path for path in MODULES if unit(path) == "losses"])
def test_kernels_see_arrays_only(path):
  used = {name.split(".")[0] for name in imports(path)}
  assert used <= {"__future__", "collections", "dataclasses", "functools", "math", "typing"} | {
    "jax",
    "larpo_jax",
  }
  assert uses(path) <= {"types", "masked"}


@named(EXPERIMENTS)
def test_an_experiment_is_a_page_of_settings(path):
  for name in imports(path):
    allowed = name.split(".")[0] in ("ml_collections", "experiments")
    allowed |= path.name == "common.py" and name == "os"  # where the data lies
    assert allowed or name in ("__future__", "__future__.annotations"), name


@named(SOURCES)
def test_files_are_short(path):
  lines = path.read_text().count("\n")
  assert lines <= 330, f"{lines} lines: split it by what it is about"


def test_no_junk_drawers():
  assert not [
    path for path in MODULES if path.stem in ("utils", "util", "helpers", "common", "misc")
  ]


def test_the_rule_sees_what_it_forbids(tmp_path):
  text = (
    "import larpo_jax.train\ndef f():\n  from larpo_jax import main as m\n  from torch import nn\n"
  )
  path = tmp_path / "bad.py"
  path.write_text(text)
  assert {"larpo_jax.train", "larpo_jax.main", "torch", "torch.nn"} <= set(imports(path))
