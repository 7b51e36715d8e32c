"""A whole run: start, supervised stage, alignment, before and after, export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
import os
import pathlib
import sys
from typing import Any

import jax
from rich import console, table

from larpo_jax import curves, lookup, preemption, rounds, stage, worlds, writers
from larpo_jax import session as session_lib
from larpo_jax import workdir as workdir_lib
from larpo_jax.data import batching, dataset, truncation
from larpo_jax.evaluators import generation, preference
from larpo_jax.models import huggingface, lora
from larpo_jax.session import Session
from larpo_jax.types import Array, Batch, LogProbs, Metrics

SHOWN = {  # what the table shows, in this order, and how it is called there
  "gold/reward": "gold reward",
  "gold/accuracy": "accuracy",
  "sampled/gold/reward": "gold reward of samples",
  "sampled/gold/accuracy": "accuracy of samples",
  "kl": "KL to the start (nats)",
  "length": "length (tokens)",
  "accuracy": "preference accuracy, implicit reward",
  "ndcg": "NDCG, implicit reward",
  "mrr": "MRR, implicit reward",
  "kendall_tau": "Kendall tau, implicit reward",
  "mean_logp/accuracy": "preference accuracy, mean log-prob",
  "mean_logp/ndcg": "NDCG, mean log-prob",
  "mean_logp/mrr": "MRR, mean log-prob",
  "mean_logp/kendall_tau": "Kendall tau, mean log-prob",
}


def run(config: Any, workdir: str) -> None:
  """Runs the config to its end, from wherever the workdir stands; prints the before/after table.

  Raises ValueError, OSError or RuntimeError that say what to change, and Preempted when a signal
  asked the run to stop and everything is saved.
  """
  with workdir_lib.claim(workdir) as directory, preemption.Guard() as guard:
    workdir_lib.record_run(directory, config)
    done = directory / "results" / "summary.json"
    if done.exists():
      if jax.process_index() == 0:
        _show(json.loads(done.read_text()))
        print(f"{directory} is finished; another --workdir, or delete it, to run again")
      return
    writer = writers.Writer(directory)
    try:
      session, params = session_lib.start(config, directory, writer, guard)
      summary = _stages(session, params)
    finally:
      writer.close()
    if jax.process_index() == 0:
      pictures = curves.plot(directory)
      workdir_lib.write_json(done, summary)
      _show(summary)
      print("\n".join(["wrote", *(f"  {path}" for path in (*pictures, directory / "export"))]))


def _stages(session: Session, params: Any) -> dict[str, Any]:
  """Trains; the results before and after."""
  config = session.config
  if config.supervised is not None:
    params = _supervised(session, params)
  evaluate = functools.partial(_evaluate, session, params)
  before = stage.remembered(session, "before", lambda: evaluate(params))
  if config.rounds is not None:
    prompts, reward = _prompts(session), lookup.resolve(config.reward, "larpo_jax.rewards")
    learned = rounds.learn(session, params, prompts, reward, before=before, evaluate=evaluate)
  else:
    learned = _align(session, params, evaluate)
  after = stage.remembered(session, "after", lambda: evaluate(learned))
  if config.rounds is not None:
    rounds.tell(session, config.rounds.count, after)
  if config.export:
    export(session, learned)
  return {"before": before, "after": after}


def export(session: Session, params: Any) -> pathlib.Path:
  """The policy as a Hugging Face directory, adapters merged, and the adapters beside it."""
  directory = session.workdir / "export"
  whole, architecture = session.whole(params), session.architecture
  if session.frozen is not None:
    lora.save_peft(
      session.workdir / "adapters", whole, architecture, base_model=session.config.model.path
    )
    whole, architecture = lora.merge(whole, architecture)
  huggingface.save(directory, whole, architecture, tokenizer=session.tokenizer)
  return directory


def _supervised(session: Session, params: Any) -> Any:
  """Imitates the world's demonstrations."""
  node = session.config.supervised
  drawn = dict(seed=session.config.seed, split="train")
  shown = worlds.ask(session.config.world, "demonstrations", node.examples, **drawn)
  rows = [{"prompt": each.prompt, "response": each.response} for each in shown]
  path = _jsonl(session, "demonstrations", rows)
  data = read(session, "train", path, "readers.supervised")
  return stage.train(
    session,
    "supervised",
    params,
    data,
    loss=dict(name="pointwise.sft"),
    optimizer={**session.config.optimizer, "learning_rate": node.learning_rate},
    batch_size=node.batch_size,
    steps=node.steps,
    epochs=node.epochs,
  )


