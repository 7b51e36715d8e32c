"""The prepared data on disk, and real data sets from end to end."""

import concurrent.futures
import io
import json

import numpy as np
import pytest
from rich.console import Console
from tiny_tokenizers import conversation, make

from larpo_jax import inspect
from larpo_jax.data import dataset, readers, sources, store
from larpo_jax.data.problems import BadRow

PAIRS = dict(name="readers.pairs")
SIZES = dict(max_prompt=64, max_response=64)
# Reader, and the rows that it is right to leave out: (train, test) rows kept.
SETS = {
  "oasst_ranked": (
    dict(
      name="readers.lists", prompt="messages", responses="candidates.text", rank="candidates.rank"
    ),
    (),
    (161, 28),
  ),
  "fg_qa_feedback": (
    dict(
      name="readers.lists",
      prompt="question",
      responses="candidates.text",
      scores="candidates.score",
    ),
    ("all_tied",),
    (354, 77),
  ),
  "vicuna80_listwise": (
    dict(
      name="readers.lists", prompt="prompt", responses="candidates.text", scores="candidates.score"
    ),
    (),
    (59, 8),
  ),
  "hh_rlhf_harmless": (PAIRS, (), (1825, 234)),
  # Ties have null answers, some answers are empty, and six are JSON's true where "True" was meant.
  "pandalm_pairs": (
    dict(name="readers.pairs", prompt="{instruction}\n{input}"),
    ("null:chosen", "empty", "type:chosen", "type:rejected"),
    (669, 99),
  ),
}


def test_a_verdict_names_the_chosen_answer_and_the_letters_are_evenly_used(seed):
  draw = np.random.default_rng(seed)
  named = []
  for _ in range(200):
    row = dict(prompt=f"q {draw.random()}?", chosen=f"{draw.random()}", rejected="it is {not}")
    found = readers.verdicts(row)
    assert found.responses == ["A", "B"]
    assert sorted(found.labels) == [0.0, 1.0]
    letter = found.responses[found.labels.index(1.0)]
    assert f"{letter}: {row['chosen']}\n" in found.prompt
    assert found.prompt.count("it is {not}") == found.prompt.count(row["prompt"]) == 1
    named.append(letter)
    assert readers.verdicts(row) == found
  assert 50 < named.count("A") < 150
  for wrong, kind in ((dict(rejected=row["chosen"]), "equal"), (dict(chosen=None), "null:chosen")):
    with pytest.raises(BadRow, match=kind):
      readers.verdicts(row | wrong)
  with pytest.raises(BadRow, match="type:prompt"):
    readers.verdicts(row | dict(prompt=[dict(role="user", content="a")]))


@pytest.fixture(scope="module")
def tokenizer():
  return make()


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def pairs(count, seed=0):
  rng = np.random.default_rng(seed)
  texts = lambda: "".join(rng.choice([*"abc "], 20)) + "!"  # noqa: E731
  return [
    dict(prompt=f"{i} {texts()}\n", chosen=texts() + "1", rejected=texts()) for i in range(count)
  ]


@pytest.mark.parametrize("name", SETS)
def test_real_sets_are_read_whole(name, tokenizer, shared_data, tmp_path):
  reader, skip, kept = SETS[name]
  built = {}
  for split, count in zip(("train", "test"), kept):
    if split == "train" and count > 1000:
      continue  # the same code, ten times as many rows
    data = dataset.build(
      shared_data / name,
      split=split,
      reader=reader,
      tokenizer=tokenizer,
      candidates=8,
      skip=skip,
      cache=tmp_path,
      max_prompt=512,
      max_response=64,
    )
    built[split] = data
    dropped = data.report.rejected["equal_after_truncation"]
    assert len(data) + dropped == count
    assert data.report.bad(skip).total() == 0
    for batch in dataset.batches(data, batch_size=4, shuffle=False, epochs=1):
      real = batch.weight > 0
      assert (batch.response_mask.sum(-1) > 0)[batch.valid].all()
      assert (batch.valid.sum(-1)[real] >= 2).all()
      assert all(len(set(row[ok])) > 1 for row, ok in zip(batch.label[real], batch.valid[real]))
  if len(built) == 2:
    assert store.overlap(built["train"], built["test"]) == 0


