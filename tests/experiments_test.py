"""Every experiment file loads, every point of every sweep is valid, and `:smoke` trains."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import ml_collections
import pytest
import tiny_checkpoint

from larpo_jax import config as config_lib
from larpo_jax import lookup, objective, train

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(p for p in (ROOT / "experiments").rglob("*.py") if p.name != "common.py")
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def override(config, point):
  """A point of a sweep on a config: dotted keys; a dict replaces the whole node."""
  config = config.copy_and_resolve_references().unlock()
  for key, value in point.items():
    *way, last = key.split(".")
    node = config
    for name in way:
      node = node[name]
    if last in node:
      del node[last]  # a value of another type may take its place
    node[last] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
  return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return tiny_checkpoint.make(tmp_path_factory.mktemp("checkpoint"))


def sampled(path):
  """Candidates of a round in the world of arithmetic, as `retrieval` leaves them."""
  answers = [["1+1=2\n=2", "=2", "=3", "1"], [1.0, 0.5, 0.0, 0.1]]
  rows = [dict(prompt=f"{n}+1:", responses=answers[0], scores=answers[1]) for n in range(16)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_there_are_experiments():
  assert "experiments/quickstart.py" in NAMES
  assert len(NAMES) >= 3


def test_configs_load_without_jax():
  code = f"""
