"""The list of runs says what the directories say, whatever became of the index or of a run."""

import csv
import io
import json
import pathlib
import random
import time

import pytest
from rich.console import Console
from synthetic_runs import make, make_many, rows, truth

from experiments import common
from larpo_jax import workdir, writers
from larpo_jax.runs import __main__ as runs
from larpo_jax.runs import read


@pytest.fixture
def generator(seed):
  return random.Random(seed)


@pytest.fixture
def many(tmp_path, generator):
  return make_many(tmp_path / "all", generator)


def test_what_the_library_writes_is_what_is_listed(tmp_path):
  """One directory at every point of its life, by the library's own hand."""
  run, config = tmp_path / "sweep" / "loss=dpo,seed=0", common.base()

  def now():
    (row,) = rows(tmp_path)
    return row

  with workdir.claim(run):
    workdir.record_run(run, config)
    assert now()["state"] == "running"
    writer = writers.Writer(run)
    for step in (1, 2):
      writer.write(step, {"loss": 1.0}, stage="align")
    assert (now()["stage"], now()["step"]) == ("align", 2)
    writer.close()
  assert now()["state"] == "stopped"
  (run / "error.txt").write_text("Traceback ...\nValueError: no such data\n")
  assert (now()["state"], now()["problem"]) == ("failed", "ValueError: no such data")
  time.sleep(0.02)
  with workdir.claim(run):
    assert now()["state"] == "running"
  assert now()["state"] == "stopped", "the error was of an earlier try"
  summary = {"before": {"kl": 0.0}, "after": {"kl": 0.25}, "cost": {"seconds": 7.0}}
  (run / "results").mkdir()
  workdir.write_json(run / "results" / "summary.json", summary)
  row = now()
  assert (row["state"], row["after/kl"], row["seconds"], row["before/kl"]) == ("done", 0.25, 7, 0)
  assert row["name"] == "sweep/loss=dpo,seed=0"
  assert (row["loss.name"], row["rounds"], row["export"]) == ("pairwise.dpo", "none", "true")
  assert row["started"] <= row["finished"] <= time.strftime("%F %T")
  assert row["hardware"].endswith("x cpu")
  versions = json.loads((run / "versions.json").read_text())
  assert versions["commit"].startswith(row["code"].split("+")[0])


@pytest.mark.parametrize(
  ("said", "state"),
  [
    ("larpo_jax: error: the disk is full\n(details in x)\n", "failed"),
    (
      "Traceback (most recent call last):\n  File\njaxlib.XlaRuntimeError: out of memory\n",
      "failed",
    ),
    ("larpo_jax: stopped in align at step 3 of 9; the same command resumes\n", "stopped"),
    ("larpo_jax: error: once\nstep 1\nstep 2\nstep 3\nstep 4\n", "stopped"),
  ],
)
def test_a_log_tells_what_failed(tmp_path, generator, said, state):
  make(tmp_path / "run", generator, done=False)
  time.sleep(0.02)
  (tmp_path / "run" / "log.txt").write_text(said)
  (row,) = rows(tmp_path)
  assert row["state"] == state
  assert ("problem" in row) == (state == "failed")
  (tmp_path / "refused").mkdir()  # a job that never came so far as to claim its directory
  (tmp_path / "refused" / "log.txt").write_text(said)
  assert rows(tmp_path, where=["name=refused"])[0]["state"] == state


