"""The index of runs follows the directories, whatever became of its file and whoever else asks."""

import json
import os
import pathlib
import random
import shutil
import sqlite3
import subprocess
import sys

import pytest
from synthetic_runs import make, make_many, rows, truth

from larpo_jax import workdir
from larpo_jax.runs import index, read

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def generator(seed):
  return random.Random(seed)


@pytest.fixture
def many(tmp_path, generator):
  return make_many(tmp_path / "all", generator)


def change(directory, generator):
  """Something that happens to a run."""
  found = list(read.find(directory))
  run = generator.choice(found)
  what = generator.choice(("new", "gone", "moved", "step", "done", "torn", "mended"))
  if what == "new":
    make(directory / f"new{generator.random()}", generator)
  elif what == "gone" and len(found) > 1:
    shutil.rmtree(run)
  elif what == "moved":
    run.rename(directory / f"moved{generator.random()}")
  elif what == "step":
    with (run / "metrics.jsonl").open("a") as file:
      file.write(json.dumps({"stage": "later", "step": generator.randrange(99)}) + "\n")
  elif what == "done":
    workdir.write_json(run / "results" / "summary.json", {"after": {"kl": generator.random()}})
  elif what == "torn":
    content = (run / "config.json").read_text()
    (run / "config.json").write_text(content[: generator.randrange(len(content) - 2)])
  elif what == "mended":
    workdir.write_json(run / "config.json", {"seed": 7})


def test_the_index_follows_the_directories(many, generator):
  for _ in range(30):
    for _ in range(generator.randrange(3)):
      change(many, generator)
    if generator.random() < 0.1:
      (many / index.INDEX).unlink(missing_ok=True)
    assert {row["name"]: row for row in rows(many)} == truth(many)


def test_only_what_changed_is_read(many, monkeypatch, generator):
  read_now, seen = read.read, []
  monkeypatch.setattr(read, "read", lambda run, now: (seen.append(run), read_now(run, now))[1])
  count = len(rows(many))
  assert len(seen) == count == 24
  seen.clear()
  rows(many, where=["seed=1"], sort="-seed")
  assert seen == []
  chosen = generator.sample(list(read.find(many)), 3)
  for run in chosen:
    (run / "log.txt").write_text("more")
  rows(many)
  assert sorted(seen) == sorted(chosen)


@pytest.mark.parametrize(
  "how", ["garbage", "cut", "empty", "other format", "folder", "overwritten"]
)
def test_any_index_file_will_do(many, generator, how):
  expected = truth(many)
  rows(many)
  file = many / index.INDEX
  content = file.read_bytes()
  if how == "garbage":
    file.write_bytes(generator.randbytes(5000))
  elif how == "cut":
    file.write_bytes(content[: generator.randrange(1, len(content))])
  elif how == "empty":
    file.write_bytes(b"")
  elif how == "overwritten":
    file.write_bytes(content[:100] + generator.randbytes(len(content) - 100))
  elif how == "other format":
    file.unlink()
    with sqlite3.connect(file) as connection:
      connection.execute("CREATE TABLE runs (something)")
  else:  # nothing can be written there, not even by root
    file.unlink()
    file.mkdir()
    many.chmod(0o555)
  assert {row["name"]: row for row in rows(many)} == expected
  assert {row["name"]: row for row in rows(many)} == expected
  assert file.is_dir() == (how == "folder")
  many.chmod(0o755)


def test_an_index_with_a_page_of_zeros_or_of_another_place_is_made_anew(many, generator):
  expected = truth(many)
  rows(many)
  file = many / index.INDEX
  content = file.read_bytes()
  pages = [content[place : place + 4096] for place in range(0, len(content), 4096)]
  for _ in range(12):
    broken = [*pages]
    page = generator.randrange(1, len(pages))
    broken[page] = generator.choice((bytes(4096), pages[0]))
    file.write_bytes(b"".join(broken))
    assert {row["name"]: row for row in rows(many)} == expected


def test_an_index_that_another_holds_for_long_is_done_without(many, monkeypatch):
  expected = rows(many)
  monkeypatch.setattr(index, "WAIT", 0.05)
  with sqlite3.connect(many / index.INDEX, isolation_level=None) as other:
    other.execute("BEGIN EXCLUSIVE")
    assert rows(many) == expected
    other.execute("COMMIT")


def test_two_callers_at_once_say_the_same(many, generator):
  command = [sys.executable, "-m", "larpo_jax.runs", str(many)]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  for _ in range(2):
    both = [
      subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment) for _ in range(3)
    ]
    ended = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], ended
    assert len(set(ended)) == 1
    lines = ended[0][0].splitlines()
    assert [line.split("\t")[0] for line in lines] == ["name", *sorted(truth(many))]
    for _ in range(8):
      change(many, generator)
  assert {row["name"]: row for row in rows(many)} == truth(many)
