"""Pools of samples in a run: the same however they are drawn, means of lines, and a picture."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest

from larpo_jax import config as config_lib
from larpo_jax import (
  evaluation,
  inputs,
  loop,
  pool_curves,
  pools,
  preemption,
  rounds,
  session,
  stage,
  train,
  writers,
)
from larpo_jax.evaluators import generation, recall
from larpo_jax.worlds import arithmetic

ROOT = pathlib.Path(__file__).parent.parent
ROWS, SAMPLES, TEMPERATURES = 5, 6, (0.5, 1.0)


def start(directory, **evaluate):
  """A session of the quickstart's smoke with pools, and its parameters."""
  spec = importlib.util.spec_from_file_location("page", ROOT / "experiments" / "quickstart.py")
  page = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(page)
  config = page.get_config("smoke")
  config.supervised = None
  config.mesh = dict(data=2, fsdp=1, tensor=4)
  settings = dict(rows=ROWS, samples=SAMPLES, temperatures=TEMPERATURES)
  config.evaluate.update(settings | evaluate)
  checked = config_lib.validate(config)
  return session.start(checked, directory, writers.Writer(directory), preemption.Guard())


@pytest.fixture
def judged(monkeypatch):
  """What was sampled, {(prompt, temperature's number): texts}, as it is judged."""
  found = {}
  curves = recall.curves

  def spied(texts, answers, **how):
    for line, proxy, gold in zip(texts, how["proxy"], how["gold"]):
      found.setdefault(len(found), (line, proxy, gold))
    return curves(texts, answers, **how)

  monkeypatch.setattr(recall, "curves", spied)
  return found


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_a_pool_is_the_same_however_it_is_drawn(batch_size, tmp_path, judged):
  here, params = start(tmp_path, batch_size=batch_size, samples=7)  # parts that do not divide
  found = pools.measure(here, params)
  data = inputs.problems(here, "test", ROWS, split="test")
  assert [line["row"] for line in found.lines] == [*range(ROWS)]
  at = {}
  for number, temperature in enumerate(TEMPERATURES):
    for row in range(ROWS):
      at[temperature, row] = judged[number * ROWS + row][0]
  for (temperature, row), texts in at.items():
    ids = data[row].prompt[None]
    how = inputs.ending(here, data) | dict(candidates=7, temperature=temperature)
    drawn = stage.gathered(
      here.sample(params, ids, ids >= 0, here.key(4), rows=np.array([row]), **how)
    )
    assert here.decode(drawn.response, drawn.mask) == [texts]
  assert len({tuple(texts) for texts in at.values()}) == len(at)


def test_numbers_are_means_of_the_lines_of_an_evaluation(tmp_path, judged):
  here, params = start(tmp_path)
  found = evaluation.ends(here, params, params)
  of_pools = {name for name in found.numbers if "@" in name}
  kinds = ("pass", "best", "proxy_best", "majority")
  wanted = {f"{kind}@{n}/T={t}" for kind in kinds for n in (1, 2, 5) for t in ("0.5", "1")}
  wanted |= {
    f"{kind}@{n}/T={t}" for kind in ("unique", "all_tied") for n in (2, 5) for t in ("0.5", "1")
  }
  assert of_pools == wanted
  assert {"gold/reward", "kl"} <= set(found.numbers)
  assert len(found.lines) == ROWS
  wins = {"sampled/win_rate", "sampled/win_rate_lc"}
  assert {found.numbers[name] for name in wins} == {0.5}, "of the start against itself"
  for name in set(found.numbers) - {"kl_stderr"} - wins:
    assert found.numbers[name] == pytest.approx(np.mean([line[name] for line in found.lines])), name
  assert all({"prompt", "responses"} <= set(line) for line in found.lines)
  for row, line in enumerate(found.lines):
    texts, proxy, _ = judged[row]
    assert line["proxy_best@1/T=0.5"] == pytest.approx(np.mean(judged[row][2]))
    assert line["unique@5/T=0.5"] == pytest.approx(recall.unique([texts], 5)[0])
    assert line["all_tied@2/T=0.5"] == pytest.approx(recall.all_tied([proxy], 2)[0])


def test_without_samples_an_end_is_any_other_evaluation(tmp_path, monkeypatch):
  here, params = start(tmp_path, samples=0)
  for module, name in ((pools, "measure"), (evaluation, "held_out")):
    monkeypatch.setattr(module, name, lambda *_: pytest.fail("nobody asked for more"))
  plain = evaluation.ends(here, params, params)
  assert not [name for name in plain.numbers if "@" in name]
  line = {"set": "held_out", "row": 0, "weight": 1.0, "held_out/accuracy": 0.5}
  more = generation.Evaluation({"held_out/accuracy": 0.5}, [line])
  monkeypatch.setattr(evaluation, "held_out", lambda *_: more)
  here.config.evaluate.held_out = 4
  found = evaluation.ends(here, params, params)
  assert found == generation.Evaluation(plain.numbers | more.numbers, plain.lines + more.lines)


