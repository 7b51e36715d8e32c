"""Whatever is wrong with a config is said before anything runs, by the name of the key."""

import json
import math
from pathlib import Path
import random

import ml_collections
import pytest
from refusals import put, refused

from experiments import common, quickstart
from larpo_jax import config as config_lib
from larpo_jax.config import fields

ROOT = Path(__file__).parent.parent


def whole():
  """A config that is right, with every optional node."""
  config = quickstart.get_config()
  config.model.lora.rank = 4
  return config_lib.validate(config).to_dict()


def take(tree, name):
  *path, last = name.split(".")
  for part in path:
    tree = tree[part]
  return tree.pop(last)


def leaves():
  return {
    name: entry for name, entry in config_lib.FIELDS.items() if isinstance(entry, fields.Field)
  }


def test_base_and_the_table_hold_the_same_fields_and_defaults():
  base = config_lib.flat(common.base())
  optional = ("supervised.", "rounds.")
  always = {name: entry for name, entry in leaves().items() if not name.startswith(optional)}
  nodes = {
    name.split(".name")[0] for name in base if name.endswith(".name") and name != "optimizer.name"
  }
  specs = {name for name, entry in config_lib.FIELDS.items() if isinstance(entry, fields.Spec)}
  assert nodes <= specs
  for name, entry in always.items():
    assert base.pop(name) == entry.default, name
    assert type(common.base().to_dict()) is dict
  rest = {
    name for name in base if not name.startswith(("loss.", "scorer.", "data.reader.", "rules."))
  }
  assert rest == {"model.shape", "data.test.reader", "supervised", "rounds", "world", "reward"}


EXPERIMENTS = [p for p in sorted((ROOT / "experiments").rglob("*.py")) if p.stem != "common"]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=str)
@pytest.mark.parametrize("argument", ["", "smoke"])
def test_every_experiment_is_valid(experiment, argument):
  space = {}
  exec(compile(experiment.read_text(), str(experiment), "exec"), space)
  config = space["get_config"](argument)
  if not config.model.path and not config.model.shape:
    config.model.path = "given/on/the/command/line"
  if config.rounds is None and not config.data.train.path:
    config.data.train.path = "given/on/the/command/line"
  before = config.to_json_best_effort()
  complete = config_lib.validate(config)
  assert config.to_json_best_effort() == before, "validate changes nothing"
  assert complete.is_locked
  assert config_lib.validate(complete) == complete


def test_defaults_are_filled_in():
  config = quickstart.get_config()
  del config.rounds["temperature"]
  del config.data["overlong"]
  complete = config_lib.validate(config)
  assert complete.rounds.temperature == 1.0
  assert complete.data.overlong == "truncate"
  assert complete.rounds.memory == "none"
  tree = config.to_dict()
  del tree["rounds"]["count"]
  assert "config.rounds.count=None must be a whole number" in refused(tree)


def test_every_key_with_one_letter_changed_is_refused_with_the_right_one_named(seed):
  generator = random.Random(seed)
  right = config_lib.flat(whole())
  tried = 0
  for name in right:
    if name.startswith(("model.shape.", "rules.")):
      continue  # read by the model; tested below
    key = name.rpartition(".")[2]
    place = generator.randrange(len(key))
    letter = generator.choice("abcdefghijklmnopqrstuvwxyz_".replace(key[place], ""))
    wrong = key[:place] + letter + key[place + 1 :]
    changed = f"{name.rpartition('.')[0]}.{wrong}".lstrip(".")
    if changed in right:
      continue  # top_k and top_p
    tree = whole()
    put(tree, changed, take(tree, name))
    text = refused(tree)
    assert wrong in text, text
    assert key in text, text
    tried += 1
  assert tried > 50


