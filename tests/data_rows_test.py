"""Bad rows are counted, named by file and line, and stop the run; files are read as they are."""

import gzip
import json
import os
import socket
import time

import datasets
import pytest
from tiny_tokenizers import conversation, make

from larpo_jax.data import dataset, problems, sources
from larpo_jax.data import tokenizer as tokenizers

PAIRS = dict(name="readers.pairs")
LISTS = dict(name="readers.lists", prompt="p", responses="c.text", scores="c.score")
FLAT = dict(name="readers.lists", prompt="p", responses="r", scores="s")
RANKS = dict(name="readers.lists", prompt="p", responses="r", rank="k")
UNPAIRED = dict(name="readers.unpaired")
PAIR = dict(prompt="good question?", chosen=" the answer", rejected=" what is it")
GOOD = {
  "readers.pairs": PAIR,
  "readers.unpaired": dict(prompt="good?", completion=" yes", label=True),
  "readers.lists": dict(
    p="good?",
    c=[dict(text=" a", score=2), dict(text=" b", score=1)],
    r=[" a", " b"],
    s=[2, 1],
    k=[0, 1],
  ),
}


def candidates(*scores, texts=None):
  return [dict(text=t, score=s) for t, s in zip(texts or "abcdef", scores)]


# kind -> reader, the row: a dict, or the bytes of its line.
BAD = {
  "broken_json": (PAIRS, b'{"prompt": "a", "chosen": '),
  "not_utf8": (PAIRS, b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}'),
  "not_object": (PAIRS, b'["a", "b"]'),
  "lone_surrogate:chosen": (PAIRS, b'{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}'),
  "missing:rejected": (PAIRS, dict(prompt="a", chosen="b")),
  "missing:c.score": (LISTS, dict(p="a", c=[dict(text="x", score=1), dict(text="y")])),
  "null:chosen": (PAIRS, PAIR | dict(chosen=None)),
  "null:label": (UNPAIRED, dict(prompt="a", completion="b", label=None)),
  "type:rejected": (PAIRS, PAIR | dict(rejected=True)),
  "type:prompt": (PAIRS, PAIR | dict(prompt=3)),
  "type:c.text": (LISTS, dict(p="a", c="not a list")),
  "type:label": (UNPAIRED, dict(prompt="a", completion="b", label=0.5)),
  "type:s": (FLAT, dict(p="a", r=["x", "y"], s=["1", "2"])),
  "type:tools": (PAIRS, PAIR | dict(tools="{not json")),
  "empty:prompt": (PAIRS, PAIR | dict(prompt="")),
  "empty:chosen": (PAIRS, PAIR | dict(chosen=" \n\t")),
  "empty:rejected": (PAIRS, PAIR | dict(rejected="")),
  "equal": (PAIRS, PAIR | dict(rejected=PAIR["chosen"])),
  "not_finite:c.score": (LISTS, dict(p="a", c=candidates(1, float("nan")))),
  "not_finite:s": (FLAT, b'{"p": "a", "r": ["x", "y"], "s": [1, 1e999]}'),
  "unequal_lengths": (FLAT, dict(p="a", r=["x", "y", "z"], s=[1, 2])),
  "one_candidate": (LISTS, dict(p="a", c=candidates(1))),
  "all_tied": (LISTS, dict(p="a", c=candidates(3, 3, 3))),
  "no_prompt": (PAIRS, dict(chosen="yes", rejected="no")),
  "messages": (PAIRS, PAIR | dict(prompt=[{"from": "human", "value": "a"}])),
  "template": (PAIRS, PAIR | dict(prompt=[{"role": "system", "content": "x"}])),
}
TEMPLATE = (
  "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
  "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer():
  return make(template=TEMPLATE)


@pytest.fixture
def build(tokenizer, tmp_path):
  def run(path, reader=PAIRS, **options):
    sizes = dict(max_prompt=64, max_response=64, cache=tmp_path / "cache")
    return dataset.build(os.fspath(path), reader=reader, tokenizer=tokenizer, **sizes | options)

  return run


def write(path, rows):
  lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
  text = b"\n".join(lines) + b"\n"
  path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
  return path


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_bad_row_stops_the_run_and_is_named_by_its_line(kind, suffix, build, tmp_path):
  reader, row = BAD[kind]
  good = GOOD[reader["name"]]
  path = write(tmp_path / f"rows{suffix}", [good, row, good])
  with pytest.raises(ValueError, match=r"1 of 3 rows .* are bad, 0 allowed") as error:
    build(path, reader)
  message = str(error.value)
  assert f"{path}:2 {kind}" in message
  assert "data.max_bad_rows=1" in message
  assert "data.skip=" in message
  data = build(path, reader, max_bad_rows=1)
  assert len(data) == 2
  assert [r["kind"] for r in data.rejected()] == [kind]
  assert data.rejected().__next__()["where"] == f"{path}:2"
  assert data.report.rejected == {kind: 1}
  assert len(build(path, reader, skip=(kind.partition(":")[0],))) == 2


def test_the_matrix_is_wide_and_every_kind_is_known():
  assert len(BAD) >= 20
  assert {kind.partition(":")[0] for kind in BAD} <= set(problems.KINDS)


def test_one_more_bad_row_than_allowed_stops(build, tmp_path):
  path = write(
    tmp_path / "rows.jsonl", [PAIR, PAIR | dict(chosen=None), PAIR | dict(chosen=""), PAIR]
  )
  with pytest.raises(ValueError, match="2 of 4 rows"):
    build(path, max_bad_rows=1)
  with pytest.raises(ValueError, match="1 of 4 rows"):
    build(path, skip=("null:chosen",))
  assert len(build(path, skip=("null:chosen",), max_bad_rows=1)) == 2


def test_a_hopeless_file_is_not_read_to_its_end(build, tmp_path):
  bad = 2 * problems.PATIENCE + dataset.ROWS_AT_A_TIME
  path = write(tmp_path / "rows.jsonl", [dict(prompt="a")] * bad)
  with pytest.raises(ValueError, match="missing:chosen") as error:
    build(path)
  assert f"of {bad} rows" not in str(error.value)


def test_nothing_left_is_an_error(build, tmp_path):
  path = write(tmp_path / "rows.jsonl", [PAIR | dict(chosen=None)])
  with pytest.raises(ValueError, match=r"no row of .* is left"):
    build(path, skip=("null",))


def test_an_unknown_kind_to_skip_lists_the_kinds(build, tmp_path):
  with pytest.raises(ValueError, match="all_tied"):
    build(write(tmp_path / "rows.jsonl", [PAIR]), skip=("all_tide",))


def test_harmless_oddities_are_read_and_noted(build, tmp_path):
  rows = [
    b"\xef\xbb\xbf" + json.dumps(PAIR).encode(),  # a byte order mark
    b"",
    b"   \r",
    json.dumps(PAIR | dict(chosen="nul \x00 inside", extra=[1, {"a": None}], id=7)).encode()
    + b"\r",
    json.dumps(PAIR | dict(id=7)).encode(),
    json.dumps(PAIR | dict(chosen="the answer <eos> is")).encode(),
  ]
  data = build(write(tmp_path / "rows.jsonl", rows))
  assert len(data) == 4
  notes = data.report.notes
  assert notes["nul_characters"] == 1
  assert notes["special_token_names"] == 1
  assert notes["duplicate_ids"] == 1
  assert notes["duplicate_rows"] == 1
  lines = sources.open(tmp_path / "rows.jsonl")
  assert [lines.where(i).rpartition(":")[2] for i in range(4)] == ["1", "4", "5", "6"]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("empty.jsonl", b"", "0 rows in .*empty.jsonl"),
    ("blank.jsonl", b"\n \n\n", "0 rows in .*blank.jsonl"),
    ("empty.jsonl.gz", gzip.compress(b"", mtime=0), "0 rows in .*empty.jsonl.gz"),
    ("cut.jsonl.gz", gzip.compress(b"{}" * 9999, mtime=0)[:-20], "broken or cut-off gzip"),
    ("plain.jsonl.gz", b'{"a": 1}\n', "broken or cut-off gzip"),
    ("array.json", b'[{"a": 1}]', "one JSON array"),
    ("wide.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16"),
    ("rows.pickle", b"\x80\x04.", "no kind that can be read"),
    ("rows.parquet", b"PAR1 not really", "cannot be read as parquet"),
  ],
)
def test_unreadable_files_are_named(name, content, message, tmp_path):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    sources.open(path)


