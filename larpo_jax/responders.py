"""Who answers the prompts of a round: the policy, its teachers, people, the world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from larpo_jax import inputs, stage, workdir, worlds, writers
from larpo_jax import session as session_lib
from larpo_jax.data import batching, store
from larpo_jax.data import tokenizer as tokenizers
from larpo_jax.data.selection import Selected
from larpo_jax.models import huggingface
from larpo_jax.session import Session

# What sampling takes as it is.
SAMPLED = ("max_tokens", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")


class Answered(NamedTuple):
  """A prompt, and answers to it."""

  row: int  # its place in the data
  prompt: np.ndarray  # token ids
  question: str
  responses: list[np.ndarray]  # token ids
  texts: list[str]
  finished: list[bool]
  sources: list[str]  # where each comes from, one of `grouping.SOURCES`


class Draw(NamedTuple):
  """So many responses of a policy to each prompt."""

  source: str
  candidates: int
  temperature: float


def sampled(
  session: Session,
  params: Any,
  number: int,
  prompts: store.TokenizedData,
  key: jax.Array,
  draws: Sequence[Draw] = (),
  *,
  name: str,
) -> list[Answered]:
  """What a policy writes to the prompts of a round; the rounds' own candidates by default.

  As `answered`, kept under the name in the round's directory.
  """
  rounds = session.config.rounds
  turn = _turn(prompts, 0 if rounds.prompt_split == "shared" else number, rounds.prompts)
  kept, title = partial(session, number) / name, f"retrieve {number}"
  draws = draws or _own(rounds)
  return answered(session, params, number, turn, prompts.end, key, draws, kept=kept, title=title)


def answered(
  session: Session,
  params: Any,
  number: int,
  asked: Selected,
  end: int | None,
  key: jax.Array,
  draws: Sequence[Draw],
  *,
  kept: pathlib.Path,
  title: str,
) -> list[Answered]:
  """What a policy writes to those prompts in a round, in their order.

  Each batch is kept in a file that begins like kept, and read from there by a run that goes on;
  title is of the progress bar. Raises Preempted where the run is asked to stop.
  """
  rounds, found = session.config.rounds, list[Answered]()
  feed = batching.prompt_batches(
    asked, batch_size=rounds.batch_size, shuffle=False, epochs=1, shapes=1, shard=stage.shard()
  )
  count = -(-len(asked) // rounds.batch_size)
  how = {each: rounds[each] for each in SAMPLED} | dict(eos=end, pad=asked.pad)
  with writers.Progress(title, total=count, unit="batch") as progress:
    for done, batch in enumerate(feed, 1):
      session.poll()
      path = kept.with_name(f"{kept.name}-{done}.json")
      if path.exists():
        found += _read(path)
        continue
      placed = session.put(batch)
      how["rows"] = placed.row + number * rounds.prompts
      drawn = _drawn(session, params, placed, key, draws, how)
      progress.update(done, tokens=int(drawn.mask.sum()), responses=drawn.finished.size)
      some = list(_answered(session, asked, stage.gathered(placed), drawn, draws))
      _keep(path, some)
      found += some
  return found


def partial(session: Session, number: int) -> pathlib.Path:
  """Where the batches of a round lie until the round is written."""
  return session.workdir / "rounds" / str(number) / "partial"


def _keep(path: pathlib.Path, answered: list[Answered]) -> None:
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = lambda each: [ids.tolist() for ids in each.responses]  # noqa: E731
    rows = [each._replace(prompt=each.prompt.tolist(), responses=lists(each)) for each in answered]
    workdir.write_text(path, json.dumps([row._asdict() for row in rows]))


def _read(path: pathlib.Path) -> list[Answered]:
  ids = lambda tokens: np.asarray(tokens, np.int32)  # noqa: E731
  rows = [Answered(**row) for row in json.loads(path.read_text())]
  return [
    row._replace(prompt=ids(row.prompt), responses=[ids(each) for each in row.responses])
    for row in rows
  ]


def taught(session: Session, number: int, prompts: store.TokenizedData) -> list[list[Answered]]:
  """What each of the teachers writes to the prompts of a round."""
  teacher = session.config.rounds.teacher
  if teacher is None:
    return []
  draw, found = [Draw("teacher", teacher.candidates, teacher.temperature)], []
  for place, path in enumerate(teacher.paths):
    other, params = _teacher(session, path)
    key = session.key(7, number, place)
    found.append(sampled(other, params, number, prompts, key, draw, name=f"teacher_{place}"))
    del other, params  # before the next one is loaded
  return found


def _teacher(session: Session, path: str) -> tuple[Session, Any]:
  """The session with another policy in it, and that policy's parameters."""
  config = session.config
  if tokenizers.load(path).get_vocab() != session.tokenizer.get_vocab():
    raise ValueError(
      f"config.rounds.teacher.paths: {path} has another tokenizer than the policy; give "
      "checkpoints with the same, or write its answers into a data set and set config.rounds.human"
    )
  options = session_lib.model_options(config)
  loaded = huggingface.load(path, mesh=session.mesh, rules=config.rules, **options)
  model, params, architecture = loaded
  changes: dict[str, Any] = dict(model=model, architecture=architecture, frozen=None)
  return dataclasses.replace(session, **changes), params


