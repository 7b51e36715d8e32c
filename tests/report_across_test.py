"""Several sweeps against each other, and two runs."""

import json

import numpy as np
import pytest
from scipy import stats
import synthetic_sweep

from larpo_jax.report import __main__ as main
from larpo_jax.report import across, compare, findings, markdown


def write(directory, gains, **options):
  arms = [({"loss": name}, gain, 0.2) for name, gain in gains.items()]
  return synthetic_sweep.write(directory, arms, prompts=8, rounds=1, steps=3, **options)


def test_ranks_and_their_agreement_are_scipys(tmp_path, seed):
  rng = np.random.default_rng(seed)
  names = [f"loss{i}" for i in range(7)]
  gains = rng.permuted(np.tile(np.arange(7.0), (3, 1)), axis=1)
  every = [
    findings.find(write(tmp_path / f"world{i}", dict(zip(names, row)), seeds=2, rng=rng))
    for i, row in enumerate(gains)
  ]
  found = across.ranks(every)
  assert found.names == ["world0", "world1", "world2"]
  np.testing.assert_array_equal(
    found.ranks, stats.rankdata(-gains, axis=1).T
  )  # gains are far apart
  for each, (one, two) in zip(across.agreements(found), [(0, 1), (0, 2), (1, 2)]):
    assert each.kendall == pytest.approx(stats.kendalltau(gains[one], gains[two]).statistic)
    assert each.spearman == pytest.approx(stats.spearmanr(gains[one], gains[two]).statistic)
    assert each.pair == (f"world{one}", f"world{two}")


def test_a_report_across_directories(tmp_path, capsys):
  one = write(tmp_path / "sums", {"dpo": 0.1, "simpo": 0.3, "ipo": 0.2, "here": 9.0}, seeds=3)
  two = write(tmp_path / "sorting", {"dpo": 0.3, "simpo": 0.1, "ipo": 0.2}, seeds=3)
  assert main.main([str(one), str(two)]) == 0
  assert "Which arm wins where" in capsys.readouterr().out
  text = (tmp_path / "across.md").read_text()
  assert "Only the 3 arms that all directories have are compared" in text
  assert "In `sums` `loss=simpo` has the highest gold reward" in text
  assert "In `sorting` `loss=dpo` has the highest gold reward" in text
  assert "Kendall -1.00" in text
  assert (tmp_path / "plots" / "across.png").exists()
  page = (tmp_path / "across.html").read_text()
  assert page.count("<table>") == 2
  assert (one / "report.html").exists()
  assert (two / "report.html").exists()
  assert main.main([str(one), str(two), "--output", str(tmp_path / "out")]) == 0
  assert (tmp_path / "out" / "across.html").exists()


def test_what_is_as_good_as_the_best_is_marked(tmp_path):
  gains = {"best": 0.8, "same": 0.79, "worse": 0.1}
  every = [findings.find(write(tmp_path / name, gains, seeds=4, noise=0.05)) for name in ("a", "b")]
  parts = across.sections(every, tmp_path)
  rows = {line.split(" ")[1]: line for line in markdown.text("t", parts).splitlines()
          if line.startswith("| loss=")}  # fmt: skip
  assert rows["loss=best"].count("=") == 3
  assert rows["loss=same"].count("=") == 3
  assert rows["loss=worse"].count("=") == 1


def test_directories_are_named_by_what_differs(tmp_path):
  paths = [tmp_path / "a" / "sweep", tmp_path / "b" / "sweep"]
  assert across.names(paths) == ["a/sweep", "b/sweep"]
  with pytest.raises(ValueError, match="given twice"):
    across.names([tmp_path, tmp_path / "." / ""])


def test_directories_without_common_arms_are_told_so(tmp_path, capsys):
  one = write(tmp_path / "one", {"dpo": 0.1, "ipo": 0.2}, seeds=2)
  two = write(tmp_path / "two", {"dpo": 0.1, "simpo": 0.2}, seeds=2)
  assert main.main([str(one), str(two)]) == 1
  assert "the directories have 1 arms in common" in capsys.readouterr().err


@pytest.fixture
def runs(tmp_path):
  """Two runs of one seed and its prompts, with other losses."""
  directory = write(tmp_path / "s", {"dpo": 0.1, "ipo": 0.4}, seeds=1)
  return directory / "loss=dpo,seed=0", directory / "loss=ipo,seed=0"


def test_two_runs_differ_in_settings_results_and_curves(runs, capsys):
  here, there = runs
  assert main.main(["--compare", str(here), str(there)]) == 0
  text = capsys.readouterr().out
  assert '| varies.loss | "dpo" | "ipo" |' in text
  assert "The curves part at stage `rounds`, step 1: `eval_gold/reward`" in text
  one, two = compare.run(here), compare.run(there)
  gap = two.after["gold/reward"] - one.after["gold/reward"]
  (row,) = [line for line in text.splitlines() if line.startswith("| gold/reward")]
  assert f"| {gap:+.3g} | [" in row
  assert "Both were tested on the same prompts" in text
  assert "throughput" not in text


def test_a_run_never_parts_from_itself(runs, capsys):
  here, _ = runs
  assert main.main(["--compare", str(here), str(here)]) == 0
  text = capsys.readouterr().out
  assert "The curves never part" in text
  assert text.count("The same.") == 3


def test_curves_part_where_the_first_number_differs(runs, seed):
  here, there = runs
  rows = [json.loads(line) for line in (here / "metrics.jsonl").read_text().splitlines()]
  rng = np.random.default_rng(seed)
  steps = [i for i, row in enumerate(rows) if row["stage"] == "round_0"]
  first, later = sorted(rng.choice(steps, 2, replace=False))
  changed = [dict(row) for row in rows]
  changed[first]["loss"] *= 1 + 1e-6  # rounding
  changed[later]["logps/chosen"] *= 1.1
  changed[0]["throughput/tokens_per_second"] = 7.0
  (there / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
  exact, far = (compare.parts(here, there, close) for close in (0.0, compare.CLOSE))
  assert (exact.step, exact.metric) == (rows[first]["step"], "loss")
  assert (far.step, far.metric) == (rows[later]["step"], "logps/chosen")
  changed[later] = rows[later]
  (there / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
  assert compare.parts(here, there, compare.CLOSE) is None
  assert "that is rounding" in compare.text(here, there)


def test_other_prompts_are_not_paired(tmp_path):
  directory = write(tmp_path / "s", {"dpo": 0.1}, seeds=1)
  other = write(tmp_path / "t", {"dpo": 0.1}, seeds=1, text="9*9:")
  name = "loss=dpo,seed=0"
  assert "tested on the same prompts" not in compare.text(directory / name, other / name)


def test_what_is_no_finished_run_is_said(runs, tmp_path, capsys):
  here, there = runs
  assert main.main(["--compare", str(here), str(tmp_path)]) == 1
  assert "is no run" in capsys.readouterr().err
  (there / "results" / "summary.json").unlink()
  assert main.main(["--compare", str(here), str(there)]) == 1
  assert "has not finished" in capsys.readouterr().err


def test_settings_keep_their_secrets(runs, capsys):
  here, there = runs
  config = json.loads((there / "config.json").read_text())
  (there / "config.json").write_text(json.dumps({**config, "api_key": "sk-1234567890"}))
  assert main.main(["--compare", str(here), str(there)]) == 0
  text = capsys.readouterr().out
  assert "api_key" in text
  assert "sk-1234567890" not in text