def test_labels_follow_scores_and_ranks(tokenizer, shared_data, tmp_path):
  for name in ("oasst_ranked", "fg_qa_feedback"):
    reader, skip, _ = SETS[name]
    data = dataset.build(
      shared_data / name, split="test", reader=reader, tokenizer=tokenizer, skip=skip,
      cache=tmp_path, max_prompt=512, max_response=2048,
    )  # fmt: skip
    rows = sources.open(shared_data / name, "test")
    for index in range(len(data)):
      found = rows[int(data.sources[index])]["candidates"]
      best = data[index].responses[int(np.argmax(data[index].labels))]
      top = min(found, key=lambda c: c["rank"]) if "rank" in found[0] else max(found, key=_score)
      assert tokenizer.decode(best).removesuffix("<eos>").strip() == top["text"].strip()


def _score(candidate):
  return candidate["score"]


def test_prompts_without_one_are_what_the_answers_share():
  turns = conversation("q", "a", "q2")
  good, bad = turns + conversation("", "good")[1:], turns + conversation("", "bad")[1:]
  found = readers.pairs(dict(chosen=good, rejected=bad))
  assert (found.prompt, found.responses) == (turns, [good[3:], bad[3:]])
  # Beside a plain prompt that the conversations hold already, as many public sets have it.
  assert readers.pairs(dict(prompt="q", chosen=good, rejected=bad)).prompt == turns
  assert readers.pairs(dict(prompt="q", chosen=good[3:], rejected=bad[3:])).prompt == "q"
  text = readers.pairs(dict(chosen="Q: a A: it is", rejected="Q: a A: no"))
  assert text == readers.Example("Q: a A:", [" it is", " no"], [1.0, 0.0], ranked=True)


def test_implicit_prompts_are_those_of_trl(trl_peer, seed):
  from trl.data_utils import extract_prompt

  rng = np.random.default_rng(seed)
  for _ in range(50):
    shared = "x" + "".join(rng.choice([*"ab  "], 8))
    chosen, rejected = (f"{shared}{end}{rng.choice([*'ab '])}" for end in ("c", "d"))
    mine, theirs = (
      readers.pairs(dict(chosen=chosen, rejected=rejected)),
      extract_prompt(dict(chosen=chosen, rejected=rejected)),
    )
    assert mine.prompt == theirs["prompt"]
    assert mine.responses == [theirs["chosen"], theirs["rejected"]]


def test_labels_of_unpaired_rows():
  row = dict(prompt="p", completion="c")
  for value, label in ((True, 1.0), (False, -1.0), (1, 1.0), (-1.0, -1.0)):
    assert readers.unpaired(row | dict(label=value)).labels == [label]


def test_the_cache_answers_to_everything_that_matters(tokenizer, tmp_path):
  path = write(tmp_path / "rows.jsonl", pairs(5))
  options = dict(reader=PAIRS, tokenizer=tokenizer, cache=tmp_path / "cache", **SIZES)
  first = dataset.build(path, **options)
  before = {f: f.stat().st_mtime_ns for f in first.directory.iterdir()}
  moved = write(tmp_path / "renamed.jsonl", pairs(5))
  again = dataset.build(moved, **options)
  assert again.directory == first.directory
  assert again.report.source == str(moved)
  assert {f: f.stat().st_mtime_ns for f in first.directory.iterdir()} == before
  others = [
    dict(max_prompt=63),
    dict(overlong="drop"),
    dict(eos=False),
    dict(reader=dict(name="readers.pairs", chosen="rejected", rejected="chosen")),
    dict(tokenizer=make(extra=("<more>",))),
    dict(tokenizer=make(template="{{ messages }}")),
  ]
  found = {dataset.build(path, **options | other).directory for other in others}
  write(path, pairs(5, seed=1))
  found |= {first.directory, dataset.build(path, **options).directory}
  assert len(found) == len(others) + 2


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "meta"])
def test_a_damaged_cache_is_made_again(damage, tokenizer, tmp_path, seed):
  path = write(tmp_path / "rows.jsonl", pairs(5))
  options = dict(reader=PAIRS, tokenizer=tokenizer, cache=tmp_path / "cache", **SIZES)
  first = dataset.build(path, **options)
  sound = bytes(first.digests)
  rng = np.random.default_rng(seed)
  victim = first.directory / (
    "meta.json" if damage == "meta" else f"{rng.choice([*store.ARRAYS])}.bin"
  )
  content = bytearray(victim.read_bytes())
  content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  if damage == "gone":
    victim.unlink()
  else:
    victim.write_bytes(content[:-1] if damage in ("cut", "meta") else content)
  again = dataset.build(path, **options)
  assert bytes(again.digests) == sound
  assert all(a.tolist() == b.tolist() for i in range(5) for a, b in zip(again[i][1], again[i][1]))
  assert list(first.directory.parent.glob("*.corrupt"))