@pytest.mark.parametrize(
  ("name", "value", "said"),
  [
    ("modle", {}, "config.modle is unknown (did you mean 'model'?)"),
    ("data.train.paht", "x", "did you mean 'path'?"),
    ("rules.embde", "fsdp", "did you mean 'embed'?"),
    ("rules.embed", "fdsp", "config.rules.embed='fdsp' must be one of data, fsdp, tensor"),
    ("loss.name", "listwise.listml", "did you mean 'listwise.listmle'?"),
    ("loss.bta", 0.1, "takes no 'bta' (did you mean 'beta'?); its arguments: beta"),
    ("loss.beta", math.nan, "config.loss.beta=nan must be a finite number"),
    ("loss.beta", -0.1, "config.loss.beta=-0.1 must be above 0"),
    ("loss.beta", "0.1", "config.loss.beta='0.1' must be a number"),
    ("loss.beta", None, "config.loss.beta=None must be a number"),
    ("loss.name", "", "config.loss needs a name"),
    ("loss", (), "config.loss is empty"),
    ("loss", "pairwise.dpo", "config.loss='pairwise.dpo' must be a spec"),
    ("loss", ({"name": "pairwise.dpo", "weight": math.inf},), "config.loss[0].weight=inf"),
    ("loss", ({"name": "pairwise.dpo"}, {"name": "pairwise.dop"}), "config.loss[1]: no"),
    ("world.name", "arithmetics", "no world 'arithmetics'"),
    ("world.slop", 0.1, "did you mean 'slip'?"),
    ("reward.name", "rules.brevety", "did you mean 'rules.brevity'?"),
    ("data.reader.name", "readers.pair", "did you mean 'readers.pairs'?"),
    ("data.reader.name", "batching.batches", "no 'batching.batches'"),
    ("data.reader.chosn", "x", "did you mean 'chosen'?"),
    ("optimizer.name", "adamv", "config.optimizer.name='adamv' must be one of adamw"),
    ("optimizer.name", "lion", "lion takes no 'eps'"),
    ("optimizer.learning_rate", math.inf, "must be a finite number"),
    ("optimizer.learning_rate", 0, "must be above 0"),
    ("optimizer.b1", None, "config.optimizer.b1=None must be a number"),
    ("model.dtype", "float61", "must be one of float32, bfloat16"),
    ("model.dtype", "", "config.model.dtype is empty"),
    ("model.scan", 1, "config.model.scan=1 must be True or False"),
    ("model.lora.targets", ("q", "w"), "config.model.lora.targets='w' must be one of q"),
    ("model.lora.targets", (), "must be a tuple of q"),
    ("model.path", "both", "both a path and a shape"),
    ("model.shape", {}, "neither a path nor a shape"),
    ("model.shape.hidden_size", math.nan, "must be a finite number"),
    ("model", 3, "config.model=3 must be a dict"),
    ("seed", True, "config.seed=True must be a whole number"),
    ("seed", 1.5, "config.seed=1.5 must be a whole number"),
    ("seed", None, "config.seed=None must be a whole number"),
    ("steps", -2, "config.steps=-2 must be at least -1"),
    ("epochs", 0, "config.steps and config.epochs are both unset"),
    ("accumulation", 3, "config.data.batch_size=32 does not divide"),
    ("data.batch_size", 0, "config.data.batch_size=0 must be at least 1"),
    ("rounds.candidates", 1, "config.rounds.candidates=1, but listwise.listmle ranks a list"),
    ("rounds.top_p", 1.5, "must be above 0 and at most 1"),
    ("rounds.memory", "al", "must be one of none, previous, all"),
    ("rounds.prompt_split", "sharde", "must be one of disjoint, shared"),
    ("rounds.reference", "first", "must be one of round, stage, start"),
    ("rounds.reference", "stage", "needs stages: set config.rounds.curriculum"),
    (
      "rounds.curriculum",
      {"name": "curriculum.easy_to_hart"},
      "did you mean 'curriculum.easy_to_h",
    ),
    ("rounds.curriculum", {"name": "curriculum.shuffled", "stages": 0}, "stages=0 parts of"),
    ("reference.sync_share", 0.0, "must be above 0 and at most 1"),
    ("rounds.negatives", "others", "must be one of sampled, other_prompt, unrelated"),
    ("rounds.prefer", ("self", "peer"), "config.rounds.prefer='peer' must be one of greedy, self"),
    ("rounds.prefer", ("gold", "self"), "has 'gold', but no candidate comes from there: set "),
    ("rounds.prefer", ("self", "self"), "config.rounds.prefer has 'self' twice"),
    ("rounds.styled", ("human",), "config.rounds.human, or drop it"),
    ("rounds.human", -1, "config.rounds.human=-1 must be at least 0"),
    ("rounds.teacher", "runs/a", "config.rounds.teacher='runs/a' must be a dict"),
    ("rounds.teacher", {}, "config.rounds.teacher.paths=None must be a tuple of texts"),
    ("rounds.teacher", {"paths": "runs/a"}, "paths='runs/a' must be a tuple of texts"),
    ("rounds.teacher", {"paths": ("",)}, "config.rounds.teacher.paths is empty"),
    ("rounds.teacher", {"path": "a", "paths": ("a",)}, "did you mean 'paths'?"),
    ("rounds.repetition_penalty", 0.0, "config.rounds.repetition_penalty=0.0 must be above 0"),
    ("rounds.no_repeat_ngram_size", -1, "must be at least 0"),
    ("rounds.lists", "lists.whole", "config.rounds.lists='lists.whole' must be a spec"),
    ("rounds.lists", {"name": "lists.best_wurst"}, "did you mean 'lists.best_worst'?"),
    ("rounds.lists", {"name": "readers.pairs"}, "no 'readers.pairs'"),
    ("rounds.lists", {"name": "lists.top_bottom", "positive": 1}, "did you mean 'positives'?"),
    ("rounds.lists", {"name": "lists.rso", "keep": 2.5}, "keep=2.5 must be a whole number"),
    ("rounds.lists", {"name": "lists.rso", "keep": 0}, "config.rounds.lists: keep=0 must be at"),
    ("rounds.lists", {"name": "lists.rso", "beta": -0.5}, "beta=-0.5 must be at least 0"),
    ("rounds.lists", {"name": "lists.rso", "pairing": "al"}, "pairing='al' is not one of first"),
    ("rounds.noise", {"name": "lists.whole"}, "no 'lists.whole'"),
    ("rounds.noise", {"name": "noise.symetric"}, "did you mean 'noise.symmetric'?"),
    (
      "rounds.noise",
      {"name": "noise.symmetric", "rate": 2.0},
      "config.rounds.noise: rate=2.0 must",
    ),
    ("rounds.agreed", True, "config.rounds.agreed=True leaves out what config.rounds.noise"),
    ("rounds.novelty", {"name": "novelty.count"}, "did you mean 'novelty.counts'?"),
    ("rounds.novelty", {"name": "lists.whole"}, "no 'lists.whole'"),
    ("rounds.novelty", {"name": "novelty.counts", "exponent": -1.0}, "rounds.novelty: exponent=-1"),
    ("rounds.novelty", {"name": "novelty.coin_flips", "flips": 0}, "rounds.novelty: flips=0 must"),
    ("reward", None, "config.rounds needs config.reward"),
    ("world", None, "config.tokenizer.path is empty"),
    ("rounds", None, "there is nothing to learn from"),
    ("mesh.fsdp", 0, "has an axis of 0 devices"),
    ("mesh.fsdp", -1, "more than one -1"),
    ("evaluate.temperatures", (1.0, 0), "config.evaluate.temperatures=0 must be above 0"),
    ("evaluate.temperatures", (), "config.evaluate.temperatures=() must be a tuple of numbers"),
    ("evaluate.temperatures", 0.5, "config.evaluate.temperatures=0.5 must be a tuple of numbers"),
    ("evaluate.temperatures", ("hot",), "config.evaluate.temperatures='hot' must be a number"),
    ("evaluate.temperatures", (0.5, 1, 1.0), "0.5, 1, 1 has one of them twice"),
    ("evaluate.samples", -1, "config.evaluate.samples=-1 must be at least 0"),
    ("evaluate.held_out", 1, "config.evaluate.held_out=1 is nothing to rank"),
    ("data.skip", ("mising",), "config.data.skip='mising' must be one of"),
  ],
)
def test_what_cannot_run_is_refused(name, value, said):
  tree = whole()
  put(tree, name, value)
  assert said in refused(tree)


def test_secrets_are_struck_and_settings_kept():
  config = common.base().to_dict()
  assert config_lib.redact(config) == config
  text = "git clone https://me:hunter2@host/x, hf_abcdefghij and sk-abcdefghij, https://host/a@b"
  shown = config_lib.redact({"note": [text], "a": {"MyPassword": "x", "key": ("y", 3)}})
  assert shown == {
    "note": ("git clone https://***@host/x, *** and ***, https://host/a@b",),
    "a": {"MyPassword": "***", "key": ("***", 3)},
  }


def test_a_digest_is_of_the_settings():
  config = common.base()
  digest = config_lib.digest(config)
  assert digest == config_lib.digest(json.loads(json.dumps(config.to_dict())))
  assert digest == config_lib.digest(dict(reversed(config.to_dict().items())))
  config.loss.beta = 0.2
  assert digest != config_lib.digest(config)


def test_the_node_of_a_sweep_is_replaced_whole():
  config = quickstart.get_config()
  for override in quickstart.sweep():
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.update_from_flattened_dict(override)
    assert config_lib.validate(changed).loss.beta == override["loss.beta"]
