"""A whole run: start, supervised stage, alignment, before and after, export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import json
import pathlib
from typing import Any

import jax
from rich import console, table

from larpo_jax import (
  cost,
  curves,
  evaluation,
  inputs,
  lookup,
  pool_curves,
  preemption,
  rounds,
  stage,
  starts,
  writers,
)
from larpo_jax import session as session_lib
from larpo_jax import workdir as workdir_lib
from larpo_jax.data import reading
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.lanes import Lanes
from larpo_jax.models import heads, huggingface, lora
from larpo_jax.session import Session

SHOWN = {  # what the table shows, in this order, and how it is called there
  "gold/reward": "gold reward",
  "gold/accuracy": "accuracy",
  "gold/steps": "right steps",
  "sampled/gold/reward": "gold reward of samples",
  "sampled/gold/accuracy": "accuracy of samples",
  "proxy/reward": "proxy reward",
  "sampled/proxy/reward": "proxy reward of samples",
  "held_out/accuracy": "held-out answers ranked right, implicit reward",
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
  "score/accuracy": "preference accuracy, reward model",
  "score/ndcg": "NDCG, reward model",
  "score/mrr": "MRR, reward model",
  "score/kendall_tau": "Kendall tau, reward model",
}


def run(config: Any, workdir: str) -> None:
  """Runs the config to its end, from wherever the workdir stands; prints the before/after table.

  Raises ValueError, OSError or RuntimeError that say what to change, and Preempted when a signal
  asked the run to stop and everything is saved.
  """
  with preemption.Guard() as guard:
    run_guarded(config, workdir, guard)


def run_guarded(
  config: Any, workdir: str, guard: preemption.Guard, lanes: Lanes | None = None, lane: int = 0
) -> None:
  """`run` under a guard that is there already, in a lane where several runs share the process."""
  with workdir_lib.claim(workdir) as directory:
    workdir_lib.record_run(directory, config)
    done = directory / "results" / "summary.json"
    if done.exists():
      if jax.process_index() == 0:
        _show(json.loads(done.read_text()))
        print(f"{directory} is finished; another --workdir, or delete it, to run again")
      return
    writer = writers.Writer(directory)
    try:
      with cost.timed(directory, share=1 if lanes is None else 1 / lanes.count):
        session, params = session_lib.start(config, directory, writer, guard, lanes, lane)
        summary = _stages(session, params)
    finally:
      writer.close()
    if jax.process_index() == 0:
      summary["cost"] = cost.of(directory)
      pictures = [*curves.plot(directory), *pool_curves.plot(summary, directory / "curves")]
      workdir_lib.write_json(done, summary)
      _show(summary)
      print("\n".join(["wrote", *(f"  {path}" for path in (*pictures, directory / "export"))]))


def _stages(session: Session, params: Any) -> dict[str, Any]:
  """Trains; the results before and after."""
  config = session.config
  if config.supervised is not None:
    params = _supervised(session, params)
  evaluate = functools.partial(evaluation.evaluate, session, params)
  ends = functools.partial(evaluation.ends, session, params)
  before = stage.remembered(session, "before", lambda: _of_start(session, params, ends))
  if config.rounds is not None:
    prompts, reward = inputs.prompts(session), lookup.resolve(config.reward, "larpo_jax.rewards")
    learned = rounds.learn(session, params, prompts, reward, before=before, evaluate=evaluate)
  else:
    learned = _align(session, params, lambda params: evaluate(params).numbers)
  after = stage.remembered(session, "after", lambda: ends(learned))
  if config.rounds is not None:
    rounds.tell(session, config.rounds.count, after)
  if config.export:
    export(session, learned)
  return {"before": before, "after": after}


def export(session: Session, params: Any) -> pathlib.Path:
  """What was trained as a Hugging Face directory, adapters merged, and the adapters beside it."""
  directory = session.workdir / "export"
  whole, architecture = session.whole(params), session.architecture
  if session.frozen is not None:
    lora.save_peft(
      session.workdir / "adapters", whole, architecture, base_model=session.config.model.path
    )
    whole, architecture = lora.merge(whole, architecture)
  save = heads.save if session.classifies else huggingface.save
  save(directory, whole, architecture, tokenizer=session.tokenizer)
  if jax.process_index() == 0:
    reading.save(directory, session.config.data)
  return directory


def _supervised(session: Session, params: Any) -> Any:
  """Imitates the world's demonstrations, or reads what another run has learnt from the same."""
  node = session.config.supervised

  def imitate() -> Any:
    return stage.train(
      session,
      "supervised",
      params,
      inputs.demonstrations(session),
      loss=dict(name="pointwise.sft"),
      optimizer={**session.config.optimizer, "learning_rate": node.learning_rate},
      batch_size=node.batch_size,
      steps=node.steps,
      epochs=node.epochs,
    ).params

  return starts.shared(session, imitate) if node.shared else imitate()


def _of_start(session: Session, params: Any, evaluate: Callable[[Any], Evaluation]) -> Evaluation:
  """What evaluate(params) says, asked once for all runs that share their start."""
  node = session.config.supervised
  ask = functools.partial(evaluate, params)
  return starts.evaluated(session, ask) if node is not None and node.shared else ask()


def _align(session: Session, params: Any, evaluate: Callable[[Any], Mapping[str, float]]) -> Any:
  """Learns from the preference data of the config."""
  config = session.config
  return stage.train(
    session,
    "align",
    params,
    inputs.read(session, "train"),
    loss=config.loss,
    optimizer=config.optimizer,
    batch_size=config.data.batch_size,
    steps=config.steps,
    epochs=config.epochs,
    evaluate=evaluate,
  ).params


def _show(summary: Mapping[str, Mapping[str, float]]) -> None:
  """The before/after table."""
  shown = table.Table("", "before", "after", "change")
  for name, title in SHOWN.items():
    if name in summary["before"]:
      before, after = (summary[side][name] for side in ("before", "after"))
      shown.add_row(title, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
  console.Console().print(shown)
  of_pools = pool_curves.table(summary)
  if of_pools is not None:
    console.Console().print(of_pools)
