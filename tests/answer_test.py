"""Answers to benchmarks' prompts: the files their judges read, resumed, and those of PyTorch."""

import json

import numpy as np
import pytest
import tiny_answers

from larpo_jax import pretrained
from larpo_jax.answer import __main__ as command
from larpo_jax.answer import alpaca_eval, arena_hard, mixeval, sampled

LIMIT = 12  # tokens of an answer


@pytest.fixture(scope="module")
def directory(tmp_path_factory, module_seed):
  return tiny_answers.make(tmp_path_factory.mktemp("model") / "tiny", module_seed)


@pytest.fixture(scope="module")
def loaded(directory):
  return pretrained.load(directory)


@pytest.fixture(scope="module")
def instructions(module_seed):
  rng = np.random.default_rng(module_seed)
  lengths = rng.integers(1, 70, 20)  # three batches on the eight devices of the tests
  return ["".join(rng.choice(list("abc "), n)) + f"{at}?" for at, n in enumerate(lengths)]


def ask(directory, prompts, output, *more, form="alpaca_eval"):
  """Exit code of the command on prompts, a value that becomes the file."""
  path = output.parent / "prompts.json"
  path.write_text(prompts if isinstance(prompts, str) else json.dumps(prompts))
  words = ["--model", directory, "--prompts", path, "--format", form, "--output", output]
  return command.main([*map(str, words), "--max_tokens", str(LIMIT), *more])


def entries(instructions):
  return [
    {"instruction": text, "dataset": "made", "output": "x", "generator": "y"}
    for text in instructions
  ]


def drawn(loaded, texts, tmp_path, name="partial", *, batch_size=3, chat=True, **how):
  prompts = sampled.encoded(loaded, texts, max_tokens=LIMIT, chat=chat)
  how = dict(seed=0, max_tokens=LIMIT, temperature=1.0, top_k=0, top_p=1.0) | how
  return sampled.answers(loaded, prompts, tmp_path / name, batch_size=batch_size, chat=chat, **how)


def test_alpaca_eval_reads_what_is_written(directory, instructions, tmp_path):
  output = tmp_path / "made" / "model_outputs.json"
  output.parent.mkdir()
  assert ask(directory, entries(instructions), output, "--batch_size", "4") == 0
  rows = json.loads(output.read_text())
  assert [row["instruction"] for row in rows] == instructions
  assert {tuple(sorted(row)) for row in rows} == {("dataset", "generator", "instruction", "output")}
  assert {(row["generator"], row["dataset"]) for row in rows} == {("tiny", "made")}
  assert all(row["output"] == row["output"].strip() for row in rows)
  assert not list(output.parent.glob("*.partial"))
  # What is written can be read again as an evaluation set, as the baseline's outputs are.
  assert [question.text for question in alpaca_eval.read(output)] == instructions


def test_arena_hard_v2_finds_its_answers(directory, instructions, tmp_path):
  """As gen_judgment.py looks for them: the last message's answer, by uid, in MODEL.jsonl."""
  asked = [{"uid": f"u{n}", "category": "hard", "prompt": p} for n, p in enumerate(instructions)]
  output = tmp_path / "mine.jsonl"
  lines = "".join(json.dumps(row) + "\n" for row in asked)
  assert ask(directory, lines, output, form="arena_hard") == 0
  answers = {row["uid"]: row for row in map(json.loads, output.read_text().splitlines())}
  assert list(answers) == [row["uid"] for row in asked]
  assert {row["model"] for row in answers.values()} == {"mine"}
  for question in asked:
    first, last = answers[question["uid"]]["messages"]
    assert first == {"role": "user", "content": question["prompt"]}
    assert isinstance(last["content"]["answer"], str)
    assert last["role"] == "assistant"
  assert len({row["ans_id"] for row in answers.values()}) == len(asked)
  assert ask(directory, lines, tmp_path / "other.jsonl", "--name", "mine", form="arena_hard") == 1