def test_models_and_folders_are_no_runs(tmp_path, generator):
  make(tmp_path / "run" / "x", generator)
  for name in ("checkpoint", "run/x/export"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
  (tmp_path / "log.txt").write_text("a log of what lies below")
  (tmp_path / "run" / "back").symlink_to(tmp_path)
  assert [row["name"] for row in rows(tmp_path)] == ["run/x"]
  assert [row["name"] for row in rows(tmp_path / "run" / "x")] == ["."]


OPERATORS = {
  "=": lambda a, b: a == b,
  "!=": lambda a, b: a != b,
  "<": lambda a, b: a < b,
  ">": lambda a, b: a > b,
  "<=": lambda a, b: a <= b,
  ">=": lambda a, b: a >= b,
}


def test_filters_are_what_they_say(many, generator):
  every = truth(many).values()
  for _ in range(60):
    column = generator.choice(("seed", "loss.beta", "loss.name", "after/gold/reward", "after/kl",
                               "export", "name", "started", "cost/steps", "rounds"))  # fmt: skip
    value = generator.choice([row[column] for row in every if column in row])
    sign = generator.choice(list(OPERATORS))
    expected = {
      row["name"]
      for row in every
      if (
        OPERATORS[sign](row[column], value)
        if column in row and isinstance(row[column], str) == isinstance(value, str)
        else sign == "!="
      )
    }
    found = rows(many, where=[f"{column}{sign}{value}"])
    assert {row["name"] for row in found} == expected, (column, sign, value)
    both = rows(many, where=[f"{column}{sign}{value}", "state=done"])
    assert {r["name"] for r in both} == expected & {
      r["name"] for r in every if r["state"] == "done"
    }
  assert {row["name"] for row in rows(many, where=["name~B/C/"])} == {
    row["name"] for row in every if row["name"].startswith("b/c/")
  }
  assert rows(many, where=["export==True"]) == rows(many, where=["export = true"])


def test_sorting_puts_what_is_no_number_last(many):
  every = truth(many).values()
  for sign, reverse in (("", False), ("-", True)):
    found = rows(many, sort=f"{sign}after/kl")
    values = [row.get("after/kl", "missing") for row in found]
    numbers = [value for value in values if not isinstance(value, str)]
    assert numbers == sorted(numbers, reverse=reverse)
    count = sum(row.get("after/kl") == "nan" for row in every)
    missing = sum("after/kl" not in row for row in every)
    assert values == [*numbers, *["nan"] * count, *["missing"] * missing]
    assert rows(many, sort=f"{sign}after/kl", limit=5) == found[:5]


NASTY = (
  "x' OR 1=1 --",
  'x"; DROP TABLE cells; --',
  "%",
  "?",
  ":a",
  "x') OR ('1",
  "\\",
  "né\x00\tx",
)


@pytest.mark.parametrize("nasty", NASTY)
def test_what_is_typed_is_never_sql(many, generator, nasty):
  before = rows(many)
  assert rows(many, where=[f"loss.name={nasty}"]) == []
  assert len(rows(many, where=[f"loss.name!={nasty}"])) == len(before)
  for sign in ("<", ">=", "~"):
    assert len(rows(many, where=[f"loss.name{sign}{nasty}"])) in range(len(before) + 1)
  for how in ({"where": [f"{nasty}~1"]}, {"sort": nasty}, {"columns": [f"{nasty}x"]}):
    with pytest.raises(ValueError, match=r"no run has a column|must be a column"):
      rows(many, **how)
  assert rows(many) == before
  make(many / "nasty", generator, nasty={nasty.replace("=", ""): nasty})
  (found,) = rows(many, where=[f"nasty.{nasty.replace('=', '')}={nasty}"])
  assert found["name"] == "nasty"


def torn(content, generator):
  """A prefix, or bytes at random, or JSON that is none of ours."""
  depth = generator.choice((10**5, generator.randrange(100, 2000)))
  return generator.choice(
    [
      content[: generator.randrange(len(content))],
      generator.randbytes(generator.randrange(1, 50)),
      b"[" * depth + b"]" * depth + b"\n",
      b'{"a": ' * depth + b"1" + b"}" * depth + b"\n",
      b'{"before": 3, "devices": {}, "commit": [], "host": 1, "stage": {}, "step": "x"}\n',
      b'{"after": {"n": 123456789012345678901234567890, "\\ud800": NaN}, "a": "\\udfff"}\n',
      b"null\n",
    ]
  )


@pytest.mark.parametrize(
  "name", [n for n in read.FILES if n.endswith((".json", ".jsonl", ".lock"))]
)
def test_a_broken_run_is_listed_and_stops_nothing(many, generator, name):
  others = truth(many)
  for number in range(12):
    run = make(many / f"broken{number}", generator)
    (run / name).write_bytes(torn((run / name).read_bytes(), generator))
  found = {row["name"]: row for row in rows(many)}
  assert found == others | truth(many)
  assert len(found) == len(others) + 12
  run = make(many / "cut", generator)
  if name != ".lock":
    (run / name).write_bytes(b'{"stage": "ali\n')
    (row,) = rows(many, where=["name=cut"])
    assert row["state"] == "broken"
    assert name.split("/")[-1] in row["problem"]
  json.dumps(rows(many, where=["name=cut"]), allow_nan=False)


def test_a_config_is_data(tmp_path, generator):
  run = make(tmp_path / "run", generator)
  (run / "config.json").write_text("__import__('pathlib').Path('ran').touch()")
  (run / "config.py").write_text("raise SystemExit('ran')")
  assert rows(tmp_path)[0]["state"] == "broken"
  assert not pathlib.Path("ran").exists()


def test_columns_are_what_tells_runs_apart(tmp_path, generator):
  for number in range(4):
    make(tmp_path / str(number), generator, seed=number, same=3, deep={"er": number % 2})
  columns = runs.listed(tmp_path)[1]
  assert columns[:2] == ["name", "state"]
  assert {"seed", "deep.er", "after/gold/reward", "seconds"} <= set(columns)
  assert not {"same", "stage", "before/gold/reward", "rounds"} & set(columns)
  assert runs.listed(tmp_path, columns=["seed", "after/*"])[1] == [
    "seed", "after/gold/reward", "after/kl",
  ]  # fmt: skip
  assert "deep.er" not in runs.listed(tmp_path, where=["deep.er=1"])[1]
  make(tmp_path / "5", generator, done=False)
  assert {"stage", "step"} <= set(runs.listed(tmp_path)[1])


def test_a_pipe_gets_tabs_a_file_commas_and_a_terminal_a_table(many, generator, tmp_path, capsys):
  make(many / "evil", generator, note="\x1b[2J[red]\t\nx")
  assert runs.main([str(many), "--csv", str(tmp_path / "all.csv"), "--sort", "-after/kl"]) == 0
  header, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
  found = rows(many, sort="-after/kl")
  assert [line[0] for line in lines] == [row["name"] for row in found]
  assert {len(line) for line in [header, *lines]} == {len(header)}
  with (tmp_path / "all.csv").open(newline="") as file:
    written = list(csv.DictReader(file))
  for row, line in zip(found, written, strict=True):
    assert {key: value for key, value in line.items() if value != ""} == {
      key: str(value) for key, value in row.items() if value != ""
    }
  for width in (60, 200):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, record=True)
    columns = runs.fitting(found, runs.listed(many)[1], width)
    console.print(runs.table(found, columns))
    shown = console.file.getvalue()
    assert "\x1b[2J" not in shown
    assert all(len(line) <= width for line in console.export_text().splitlines())
  drawn = Console(width=80, record=True, file=io.StringIO())
  drawn.print(runs.table(rows(many, where=["name=evil"]), ["name", "note"]))
  assert "[2J[red]  x" in drawn.export_text()


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["--where", "learning_rate<1"], "near it: optimizer.learning_rate"),
    (["--where", "loss.nme=x"], "loss.name"),
    (["--sort", "-gold/reward"], "after/gold/reward"),
    (["--columns", "name,sed"], "near it: seed"),
    (["--where", "loss.name"], "must be a column, an operator"),
    (["--csv", "/nowhere/file.csv"], "No such file"),
  ],
)
def test_mistakes_are_said_in_a_sentence(many, words, said, capsys):
  assert runs.main([str(many), *words]) == 1
  error = capsys.readouterr().err
  assert said in error
  assert error.count("\n") == 1
  assert runs.main([str(many / "absent"), *words]) == 1
  assert "is no directory" in capsys.readouterr().err
  (many / "empty").mkdir()
  assert runs.main([str(many / "empty")]) == 0
  assert "no such run" in capsys.readouterr().err