def test_missing_files_and_splits_are_named(tmp_path):
  write(tmp_path / "train.jsonl", [PAIR])
  write(tmp_path / "test-00000.jsonl", [PAIR])
  with pytest.raises(FileNotFoundError, match="no such file"):
    sources.open(tmp_path / "none.jsonl")
  with pytest.raises(FileNotFoundError, match="no file matches"):
    sources.open(f"{tmp_path}/*.ndjson")
  with pytest.raises(ValueError, match="test, train"):
    sources.open(tmp_path, "validation")
  assert len(sources.open(tmp_path, "train")) == len(sources.open(tmp_path, "test")) == 1
  assert len(sources.open(f"{tmp_path}/*.jsonl")) == 2
  both = sources.open([f"{tmp_path}/train.jsonl", f"{tmp_path}/test-00000.jsonl"])
  assert both.where(1) == f"{tmp_path}/test-00000.jsonl:1"


def test_tables_and_lines_hold_the_same_rows(build, tmp_path):
  rows = [PAIR, dict(prompt="another?", chosen=" yes", rejected=" no")]
  lines = build(write(tmp_path / "rows.jsonl", rows))
  table = datasets.Dataset.from_list(rows)
  table.to_parquet(tmp_path / "rows.parquet")
  table.to_csv(tmp_path / "rows.csv")
  table.save_to_disk(tmp_path / "saved")
  for name in ("rows.parquet", "rows.csv", "saved"):
    assert bytes(build(tmp_path / name).digests) == bytes(lines.digests), name