def test_a_policy_that_is_right_one_time_in_three(tmp_path, monkeypatch):
  """Of every six answers two are right, the others all differ, and two of them state nothing."""
  here, params = start(tmp_path, temperatures=(0.7,))

  def solved(self, ids, mask):
    if mask.dtype == bool:
      return plain(self, ids, mask)
    right = [arithmetic.parse(text).values[-1] for (text,) in plain(self, *asked)]
    return [[f"={value}", f"={value}", "=100", "=101", "=1\n=2", "none"] for value in [*right, 0]]

  plain = session.Session.decode
  data = inputs.problems(here, "test", ROWS, split="test")
  batch = next(pools.batching.prompt_batches(data, batch_size=ROWS, shuffle=False, shapes=1))
  asked = batch.prompt, batch.prompt_mask
  monkeypatch.setattr(session.Session, "decode", solved)
  found = pools.measure(here, params).numbers
  assert found["pass@1/T=0.7"] == pytest.approx(1 / 3)
  assert found["pass@2/T=0.7"] == pytest.approx(1 - (4 * 3) / (6 * 5))
  assert found["pass@5/T=0.7"] == pytest.approx(1.0)
  # A run of five leaves out a right one (then three have a vote each) or not.
  assert found["majority@5/T=0.7"] == pytest.approx((2 / 3) + (2 / 6) * (1 / 3))
  assert found["unique@5/T=0.7"] == pytest.approx((2 / 6) * 1 + (4 / 6) * 0.8)


def test_a_signal_stops_it_between_batches(tmp_path, monkeypatch):
  here, params = start(tmp_path, batch_size=1)
  asked = []

  def poll(self):
    asked.append(1)
    if len(asked) == 3:
      raise loop.Preempted("stopped")

  monkeypatch.setattr(session.Session, "poll", poll)
  sampled = []
  sample = session.Session.sample
  monkeypatch.setattr(
    session.Session, "sample", lambda self, *a, **how: sampled.append(1) or sample(self, *a, **how)
  )
  with pytest.raises(loop.Preempted):
    pools.measure(here, params)
  assert len(sampled) == 2


def test_parts_hold_no_more_than_asked_and_all_that_is_needed(seed):
  generator = np.random.default_rng(seed)
  for _ in range(300):
    rows, samples, batch_size, devices = (int(x) for x in generator.integers(1, [99, 200, 512, 9]))
    share = pools.shares(rows, samples, batch_size, devices)
    assert share.prompts % devices == 0
    assert share.prompts < rows + devices, "no more padding than the devices need"
    at_once = share.prompts * share.candidates
    assert at_once <= max(batch_size, devices)
    assert share.calls * share.candidates >= samples > (share.calls - 1) * share.candidates


def test_both_ends_of_a_run_have_pools_and_the_rounds_between_have_none(tmp_path, monkeypatch):
  here, params = start(tmp_path, temperatures=(1.0,))
  seen = []

  def measure(session, params):
    seen.append(params)
    line = {"set": "written", "row": 0, "pass@1/T=1": float(len(seen))}
    return generation.Evaluation({"pass@1/T=1": float(len(seen))}, [line])

  def evaluate(session, start, params):
    line = {"set": "written", "row": 0, "x": 1.0}
    return generation.Evaluation({"x": 1.0}, [line])

  def learn(session, params, *arguments, evaluate, **how):
    assert evaluate(params).numbers == {"x": 1.0}
    return jax.tree.map(lambda x: x + 1, params)

  monkeypatch.setattr(pools, "measure", measure)
  monkeypatch.setattr(evaluation, "evaluate", evaluate)
  monkeypatch.setattr(rounds, "learn", learn)
  summary = train._stages(here, params)
  assert summary["before"] == {"x": 1.0, "pass@1/T=1": 1.0}
  assert summary["after"] == {"x": 1.0, "pass@1/T=1": 2.0}
  assert len(seen) == 2
  line = json.loads((tmp_path / "results" / "after.jsonl").read_text())
  assert line["pass@1/T=1"] == 2.0


def test_the_picture_and_the_table_hold_every_temperature(tmp_path):
  after = {
    f"{kind}@{n}/T={t}": t * n for kind in pool_curves.PANELS for n in (1, 10) for t in (0.5, 1.5)
  }
  before = {name: value / 2 for name, value in after.items() if "T=0.5" in name} | {"kl": 0.0}
  assert pool_curves.read(before)["pass"] == {"0.5": {1: 0.25, 10: 2.5}}
  (path,) = pool_curves.plot({"before": before, "after": after}, tmp_path)
  assert path == tmp_path / "pass_at_n.png"
  with Image.open(path) as picture:
    colours = {colour for _, colour in picture.convert("RGB").getcolors(10**6)}
  assert len(colours) > 10
  shown = pool_curves.table({"before": before, "after": after})
  assert [list(column.cells) for column in shown.columns] == [
    ["T=0.5", "T=1.5"], ["0.250 > 0.500", "1.500"], ["2.500 > 5.000", "15.000"],
  ]  # fmt: skip
  nothing = {"before": {"kl": 0.0}, "after": {"kl": 1.0}}
  assert pool_curves.plot(nothing, tmp_path / "none") == []
  assert pool_curves.table(nothing) is None
