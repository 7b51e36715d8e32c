"""Arena-Hard: question.jsonl in, model_answer/NAME.jsonl out.

Of https://github.com/lmarena/arena-hard-auto, both formats; which one follows from the questions.

* v2.0, as src/arenahard/gen_judgment.py reads it at bed1604: questions {"uid", "prompt"}, answers
  {"uid", "ans_id", "model", "messages"} whose last message has "content": {"answer": text}.
* v0.1, as gen_answer.py wrote it at 8f2f44d: questions {"question_id", "turns": [{"content"}]} of
  one turn, answers {"question_id", "answer_id", "model_id", "choices": [{"index", "turns"}]}.

Left out are "tstamp", which no judge reads and which would make the file another one each time, and
"metadata" with its token counts by tiktoken, which only the scores with style control read: the
benchmark's utils/add_markdown_info.py adds it.
"""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import json
import os
from typing import Any

from larpo_jax.answer import questions
from larpo_jax.answer.questions import Question


def read(path: str | os.PathLike) -> list[Question]:
  """The questions; ValueError where one has several turns, or an id stands twice."""
  found: dict[Any, Question] = {}
  for number, row in enumerate(questions.json_lines(path), 1):
    where = f"{path}, question {number}"
    if "uid" in row:
      uid, question = row["uid"], Question(questions.text(row, "prompt", where), row)
    elif "question_id" in row:
      uid, question = row["question_id"], Question(_turn(row, where), row)
    else:
      raise ValueError(f"{where} has neither 'uid' (v2.0) nor 'question_id' (v0.1)")
    if uid in found:
      raise ValueError(f"{where} repeats the id {uid!r}; remove one of them")
    found[uid] = question
  return list(found.values())


def _turn(row: dict[str, Any], where: str) -> str:
  turns = row.get("turns")
  if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
    raise ValueError(f"{where} has to have 'turns' with one turn; several are not implemented")
  return questions.text(turns[0], "content", where)


def write(asked: Sequence[Question], answers: Sequence[str], name: str) -> str:
  """The answers; the judge looks for them in a file that is called NAME.jsonl."""
  rows = []
  for (text, row), answer in zip(asked, answers, strict=True):
    uid = row.get("uid", row.get("question_id"))
    digest = hashlib.blake2b(json.dumps([uid, name, answer]).encode(), digest_size=11).hexdigest()
    if "uid" in row:
      user = {"role": "user", "content": text}
      messages = [user, {"role": "assistant", "content": {"answer": answer}}]
      rows.append({"uid": uid, "ans_id": digest, "model": name, "messages": messages})
    else:
      choices = [{"index": 0, "turns": [{"content": answer}]}]
      known = {"question_id": uid, "answer_id": digest}
      rows.append(known | {"model_id": name, "choices": choices})
  return questions.lines(rows)