def test_entries_that_a_table_fills_in_are_no_part_of_a_turn(build, tmp_path):
  turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "x", "name": "a"}]
  row = dict(prompt=turns[:1], chosen=turns[1:], rejected=conversation("", "bad")[1:])
  datasets.Dataset.from_list([row]).to_parquet(tmp_path / "rows.parquet")
  path = write(tmp_path / "rows.jsonl", [row])
  assert bytes(build(tmp_path / "rows.parquet").digests) == bytes(build(path).digests)


def test_local_paths_never_touch_the_network(tokenizer, tmp_path, monkeypatch):
  tokenizer.save_pretrained(tmp_path / "tokenizer")
  write(tmp_path / "rows.jsonl", [PAIR])
  datasets.Dataset.from_list([PAIR]).to_parquet(tmp_path / "rows.parquet")
  calls = []

  def refuse(*args, **kwargs):
    calls.append(args)
    raise OSError("blocked")

  for target, name in ((socket.socket, "connect"), (socket, "create_connection")):
    monkeypatch.setattr(target, name, refuse)
  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  for name in ("rows.jsonl", "rows.parquet"):
    assert len(sources.open(tmp_path / name)) == 1
  assert tokenizers.load(tmp_path / "tokenizer").eos_token == "<eos>"
  assert not calls


def test_a_hub_id_without_network_fails_at_once_with_the_remedy(monkeypatch):
  def refuse(*args, **kwargs):
    raise OSError("no network")

  def hang(*args, **kwargs):
    time.sleep(30)
    refuse()

  for blocked in (hang, refuse):
    monkeypatch.setattr(socket, "create_connection", blocked)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
      monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE=1"):
      sources.open("somebody/preferences", "train")
    assert time.monotonic() - started < 2