def test_arena_hard_v1_is_answered_in_its_own_form(instructions, tmp_path):
  asked = [
    {"question_id": str(n), "category": "x", "turns": [{"content": text}]}
    for n, text in enumerate(instructions)
  ]
  path = tmp_path / "question.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in asked))
  texts = [f"{text}!" for text in instructions]
  rows = arena_hard.write(arena_hard.read(path), texts, "mine").splitlines()
  for question, text, row in zip(asked, texts, map(json.loads, rows), strict=True):
    assert row.pop("answer_id")
    choice = {"index": 0, "turns": [{"content": text}]}
    known = {"question_id": question["question_id"], "model_id": "mine"}
    assert row == {**known, "choices": [choice]}


FREE = {
  "problem_type": "free-form",
  "context": None,
  "prompt": "What does a manometer measure?",
  "target": ["pressure"],
  "benchmark_name": "TriviaQA",
}
CHOICE = {
  "problem_type": "single-choice",
  "context": "magazine",
  "prompt": "Which solution is correct?",
  "options": ["mop", "jar"],
  "target": [0],
  "benchmark_name": "PIQA",
}


@pytest.mark.parametrize(
  ("entry", "formatted"),
  [
    (FREE, "Question: What does a manometer measure?\nAnswer the question shortly."),
    (
      CHOICE,
      "magazine\nWhich solution is correct?\nA. mop\nB. jar\n"
      "Answer with the option letter from the given choices directly.",
    ),
    (
      FREE | {"context": "Given.", "benchmark_name": "MATH", "prompt": "How much?"},
      "Question: Given.\nHow much?\nAnswer the question. \nLet's think step by step.",
    ),
  ],
)
def test_mixeval_keeps_entries_and_adds_what_was_asked(entry, formatted, tmp_path):
  """The prompts are the examples of the benchmark's docs/how_to_use_your_own_eval_code.md."""
  path = tmp_path / "entries.json"
  path.write_text(json.dumps({"7": entry}))
  [question] = asked = mixeval.read(path)
  assert question.text == formatted
  [line] = mixeval.write(asked, ["well"], "mine").splitlines()
  assert json.loads(line) == entry | {"id": "7", "formated_input": formatted, "response": "well"}


@pytest.mark.parametrize("chat", [True, False])
def test_greedy_answers_are_those_of_transformers(
  directory, loaded, instructions, tmp_path, torch_peer, chat
):
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
  asked = instructions[:6]
  found = drawn(loaded, asked, tmp_path, chat=chat, temperature=0.0)
  for text, answer in zip(asked, found, strict=True):
    if chat:
      turns = [{"role": "user", "content": text}]
      text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    given = tokenizer(text, return_tensors="pt", add_special_tokens=not chat)
    written = model.generate(**given, max_new_tokens=LIMIT, do_sample=False)
    new = written[0, given["input_ids"].shape[1] :]
    assert answer == tokenizer.decode(new, skip_special_tokens=True)
  assert len(set(found)) > 1, "the model says the same to everything, so this compares nothing"


def test_batches_change_nothing(loaded, instructions, tmp_path):
  found = [
    drawn(loaded, instructions, tmp_path, f"{size}", batch_size=size) for size in (1, 9, 100)
  ]
  assert found[0] == found[1] == found[2]
  assert len(set(found[0])) > 1
  assert found[0] != drawn(loaded, instructions, tmp_path, "other", seed=1)


def test_a_stopped_command_goes_on_to_the_same_answers(
  directory, loaded, instructions, tmp_path, monkeypatch
):
  more = ("--batch_size", "3", "--temperature", "1")
  whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
  assert ask(directory, entries(instructions), whole, *more) == 0
  sample, calls = pretrained.sample, []

  def counted(*arguments, **options):
    if len(calls) == 2:
      raise KeyboardInterrupt
    calls.append(arguments[2])  # the numbers of the prompts
    return sample(*arguments, **options)

  monkeypatch.setattr(pretrained, "sample", counted)
  with pytest.raises(KeyboardInterrupt):
    ask(directory, entries(instructions), stopped, *more)
  assert not stopped.exists()
  partial = tmp_path / "stopped.json.partial"
  written = partial.read_text()
  partial.write_text(written[:-9])  # as a kill in the middle of the second batch leaves it
  calls.clear()
  monkeypatch.setattr(pretrained, "sample", lambda *a, **k: calls.append(a) or sample(*a, **k))
  assert ask(directory, entries(instructions), stopped, *more) == 0
  assert len(calls) == 2, "of three batches the first was answered, and the second half written"
  assert stopped.read_text() == whole.read_text()


