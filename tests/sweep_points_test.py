"""What a sweep consists of, and what its directories are called."""

import json
import pathlib
import re

import pytest

from experiments import common
from larpo_jax import config as configs
from larpo_jax.sweep import points, resolved

ROOT = pathlib.Path(__file__).parent.parent
ROUNDS = dict(count=1, prompts=8, steps_per_round=2)


def base(**changes):
  config = common.base()
  config.world = dict(name="arithmetic")
  config.reward = dict(name="rules.brevity")
  config.rounds = dict(count=1, prompts=8)
  config.model.shape = dict(model_type="llama", hidden_size=32)
  config.steps = 1
  config.update(changes)
  return configs.plain(config)


def test_every_change_meets_every_seed():
  changes = [{"optimizer.learning_rate": rate} for rate in (1e-3, 1e-4)]
  found = points.points(base(seed=5), changes, seeds=3)
  assert [(p.number, p.seed) for p in found] == [(n, s) for n in (0, 1) for s in (5, 6, 7)]
  assert len({p.name for p in found}) == 6
  for point in found:
    assert point.config.seed == point.seed
    assert point.config.optimizer.learning_rate == changes[point.number]["optimizer.learning_rate"]
  assert [p.number for p in points.points(base(), changes, 1, only=[1])] == [1]


def test_every_point_is_crossed_with_every_value():
  losses = [{"loss": dict(name=name, beta=0.1)} for name in ("pairwise.dpo", "listwise.listmle")]
  found = points.crossed(losses, ["loss.beta=0.03,1", "rounds.optimizer=reset,kept"])
  configs_of = [each.config for each in points.points(base(rounds=ROUNDS), found, 1)]
  assert len(configs_of) == 2 * 2 * 2
  told = {(c.loss.name, c.loss.beta, c.rounds.optimizer) for c in configs_of}
  names = ("pairwise.dpo", "listwise.listmle")
  wanted = {(n, beta, o) for n in names for beta in (0.03, 1) for o in ("reset", "kept")}
  assert told == wanted
  assert points.crossed(losses, []) == losses
  for grids, message in (
    (["loss.beta"], "must be like loss.beta="),
    (["loss.beta=0.1,0.1"], "each value once"),
    (["=1,2"], "must be like"),
    (["loss.beta=1,2", "loss.beta=3"], "names loss.beta twice"),
  ):
    with pytest.raises(ValueError, match=message):
      points.crossed(losses, grids)


def test_names_say_what_varies_and_nothing_else():
  changes = [
    {"loss": dict(name="listwise.listmle", beta=beta), "data.batch_size": 8, "epochs": 2.0}
    for beta in (0.1, 0.5)
  ]
  changes.append({"loss": dict(name="pairwise.dpo", beta=0.1), "data.batch_size": 8, "epochs": 2.0})
  names = [point.name for point in points.points(base(), changes, 1)]
  assert names == [
    "loss=listwise.listmle,beta=0.1,seed=0",
    "loss=listwise.listmle,beta=0.5,seed=0",
    "loss=pairwise.dpo,beta=0.1,seed=0",
  ]


def test_labels_are_as_long_as_they_have_to_be():
  changes = [{"optimizer.b1": 0.9, "model.lora.rank": 0, "rounds.top_k": 0, "scorer.name": "a"}]
  changes.append({key: 1 for key in changes[0]})
  assert list(points.labels(changes)[0]) == ["b1", "rank", "top_k", "scorer"]
  changes = [{"data.batch_size": 1, "rounds.batch_size": 1}]
  changes.append({"data.batch_size": 2, "rounds.batch_size": 2})
  assert list(points.labels(changes)[0]) == ["data.batch_size", "rounds.batch_size"]


def test_a_key_that_some_points_lack_varies():
  found = points.points(base(), [{}, {"steps": 3}], 1)
  assert [point.name for point in found] == ["seed=0", "steps=3,seed=0"]


def test_points_may_be_seeds():
  found = points.points(base(), [{"seed": 4}, {"seed": 9}], 1)
  assert [point.name for point in found] == ["seed=4", "seed=9"]


def test_names_are_directories(seed):
  many = tuple(dict(name="pairwise.dpo", weight=float(n), beta=0.1) for n in range(1, 30))
  loss = [{"loss": many}, {"loss": dict(name="pairwise.dpo")}]
  for point in points.points(base(), loss, 1):
    assert re.fullmatch(r"[\w.+=,-]{1,140}", point.name)


@pytest.mark.parametrize(
  ("changes", "only", "message"),
  [
    ([{"loss.beta": -1.0}], (), "point 0"),
    ([{"optimizer.b3": 1.0}], (), "b3"),
    ([{"nothing.there": 1}], (), "no node 'nothing'"),
    ([{"steps": 1}, {"steps": 1}], (), "are the same"),
    ([{"steps": 1}], [4], "no point 4"),
  ],
)
def test_what_cannot_run_is_refused_before_anything_does(changes, only, message):
  with pytest.raises(ValueError, match=message):
    points.points(base(), changes, 1, only)


def test_a_file_has_sweeps_by_name(tmp_path):
  path = tmp_path / "page.py"
  path.write_text(
    "def sweep():\n  yield {'a': 1}\n\ndef sweep_mesh():\n  yield {'b': 2}\n  yield {'b': 3}\n"
    "\ndef sweep_empty():\n  return []\n"
  )
  assert points.changes(path) == [{"a": 1}]
  assert points.changes(path, "mesh") == [{"b": 2}, {"b": 3}]
  with pytest.raises(ValueError, match="it has sweeps: mesh, empty"):
    points.changes(path, "loss")
  with pytest.raises(ValueError, match="yields nothing"):
    points.changes(path, "empty")
  path.write_text("")
  assert points.changes(path) == [{}]


def test_a_written_config_is_read_as_it_was(tmp_path):
  changes = [{"loss": (dict(name="pairwise.dpo"), dict(name="pointwise.sft", weight=0.1))}]
  (point,) = points.points(base(), changes, 1)
  path = tmp_path / "configs" / "point.json"
  points.written(point.config, path)
  points.written(point.config, path)
  again = configs.validate(resolved.get_config(str(path)))
  assert configs.plain(again) == configs.plain(point.config)
  (other,) = points.points(base(), [{"steps": 7}], 1)
  with pytest.raises(ValueError, match="another sweep"):
    points.written(other.config, path)


def test_secrets_are_not_written(tmp_path):
  (point,) = points.points(base(), [{"data.train.path": "https://me:secret@host/x"}], 1)
  with pytest.raises(ValueError, match="secret"):
    points.written(point.config, tmp_path / "x.json")
  assert not (tmp_path / "x.json").exists()


def test_every_page_of_the_project_makes_points():
  for path in sorted((ROOT / "experiments").rglob("*.py")):
    if path.name != "common.py":
      assert points.changes(path)
  assert json.dumps(list(points.index(points.points(base(), [{}], 2))))