def _align(session: Session, params: Any, evaluate: Callable[[Any], Mapping[str, float]]) -> Any:
  """Learns from the preference data of the config."""
  config = session.config
  return stage.train(
    session,
    "align",
    params,
    read(session, "train"),
    loss=config.loss,
    optimizer=config.optimizer,
    batch_size=config.data.batch_size,
    steps=config.steps,
    epochs=config.epochs,
    evaluate=evaluate,
  )


def _prompts(session: Session) -> dataset.TokenizedData:
  """What the rounds sample answers to: fresh problems of the world, or the data's prompts."""
  config = session.config
  if config.world is None:
    return read(session, "train")
  count = config.rounds.count * config.rounds.prompts
  return _problems(session, "prompts", count, split="train")


def _problems(session: Session, name: str, count: int, *, split: str) -> dataset.TokenizedData:
  """Problems of the world, by way of a file of prompts; never the demonstrations' own."""
  world = session.config.world
  seed = session.config.seed + 1_000_003
  drawn = worlds.ask(world, "problems", count, seed=seed, split=split)
  rows = [{"prompt": worlds.find(world["name"]).prompt(problem)} for problem in drawn]
  return read(session, "test", _jsonl(session, name, rows), "readers.prompts")


def _jsonl(session: Session, name: str, rows: list[dict[str, Any]]) -> str:
  path = session.workdir / "data" / f"{name}.jsonl"
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir_lib.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
  stage.together(f"{path} is written")
  return os.fspath(path)


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


def _evaluate(session: Session, start: Any, params: Any) -> dict[str, float]:
  """Every number that the config's world or test split can say of a policy."""
  config = session.config
  found: dict[str, float] = {}
  if config.world is not None:
    found |= _written(session, start, params)
  if config.data.test.path:
    found |= _ranked(session, start, params)
  return found


def _written(session: Session, start: Any, params: Any) -> dict[str, float]:
  """What the policy writes to unseen problems of the world."""
  world = worlds.find(session.config.world["name"])
  data = _problems(session, "test", session.config.evaluate.rows, split="test")
  size, config = len(data), session.config
  limit = config.rounds.max_tokens if config.rounds is not None else config.data.max_response
  asked = next(batching.prompt_batches(data, batch_size=size, shuffle=False, shapes=1))
  texts = [ids for (ids,) in session.decode(asked.prompt, asked.prompt_mask)]
  draw = functools.partial(session.sample, max_tokens=limit, eos=data.end, pad=data.pad)
  return generation.generation(
    lambda *asked, **how: stage.gathered(draw(*asked, **how)),
    lambda params, batch: stage.gathered(session.score(session.whole(params), batch)),
    params,
    start,
    generation.Prompts(texts, asked.prompt, asked.prompt_mask),
    decode=session.decode,
    judges={"gold/reward": world.gold, "gold/accuracy": world.accuracy},
    key=session.key(3),
  )


def _ranked(session: Session, start: Any, params: Any) -> dict[str, float]:
  """How the policy ranks the labelled responses of the test split."""
  config = session.config
  data = read(session, "test")
  attach = stage.cache_reference(session, start, data)
  feed = dict(batch_size=config.data.batch_size, shuffle=False, epochs=1, **session.layout)
  rows, weights = [], []
  for batch in batching.batches(data, shard=stage.shard(), attach=attach, **feed):
    session.poll()
    placed = session.put(batch)
    policy = session.score(session.whole(params), placed)
    # The start is its own reference: exactly, not but for what rounding makes of the cache.
    reference = policy.token if params is start else placed.reference
    metrics = _rank(policy, reference, placed)
    rows.append(stage.gathered(metrics))
    weights.append(stage.gathered(placed.weight) * rows[-1].pop("ordered"))
  return generation.mean_by_weight(rows, weights)


@jax.jit
def _rank(policy: LogProbs, reference: Array, batch: Batch) -> Metrics:
  return preference.ranking(policy, dataclasses.replace(policy, token=reference), batch)


def _show(summary: Mapping[str, Mapping[str, float]]) -> None:
  """The before/after table."""
  shown = table.Table("", "before", "after", "change")
  for name, title in SHOWN.items():
    if name in summary["before"]:
      before, after = (summary[side][name] for side in ("before", "after"))
      shown.add_row(title, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
  console.Console().print(shown)
