"""AlpacaEval: alpaca_eval.json in, model_outputs.json out.

As of https://github.com/tatsu-lab/alpaca_eval at 73e9c45: a JSON list of {"instruction", "output",
"generator"}, and the set's "dataset" and "datasplit" where it has them, which `alpaca_eval
--model_outputs FILE` joins to the baseline's outputs by "instruction". Outputs are stripped of
white space at both ends, as `alpaca_eval evaluate_from_model` does.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import os

from larpo_jax.answer import questions
from larpo_jax.answer.questions import Question

KEPT = ("dataset", "datasplit")  # columns of the evaluation set that the outputs repeat


def read(path: str | os.PathLike) -> list[Question]:
  """The evaluation set, or any list of {"instruction"}; another model's outputs are left out."""
  rows = questions.json_of(path)
  if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
    raise ValueError(f"{path} is no JSON list of objects, as AlpacaEval's sets are")
  found: dict[str, Question] = {}
  for number, row in enumerate(rows):
    where = f"{path}, entry {number}"
    if row.get("input"):
      raise ValueError(f"{where} has an 'input': write it into the instruction, as AlpacaEval does")
    instruction = questions.text(row, "instruction", where)
    if instruction in found:
      raise ValueError(f"{where} repeats an instruction, by which AlpacaEval joins; remove it")
    found[instruction] = Question(instruction, row)
  return list(found.values())


def write(asked: Sequence[Question], answers: Sequence[str], name: str) -> str:
  """model_outputs.json; name is the generator's, under which the leaderboard lists it."""
  rows = [
    {key: question.row[key] for key in KEPT if key in question.row}
    | {"instruction": question.text, "output": answer.strip(), "generator": name}
    for question, answer in zip(asked, answers, strict=True)
  ]
  return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