def _own(rounds: Any) -> list[Draw]:
  """rounds.candidates responses of the policy; with rounds.greedy the first is greedy."""
  greedy = [Draw("greedy", 1, 0.0)] if rounds.greedy else []
  return [*greedy, Draw("self", rounds.candidates - len(greedy), rounds.temperature)]


def _drawn(
  session: Session, params: Any, asked: Any, key: jax.Array, draws: Sequence[Draw], how: Any
) -> Any:
  """The responses of all draws on the host, in their order."""
  parts = [
    stage.gathered(
      session.sample(
        params, asked.prompt, asked.prompt_mask, key,
        candidates=draw.candidates, temperature=draw.temperature, **how,
      )
    )
    for draw in draws
  ]  # fmt: skip
  return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)


def _turn(prompts: store.TokenizedData, number: int, count: int) -> Selected:
  """The prompts of a round: the next ones, from the first on after the last."""
  return Selected(prompts, np.arange(number * count, (number + 1) * count) % len(prompts))


def _answered(
  session: Session, turn: Selected, asked: Any, drawn: Any, draws: Sequence[Draw]
) -> Iterator[Answered]:
  """Each real prompt of a batch, without padding."""
  texts = session.decode(drawn.response, drawn.mask)
  questions = [ids for (ids,) in session.decode(asked.prompt, asked.prompt_mask)]
  for b in np.flatnonzero(asked.weight > 0):
    kept = drawn.mask[b] > 0
    yield Answered(
      row=int(turn.rows[asked.row[b]]),
      prompt=asked.prompt[b, 0][asked.prompt_mask[b, 0]],
      question=questions[b],
      responses=[ids[on] for ids, on in zip(drawn.response[b], kept)],
      texts=texts[b],
      finished=drawn.finished[b].tolist(),
      sources=[draw.source for draw in draws for _ in range(draw.candidates)],
    )


def given(
  session: Session, prompts: store.TokenizedData, answered: Sequence[Answered]
) -> Iterator[list[Answered]]:
  """What rounds.human people, and with rounds.gold the world, answer to prompts that were answered.

  Raises ValueError where the data set has too few answers.
  """
  config = session.config
  if config.rounds.human:
    found = _written if config.world is None else _demonstrated
    yield [found(session, prompts, each) for each in answered]
  if config.rounds.gold:
    world = worlds.find(config.world["name"])
    yield [
      _told(session, prompts, each, "gold", [world.solution(each.question)]) for each in answered
    ]


def joined(parts: Sequence[Answered]) -> Answered:
  """The answers of several to one prompt."""
  together = lambda name: [value for part in parts for value in getattr(part, name)]  # noqa: E731
  lists = ("responses", "texts", "finished", "sources")
  changes: dict[str, Any] = {name: together(name) for name in lists}
  return parts[0]._replace(**changes)


def encoded(session: Session, text: str, end: int | None) -> np.ndarray:
  """The ids of a response, and of its end where it has one."""
  ids = session.tokenizer(text, add_special_tokens=False)["input_ids"]
  return np.asarray([*ids, *([] if end is None else [end])], np.int32)


def _written(session: Session, prompts: store.TokenizedData, each: Answered) -> Answered:
  """The best answers that the data set has to a prompt."""
  tokens, count = prompts[each.row], session.config.rounds.human
  if len(tokens.responses) < count:
    raise ValueError(
      f"config.rounds.human={count}, but the data set has {len(tokens.responses)} answers to "
      f"{each.question[:80]!r}: lower it, or leave such prompts out"
    )
  best = np.argsort(-np.asarray(tokens.labels), kind="stable")[:count]
  responses = [tokens.responses[place] for place in best]
  texts = session.tokenizer.batch_decode(responses, skip_special_tokens=True)
  return _from(each, "human", responses, texts)


def _demonstrated(session: Session, prompts: store.TokenizedData, each: Answered) -> Answered:
  """What the world's demonstrations show at a prompt."""
  index = int(prompts.sources[each.row])
  shown = [inputs.shown(session, index, draw) for draw in range(session.config.rounds.human)]
  return _told(session, prompts, each, "human", shown)


def _told(
  session: Session, prompts: store.TokenizedData, each: Answered, source: str, texts: list[str]
) -> Answered:
  return _from(each, source, [encoded(session, text, prompts.end) for text in texts], texts)


def _from(each: Answered, source: str, responses: list[np.ndarray], texts: list[str]) -> Answered:
  """Other answers to a prompt, all from one source."""
  finished, sources = [True] * len(texts), [source] * len(texts)
  return each._replace(responses=responses, texts=texts, finished=finished, sources=sources)