def _build(arguments):
  path, cache = arguments
  data = dataset.build(path, reader=PAIRS, tokenizer=make(), cache=cache, **SIZES)
  return bytes(data.digests)


def test_many_may_build_at_once(tmp_path):
  path = write(tmp_path / "rows.jsonl", pairs(300))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    digests = list(pool.map(_build, [(path, tmp_path / "cache")] * 4))
  assert len(set(digests)) == 1
  assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_nothing_half_done_is_left_behind(tokenizer, tmp_path, monkeypatch):
  path = write(tmp_path / "rows.jsonl", pairs(5))
  options = dict(reader=PAIRS, tokenizer=tokenizer, cache=tmp_path / "cache", **SIZES)

  def fail(*args, **kwargs):
    raise OSError("disk full")

  monkeypatch.setattr(store.Writer, "add", fail)
  with pytest.raises(OSError, match="disk full"):
    dataset.build(path, **options)
  assert not list((tmp_path / "cache" / "tokens").iterdir())
  monkeypatch.undo()
  assert len(dataset.build(path, **options)) == 5


def test_prompts_that_merge_everywhere_stop_the_run(tokenizer, tmp_path):
  row = dict(prompt="what is the que", chosen="stion", rejected="stion!")
  path = write(tmp_path / "rows.jsonl", [row])
  options = dict(reader=PAIRS, tokenizer=tokenizer, cache=tmp_path / "cache", **SIZES)
  with pytest.raises(ValueError, match="100% of the rows"):
    dataset.build(path, **options)
  assert dataset.build(path, max_merged=1.0, **options).report.notes["merged"] == 1
  assert dataset.build(path, boundary="apart", **options).report.notes["merged"] == 0


def test_a_function_is_a_reader_too(tokenizer, tmp_path):
  path = write(tmp_path / "rows.jsonl", [dict(x="good?\n", y=["a", "b"])])
  reader = lambda row: readers.Example(row["x"], row["y"], [1.0, 0.0])  # noqa: E731
  assert len(dataset.build(path, reader=reader, tokenizer=tokenizer, cache=tmp_path, **SIZES)) == 1
  with pytest.raises(ValueError, match="needs one of scores"):
    dataset.build(
      path, reader=dict(name="readers.lists", prompt="x", responses="y"), tokenizer=tokenizer,
      cache=tmp_path, **SIZES,
    )  # fmt: skip


def test_inspect_shows_what_is_trained_on(tokenizer, tmp_path):
  tokenizer.save_pretrained(tmp_path / "model")
  rows = [*pairs(6), dict(prompt="", chosen="a", rejected="b")]
  write(tmp_path / "rows.jsonl", rows)
  config = dict(
    model=dict(path=str(tmp_path / "model")),
    tokenizer=dict(path="", chat_template=""),
    data=dict(
      train=dict(path=str(tmp_path / "rows.jsonl"), split=None), test=dict(path=""), reader=PAIRS,
      max_bad_rows=1, batch_size=4, cache=str(tmp_path / "cache"), max_prompt=8, max_response=8,
    ),
  )  # fmt: skip
  out = io.StringIO()
  inspect.run(
    config, Console(file=out, width=200, force_terminal=True, color_system="standard"), rows=2
  )
  text = out.getvalue()
  assert "\x1b[30;42m" in text  # trained on, in green
  for words in (
    "prompt tokens",
    "response tokens",
    "6 of 7 rows kept",
    "empty:prompt",
    "rows.jsonl:7",
  ):
    assert words in text, words
  with pytest.raises(ValueError, match=r"data\.test\.path is empty"):
    inspect.run(config, Console(file=out), which="test")
