"""A supervised stage that runs share: made once, read by the others, to the same bits."""

import json

import pytest
from whole_runs import QUICK, digest, finish, start, weights

from larpo_jax import starts
from larpo_jax import workdir as workdir_lib

SHARED = [*QUICK, "--config.supervised.shared=True"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  """A run that makes the start, its cache, and what it printed."""
  cache, workdir = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("first")
  code, output = finish(start(workdir, *SHARED, cache=cache))
  assert code == 0, output
  return workdir, cache, output


def stages(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {row["stage"] for row in rows}


def without_supervised(found):
  kept = [row for row in found["metrics"] if '"stage": "supervised"' not in row]
  return {**found, "metrics": kept}


def test_a_second_run_reads_the_start_and_ends_with_the_same_bits(first, tmp_path):
  workdir, cache, said = first
  assert "done by another run" not in said
  assert "supervised" in stages(workdir)
  code, output = finish(start(tmp_path, *SHARED, cache=cache))
  assert code == 0, output
  assert "done by another run" in output
  assert "found by another run" in output
  assert "supervised" not in stages(tmp_path)
  assert digest(tmp_path) == without_supervised(digest(workdir))
  for name in ("before.json", "before.jsonl"):
    ours, theirs = ((each / "results" / name).read_bytes() for each in (tmp_path, workdir))
    assert ours == theirs


@pytest.mark.parametrize("change", ["evaluate.rows=6", "rounds.max_tokens=7"])
def test_another_question_about_a_start_is_asked_anew(change, first, tmp_path):
  workdir, cache, _ = first
  lines = lambda where: (where / "results" / "before.jsonl").read_text().splitlines()  # noqa: E731
  code, output = finish(start(tmp_path, *SHARED, f"--config.{change}", cache=cache))
  assert code == 0, output
  assert "done by another run" in output
  assert "found by another run" not in output
  assert lines(tmp_path) != lines(workdir)


@pytest.mark.parametrize(
  ("change", "shares"),
  [
    ("loss.beta=0.5", True),
    ("seed=1", False),
    ("supervised.learning_rate=1e-3", False),
  ],
)
def test_what_comes_later_does_not_matter_and_the_rest_does(change, shares, first, tmp_path):
  workdir, cache, _ = first
  code, output = finish(start(tmp_path, *SHARED, f"--config.{change}", cache=cache))
  assert code == 0, output
  assert ("done by another run" in output) == shares
  same = all((x == weights(workdir)[name]).all() for name, x in weights(tmp_path).items())
  assert not same, "the change changed nothing"


def test_of_two_that_start_together_one_waits(tmp_path):
  both = [start(tmp_path / name, *SHARED, cache=tmp_path / "cache") for name in ("a", "b")]
  ended = [finish(process) for process in both]
  assert [code for code, _ in ended] == [0, 0], ended
  said = ["done by another run" in output for _, output in ended]
  assert sorted(said) == [False, True]
  assert len(list((tmp_path / "cache" / "starts").glob("*/config.json"))) == 1


def test_another_commit_of_the_same_package_finds_the_start(started, monkeypatch):
  there, versions = starts._directory(started[0]), workdir_lib.versions()
  for name, same in (("commit", True), ("jax", False)):
    monkeypatch.setattr(workdir_lib, "versions", lambda name=name: versions | {name: "another"})
    assert (starts._directory(started[0]) == there) is same
