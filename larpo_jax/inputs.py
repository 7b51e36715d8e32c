"""What a run reads: its data, and what its world has drawn, tokenised under the config's limits."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import jax
from rich import console

from larpo_jax import stage, workdir, worlds
from larpo_jax.data import dataset, truncation
from larpo_jax.session import Session

FRESH = 1_000_003  # added to the seed: problems that are not the demonstrations'


def demonstrations(session: Session) -> dataset.TokenizedData:
  """What the supervised stage imitates."""
  drawn = dict(seed=session.config.seed, split="train")
  count = session.config.supervised.examples
  shown = worlds.ask(session.config.world, "demonstrations", count, **drawn)
  rows = [{"prompt": each.prompt, "response": each.response} for each in shown]
  path = _lines(session, "demonstrations", rows)
  return read(session, "train", path, "readers.supervised")


def prompts(session: Session) -> dataset.TokenizedData:
  """What the rounds sample answers to: fresh problems of the world, or the data's prompts."""
  config = session.config
  if config.world is None:
    return read(session, "train")
  return problems(session, "prompts", _asked(session), split="train")


def unrelated(session: Session) -> dataset.TokenizedData:
  """As many prompts of the world's `unrelated` problems as the rounds have prompts."""
  return problems(session, "unrelated", _asked(session), split="train", kind="unrelated")


def problems(
  session: Session, name: str, count: int, *, split: str, kind: str = "problems"
) -> dataset.TokenizedData:
  """Problems of the world, by way of a file of prompts; never the demonstrations' own."""
  world = session.config.world
  drawn = worlds.ask(world, kind, count, seed=session.config.seed + FRESH, split=split)
  rows = [{"prompt": worlds.find(world["name"]).prompt(problem)} for problem in drawn]
  return read(session, "test", _lines(session, name, rows), "readers.prompts")


def ending(session: Session, data: dataset.TokenizedData) -> dict[str, Any]:
  """Where answers to data's prompts end, for `Session.sample`."""
  config = session.config
  limit = config.rounds.max_tokens if config.rounds is not None else config.data.max_response
  return dict(max_tokens=limit, eos=data.end, pad=data.pad)


def read(session: Session, which: str, path: str = "", reader: str = "") -> dataset.TokenizedData:
  """The rows of config.data's train or test, or of another path and reader under its limits.

  Says what was read; of what is trained on, in a table what the limits cut.
  """
  node = session.config.data.to_dict()
  if path:
    node |= {which: dict(path=path, split="", reader=dict(name=reader))}
  data = dataset.from_node(node, session.tokenizer, which)
  longest = int((data.prompt_lengths + data.response_lengths).max())
  positions = json.loads(session.architecture.source).get("max_position_embeddings", longest)
  if longest > positions:
    raise ValueError(
      f"{data.report.source} has rows of {longest} tokens, and the model was made for {positions}: "
      "lower data.max_prompt or data.max_response"
    )
  if jax.process_index() == 0:
    print(data.report, file=sys.stderr)
    if which == "train":
      console.Console(stderr=True).print(truncation.table(data.report))
  return data


def shown(session: Session, index: int, draw: int) -> str:
  """A demonstration of the answer to number index of `prompts`; another draw, another one."""
  how = dict(seed=session.config.seed + FRESH, split="train", start=index, draw=draw)
  return worlds.ask(session.config.world, "demonstrations", 1, **how)[0].response


def _asked(session: Session) -> int:
  """How many prompts the rounds take."""
  rounds = session.config.rounds
  return rounds.prompts * (1 if rounds.prompt_split == "shared" else rounds.count)


def _lines(session: Session, name: str, rows: list[dict[str, Any]]) -> str:
  path = session.workdir / "data" / f"{name}.jsonl"
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
  stage.together(f"{path} is written")
  return os.fspath(path)
