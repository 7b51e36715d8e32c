"""MixEval and MixEval-Hard: free-form.json or multiple-choice.json in, the responses' jsonl out.

Of https://github.com/Psycoy/MixEval at 04b17ed: a JSON object id -> entry. The prompts are those of
mix_eval/prompts/evaluation_prompts.py for chat models, in whose words the benchmark is fixed (base
models get five examples before them, which is not implemented). A line of the responses is the
entry with "formated_input", "id" and "response"; mix_eval.compute_metrics looks for them in
RESPONSES/NAME/mixeval[_hard]/VERSION/NAME_close_{freeform,multichoice}[_hard].jsonl.
MixEval itself samples at most 512 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
import string
from typing import Any

from larpo_jax.answer import questions
from larpo_jax.answer.questions import Question

CHOOSE = "Answer with the option letter from the given choices directly."
SHORTLY = "Answer the question shortly."
REASON = "Answer the question. \nLet's think step by step."
REASONED = ("BBH", "GSM8k", "MATH")  # sources whose answers are worked out


def read(path: str | os.PathLike) -> list[Question]:
  """The entries, with the prompt that MixEval makes of each."""
  entries = questions.json_of(path)
  if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
    raise ValueError(f"{path} is no JSON object of id -> entry, as MixEval's files are")
  found = []
  for name, entry in entries.items():
    where = f"{path}, entry {name}"
    make = _multiple_choice if "options" in entry else _free_form
    formatted = make(entry, where)
    found.append(Question(formatted, {**entry, "formated_input": formatted, "id": name}))
  return found


def write(asked: Sequence[Question], answers: Sequence[str], name: str) -> str:
  """The responses; the model's name stands in the name of the file only."""
  del name
  pairs = zip(asked, answers, strict=True)
  return questions.lines([question.row | {"response": answer} for question, answer in pairs])


def _free_form(entry: Mapping[str, Any], where: str) -> str:
  source = questions.text(entry, "benchmark_name", where)
  if source == "QuAc":
    raise ValueError(f"{where}: MixEval has no prompt for QuAC in free form; remove the entry")
  told = REASON if source in REASONED else SHORTLY
  prompt = questions.text(entry, "prompt", where)
  return "Question: " + "\n".join([*_context(entry), prompt, told])


def _multiple_choice(entry: Mapping[str, Any], where: str) -> str:
  options = entry["options"]
  if not isinstance(options, list) or not 0 < len(options) <= len(string.ascii_uppercase):
    raise ValueError(f"{where}: 'options' has to be a list of 1 to 26")
  choices = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options)]
  prompt = questions.text(entry, "prompt", where)
  return "\n".join([*_context(entry), prompt, *choices, CHOOSE])


def _context(entry: Mapping[str, Any]) -> list[str]:
  """The context where there is one; "none" and "null" are none, as in MixEval."""
  context = str(entry.get("context"))
  empty = context.lower() in ("none", "null") or not context.replace(" ", "")
  return [] if empty else [context]
