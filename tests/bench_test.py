"""The benchmark's side of ours trains what its peers do, and its table says who is where."""

import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
STEPS = 3


def result(seconds=1.0, **others):
  timing = {name: seconds for name in ("median_s", "best_s", "own_cpu_median_s")}
  return {"timing": timing, "peak_rss_mib": 100.0, "share_of_peak": 0.5, **others}


@pytest.fixture
def scripts(monkeypatch):
  monkeypatch.syspath_prepend(SCRIPTS)
  import bench_table
  import bench_train

  return bench_train, bench_table


@pytest.fixture
def by_hand(shared_bench, torch_peer):
  """The losses of a step that was written for PyTorch by someone else, on the same work."""
  options = "--layout concat --head full --ref cached --warmup 0 --threads 1 --steps"
  found = subprocess.run(
    [sys.executable, "bench_torch.py", "specs/tiny.json", *options.split(), str(STEPS)],
    cwd=shared_bench,
    env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert found.stdout.strip(), found.stderr
  return json.loads(found.stdout.splitlines()[-1])["losses"]


def train(bench_train, shared_bench, capsys, *options):
  steps = ("--warmup", "1", "--steps", str(STEPS - 1), "--devices", "1")
  bench_train.main(["tiny", "--bench", str(shared_bench), *steps, *options])
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_way_to_train_has_the_losses_of_a_step_by_hand(
  scripts, shared_bench, by_hand, capsys
):
  for way in ((), ("--reference", "live"), ("--layout", "rows")):
    found = train(scripts[0], shared_bench, capsys, *way)
    np.testing.assert_allclose(found["losses"], by_hand, rtol=0, atol=1e-4, err_msg=str(way))
    assert found["compilations"]["loop"] <= 2  # the room of each of the two batches
    assert found["timing"]["steps"] == STEPS - 1


def test_what_it_lacks_is_said(scripts, tmp_path):
  with pytest.raises(SystemExit, match="--bench DIR or LARPO_BENCH"):
    scripts[0].main(["tiny", "--bench", str(tmp_path)])
  with pytest.raises(SystemExit, match="reads a reference"):
    scripts[0].main(["tiny", "--bench", str(tmp_path), "--reference", "none"])


@pytest.mark.parametrize(("off", "code"), [(0.0, 0), (3e-4, 1)])
def test_the_table_has_ratios_and_refuses_other_losses(scripts, tmp_path, capsys, off, code):
  path = tmp_path / "results.jsonl"
  peer = result(5.0, losses=[0.5, 0.25], pairs_per_s=1.0)
  ours = result(1.0, losses=[0.5] * 10 + [0.25 + off] * 10, responses_per_s=12.0)
  rows = [
    ("default", "peer", 1, peer),
    ("default", "ours", 1, ours),
    ("default", "peer", 2, {**peer, **result(3.0)}),
    ("default", "ours", 2, ours),
    ("fp32_nogc_precompute", "peer", 1, {**peer, "peak_rss_mib": 400.0}),
    ("fp32_nogc_precompute", "ours", 1, ours),
    ("growth/layers/lists", "2", 1, ours),
    ("growth/layers/lists", "4", 1, ours),
  ]
  keys = ("against", "side", "round", "result")
  text = [json.dumps({"job": "h256_v8k", **dict(zip(keys, row))}) for row in rows]
  path.write_text("\n".join(text) + "\n")
  assert scripts[1].main([str(path)]) == code
  printed = capsys.readouterr().out
  assert "4.00x (3.00..5.00), at least 4x |" in printed
  assert "5.00x, at least 5.3x MISSED" in printed
  assert "0.25x, at most 0.45x |" in printed
  assert ("DIFFER" in printed) == bool(code)
  assert path.with_suffix(".png").stat().st_size > 1000