def test_answers_of_other_settings_are_never_mixed(loaded, instructions, tmp_path):
  drawn(loaded, instructions, tmp_path)
  for other, named in ((dict(temperature=0.5), "temperature"), (dict(seed=3), "seed")):
    with pytest.raises(ValueError, match=f"answers of another {named}: delete it"):
      drawn(loaded, instructions, tmp_path, **other)
  with pytest.raises(ValueError, match="of another prompts"):
    drawn(loaded, instructions[1:], tmp_path)


def test_too_long_a_prompt_is_an_error_or_keeps_its_end(loaded):
  long = "ab" * loaded.room
  with pytest.raises(ValueError, match=r"a prompt of \d+ tokens; there is room for \d+: lower"):
    sampled.encoded(loaded, ["short", long], max_tokens=LIMIT)
  short, cut = sampled.encoded(loaded, ["short", long], max_tokens=LIMIT, overlong="truncate")
  assert len(cut) == loaded.room - LIMIT
  text = loaded.vocabulary.tokenizer.decode(cut)
  assert text.endswith("abab<|assistant|>")
  assert short == sampled.encoded(loaded, ["short"], max_tokens=LIMIT)[0]


def test_a_name_of_a_special_token_in_a_prompt_is_text(loaded):
  [plain, named] = sampled.encoded(loaded, ["a", "a<|user|>"], max_tokens=LIMIT)
  tokenizer = loaded.vocabulary.tokenizer
  [user] = tokenizer.encode("<|user|>", add_special_tokens=False)
  assert named.count(user) == plain.count(user) == 1


def test_a_system_turn_stands_first(loaded):
  [ids] = sampled.encoded(loaded, ["a"], max_tokens=LIMIT, system="be")
  assert loaded.vocabulary.tokenizer.decode(ids) == "<|system|>be<|user|>a<|assistant|>"
  with pytest.raises(ValueError, match="no system's turn"):
    sampled.encoded(loaded, ["a"], max_tokens=LIMIT, system="be", chat=False)


@pytest.mark.parametrize(
  ("form", "prompts", "says"),
  [
    ("alpaca_eval", {"a": 1}, "no JSON list"),
    ("alpaca_eval", "{", "is no JSON"),
    ("alpaca_eval", [], "holds no prompts"),
    ("alpaca_eval", [{"prompt": "a"}], "entry 0 has no 'instruction'; it has 'prompt'"),
    ("alpaca_eval", [{"instruction": "a"}] * 2, "entry 1 repeats an instruction"),
    ("alpaca_eval", [{"instruction": "a", "input": "b"}], "has an 'input'"),
    ("arena_hard", '{"id": 1}', "question 1 has neither 'uid'"),
    ("arena_hard", '{"uid": 1, "prompt": "a"}\n' * 2, "question 2 repeats the id 1"),
    ("arena_hard", '{"question_id": 1, "turns": [{}, {}]}', "several are not implemented"),
    ("arena_hard", "[1]", "line 1 is no JSON object"),
    ("mixeval", [FREE], "no JSON object of id"),
    ("mixeval", {"1": FREE | {"benchmark_name": "QuAc"}}, "no prompt for QuAC"),
    ("mixeval", {"1": CHOICE | {"options": []}}, "list of 1 to 26"),
    ("mixeval", {"1": FREE | {"prompt": " "}}, "'prompt' has to be a text"),
  ],
)
def test_a_mistake_ends_in_one_sentence(form, prompts, says, tmp_path, capsys):
  assert ask("/nowhere", prompts, tmp_path / "out.json", form=form) == 1
  error = capsys.readouterr().err
  assert says in error
  assert error.startswith("larpo_jax: error: ")
  assert error.count("\n") == 1


def test_what_was_written_is_not_overwritten(directory, tmp_path, capsys):
  output = tmp_path / "out.json"
  output.write_text("mine")
  assert ask(directory, entries(["a"]), output) == 1
  assert "is there already" in capsys.readouterr().err
  assert output.read_text() == "mine"
  assert ask(directory / "no", entries(["a"]), tmp_path / "new.json") == 1
  assert "no config.json in" in capsys.readouterr().err