import importlib.util, sys
for path in {[str(path) for path in FILES]!r}:
  spec = importlib.util.spec_from_file_location("page", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  module.get_config()
print([name for name in ("jax", "flax", "transformers", "larpo_jax") if name in sys.modules])
"""
  found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert found.stdout.strip() == "[]", found.stderr


def test_every_kernel_and_wrapper_is_in_a_sweep():
  """Of the pages on losses: a kernel that nobody can launch is not there."""
  used = set()
  for path in FILES:
    if path.parent.name == "dpo_variants":
      page = load(path)
      for sweep in sweeps_of(page):
        for point in sweep():
          used |= set(named(point["loss"]))
  assert used == set(lookup.names("larpo_jax.losses"))


def named(loss):
  """The names in a spec node, in those inside of it, or in several."""
  if isinstance(loss, dict):
    return [loss["name"], *(named(loss["kernel"]) if "kernel" in loss else [])]
  return [name for node in loss for name in named(node)]


def sweeps_of(page):
  return [value for name, value in vars(page).items() if name.split("_")[0] == "sweep"]


def test_all_pairwise_has_every_loss_of_a_pair():
  page = load(ROOT / "experiments" / "dpo_variants" / "all_pairwise.py")
  families = ("pairwise", "reference_free", "margins", "batchwise", "tokenwise", "exploration")
  known = lookup.names("larpo_jax.losses")
  assert sorted(page.NAMES) == [name for name in known if name.split(".")[0] in families]
  smoke = page.get_config("smoke")
  assert sorted(node["name"] for node in smoke.loss) == sorted(page.NAMES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_page_and_every_point_of_its_sweeps_are_valid(path):
  page = load(path)
  assert f"--config {path.relative_to(ROOT)}" in page.__doc__, "the docstring gives the command"
  config_lib.validate(page.get_config())
  assert sweeps_of(page), "a page has a sweep"
  for sweep in sweeps_of(page):
    points = list(sweep())
    assert len(points) == len({json.dumps(point, sort_keys=True) for point in points}) > 1
    for point in points:
      config_lib.validate(override(page.get_config(), point))


def test_published_settings_are_valid_and_say_how_sure_they_are():
  page = load(ROOT / "experiments" / "published.py")
  assert len(page.PRESETS) > 25
  named = {"larpo_contrastive_k10", "larpo_lambdarank_paper", "larpo_listmle_proper", "copo", "xpo"}
  named |= {"larpo_code_listmle", "larpo_code_lambda", "iterdpo_k2", "larpo_mem_all", "curri_dpo"}
  named |= {"step_dpo", "madpo_c2", "madpo_c4", "rdpo_eps.1", "rso_sigmoid", "rso_hinge", "ipo_avg"}
  named |= {"rso_hingenorm", "beta_dpo_official", "ipo_sum", "selm_zephyr", "selm_llama"}
  assert named < set(page.PRESETS)
  flat = lambda node: config_lib.flat(config_lib.validate(node).to_dict())  # noqa: E731
  told = {name: flat(page.get_config(name)) for name in ("rso_hinge", "beta_dpo_official", "copo")}
  assert told["rso_hinge"]["optimizer.name"] == "adafactor"
  assert told["rso_hinge"]["optimizer.learning_rate"] == 1e-5
  assert told["beta_dpo_official"]["optimizer.name"] == "rmsprop"
  assert told["beta_dpo_official"]["optimizer.warmup"] == 150
  assert told["beta_dpo_official"]["optimizer.clip"] == 10.0
  assert tuple(told["copo"]["rounds.learning_rates"]) == (5e-7, 3e-7, 1e-7)
  assert told["copo"]["model.lora.rank"] == 128
  for name, preset in page.PRESETS.items():
    assert preset["verified"] in ("read", "memory", "uncertain")
    assert preset["source"]
    small, large = (flat(page.get_config(name + size)) for size in (",cpu", ""))
    assert small["loss.name"] == large["loss.name"]
    for key, value in preset["scale"].items():
      if not isinstance(value, dict):
        assert large[key] == value, (name, key)
  with pytest.raises(ValueError, match="no preset 'copoo' here; there are: larpo_con"):
    page.get_config("copoo")


CLAIMS = ("larpo", "curry_dpo", "step_dpo", "madpo", "rdpo", "rso", "beta_dpo", "more_is_less")
CLAIMS += ("copo", "selm", "superficial_proxy", "over_optimisation")


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_page_of_a_claim_says_what_became_of_it(path):
  """In one of three words, in its docstring and in a section that gives its command."""
  if not {path.parent.name, path.stem} & {*CLAIMS}:
    return
  verdict = re.compile(r"\b(supported|undecided)\b", re.IGNORECASE)
  assert verdict.search(load(path).__doc__)
  sections = (ROOT / "docs" / "results.md").read_text().split("\n## ")
  found = [each for each in sections if f"--config {path.relative_to(ROOT)}" in each]
  assert found
  for section in found:
    assert verdict.search(section)
    assert re.search(r"!\[.+\]\(.+\.png\)", section), "its figure"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_smoke_trains_on_a_mesh_of_three_axes(path, tmp_path, checkpoint, request):
  config = load(path).get_config("smoke")
  config.mesh = dict(data=2, fsdp=2, tensor=2)
  config.reference.cache_dir = str(tmp_path / "cache")
  if config.model.path:
    request.getfixturevalue("shared_data")
    config.model.path = str(checkpoint)
  if config.data.train.path.startswith("runs/"):  # what another run has sampled
    config.data.train.path = config.data.test.path = str(sampled(tmp_path / "sampled.jsonl"))
  train.run(config_lib.validate(config), str(tmp_path / "run"))
  summary = json.loads((tmp_path / "run" / "results" / "summary.json").read_text())
  assert summary["before"].keys() == summary["after"].keys() != set()
  for name in ("metrics.jsonl", "config.json", "export/model.safetensors", "export/config.json"):
    assert (tmp_path / "run" / name).exists(), name
  assert list((tmp_path / "run").rglob("*.png"))


@pytest.mark.parametrize(
  "point",
  [
    {"model.lora.rank": 4, "reference.cache": False, "accumulation": 2},
    {"model.dtype": "bfloat16", "model.remat": "none", "model.scan": False},
    {
      "loss": ({"name": "pairwise.dpo", "beta": 0.2}, {"name": "pointwise.sft", "weight": 0.1}),
      "reference.cache": False,
    },
    {"optimizer": {"name": "lion", "learning_rate": 1e-5}, "evaluate.every": 1},
    {
      "model.lora.rank": 4,
      "loss": ({"name": "tokenwise.tdpo2"}, {"name": "batchwise.beta_dpo", "weight": 0.5}),
    },
  ],
  ids=[
    "adapters and a live reference",
    "bfloat16",
    "a weighted sum and a live reference",
    "lion",
    "statistics and kl",
  ],
)
def test_settings_that_change_how_a_run_is_put_together(point, tmp_path, checkpoint):
  rows = [{"prompt": f"q{i}:", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(16)]
  data = tmp_path / "pairs.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  page = load(ROOT / "experiments" / "real" / "preference_pairs.py")
  config = override(page.get_config("smoke"), point)
  config.model.path = str(checkpoint)
  config.data.reader = dict(name="readers.pairs")
  config.data.train.path = config.data.test.path = str(data)
  config.data.batch_size = 16
  config.reference.cache_dir = str(tmp_path / "cache")
  train.run(config_lib.validate(config), str(tmp_path / "run"))
  metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
  steps = [row for row in metrics if row["stage"] == "align" and "loss" in row]
  assert [row["step"] for row in steps] == [1, 2]
  digest = objective.describe(config.loss)[1]
  saved = (tmp_path / "run" / "checkpoints" / "align" / "2").rglob("*")
  assert any(digest in path.read_text("latin-1") for path in saved if path.is_file())
  assert steps[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5), "the reference is the start"
  assert (tmp_path / "run" / "export" / "model.safetensors").exists()
  assert (tmp_path / "run" / "adapters").exists() == ("model.lora.rank" in point)
