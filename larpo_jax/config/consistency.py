"""Settings that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from larpo_jax import lookup, worlds
from larpo_jax.data import grouping

WRITTEN = ("samples", "held_out")  # of config.evaluate: what only a model that writes has


def check(tree: Mapping[str, Any]) -> None:
  """Raises ValueError with the first contradiction of a tree whose single values are right."""
  for checks in (_model, _scorer, _data, _stages, _rounds, _pools, _mesh):
    for problem in checks(tree):
      raise ValueError(problem)


def get(tree: Mapping[str, Any], name: str) -> Any:
  """The value of a dotted name; None below a node that is None."""
  value: Any = tree
  for part in name.split("."):
    value = None if value is None else value.get(part)
  return value


def _model(tree: Mapping[str, Any]) -> Iterator[str]:
  model, tokenizer = tree["model"], tree["tokenizer"]
  if model["path"] and model["shape"]:
    yield "config.model has both a path and a shape: a checkpoint has its own shape, so drop one"
  if not model["path"] and not model["shape"]:
    yield "config.model has neither a path nor a shape: give a checkpoint, or keys of config.json"
  if not model["path"] and not tokenizer["path"] and tree["world"] is None:
    yield "config.tokenizer.path is empty, and neither config.model.path nor a world brings one"


def _scorer(tree: Mapping[str, Any]) -> Iterator[str]:
  """What a model that scores texts cannot do, as it writes none."""
  try:
    scorer = lookup.resolve(tree["scorer"], "larpo_jax.scorers")
  except ValueError:  # a wrong spec is said by its own check
    return
  if not getattr(scorer, "classifies", False):
    return
  why = f"config.scorer={tree['scorer']['name']} makes a reward model, which writes no text"
  for node in ("supervised", "rounds"):
    if tree[node] is not None:
      yield f"{why}: train it on preference data in a run of its own, with config.{node}=None"
  for name in WRITTEN:
    if tree["evaluate"][name]:
      yield f"{why}: set config.evaluate.{name}=0"
  if tree["model"]["lora"]["rank"]:
    yield "config.model.lora is of language models: train a reward model whole, with lora.rank=0"


def _data(tree: Mapping[str, Any]) -> Iterator[str]:
  data, rounds = tree["data"], tree["rounds"]
  for name, size in _batch_sizes(tree):
    if size % tree["accumulation"]:
      yield (
        f"{name}={size} does not divide into config.accumulation={tree['accumulation']} "
        "micro-batches: make it a multiple"
      )
  for name, kernel in _kernels(tree["loss"]):
    if getattr(kernel, "compares", True):
      if rounds is None and data["candidates"] == 1:
        yield f"config.data.candidates=1, but {name} ranks a list: give at least 2, or 0 for all"
      if rounds is not None and not rounds["steps"] and grouping.candidates(rounds) == 1:
        yield f"config.rounds.candidates=1, but {name} ranks a list: give at least 2"
    for setting, why in getattr(kernel, "requires", {}).items():
      if not get(tree, setting):
        yield f"{name} needs {why}: set config.{setting}=True"


def _stages(tree: Mapping[str, Any]) -> Iterator[str]:
  data, world, rounds = tree["data"]["train"]["path"], tree["world"], tree["rounds"]
  if tree["steps"] < 0 and tree["epochs"] <= 0:
    yield "config.steps and config.epochs are both unset: give one of them"
  if rounds is not None and tree["reward"] is None:
    yield "config.rounds needs config.reward to rank what it samples, such as rules.exact"
  if rounds is not None and world is None and not data:
    yield "config.rounds needs prompts: give config.world or config.data.train.path"
  if tree["supervised"] is not None and world is None and not data:
    yield "config.supervised needs demonstrations: give config.world or config.data.train.path"
  alone = tree["supervised"] is not None and tree["steps"] == 0
  for name in ("spans", "mismatched"):
    if rounds is not None and tree["data"][name]:
      yield f"config.data.{name} is of a data set's responses, and config.rounds samples its own"
  if rounds is None and not data and not alone:
    yield "config.data.train.path is empty and there are no rounds: there is nothing to learn from"


def _learning(rounds: Mapping[str, Any]) -> Iterator[str]:
  """How a round learns: stages, the reference, the optimiser."""
  steps, stages = rounds["steps_per_round"], (rounds["curriculum"] or {}).get("stages", 3)
  if rounds["curriculum"] is None and rounds["reference"] == "stage":
    yield "config.rounds.reference='stage' needs stages: set config.rounds.curriculum, or 'round'"
  if rounds["curriculum"] is not None and 0 <= steps < stages:
    yield f"config.rounds.steps_per_round={steps} leaves some of {stages} stages without a step"
  if rounds["optimizer"] == "kept" and steps < 0:
    yield "config.rounds.optimizer='kept' needs to know all steps: give rounds.steps_per_round"
  rates = rounds["learning_rates"]
  if rates and len(rates) != rounds["count"]:
    yield (
      f"config.rounds.learning_rates has {len(rates)} rates for config.rounds.count="
      f"{rounds['count']} rounds: give one of each, or () for that of config.optimizer"
    )
  if rates and rounds["optimizer"] == "kept":
    yield "config.rounds.optimizer='kept' has one schedule: set config.rounds.learning_rates=()"
  gap = rounds["curriculum"] is not None and rounds["difficulty"] == "implicit_gap"
  if gap and rounds["count"] == 1:
    yield (
      "config.rounds.difficulty='implicit_gap' is 0 for all lists of the first round, whose policy "
      "is where it starts: use another one, or more rounds"
    )


def _rounds(tree: Mapping[str, Any]) -> Iterator[str]:
  rounds, world = tree["rounds"], tree["world"]
  if rounds is None:
    return
  yield from _learning(rounds)
  if rounds["min_gap"] and (rounds["steps"] is not None or len(rounds["prefer"]) > 1):
    yield (
      "config.rounds.min_gap is of the rewards of a list, and with rounds.steps, or with several "
      "sources in rounds.prefer, these do not order it: set it to 0"
    )
  if rounds["greedy"] and rounds["candidates"] == 1:
    yield "config.rounds.greedy=True takes one of config.rounds.candidates=1: give at least 2"
  if rounds["negatives"] == "other_prompt" and rounds["prompts"] == 1:
    yield "config.rounds.negatives='other_prompt' needs another one: give rounds.prompts at least 2"
  if rounds["agreed"] and rounds["noise"] is None:
    yield "config.rounds.agreed=True leaves out what config.rounds.noise changed: give a noise, too"
  if rounds["steps"] is not None:
    yield from _steps(tree)
  if rounds["novelty"] is not None and rounds["negatives"] != "sampled":
    yield (
      f"config.rounds.novelty is of what was sampled to the prompt, and rounds.negatives="
      f"{rounds['negatives']!r} keeps only the best of it: set it to 'sampled', or novelty to None"
    )
  joined = rounds["prompt_split"] == "shared" and rounds["memory"] != "none"
  if _compares(tree["reward"]) and (rounds["gold"] or rounds["negatives"] != "sampled" or joined):
    yield (
      f"config.reward={tree['reward']['name']} scores a response against its list: what joins the "
      "list later has no such score, so set rounds.gold=False, rounds.negatives='sampled', and "
      "rounds.memory='none' where prompts are shared"
    )
  for setting, needs, function in (
    ("gold", rounds["gold"], "solution"),
    ("negatives", rounds["negatives"] == "unrelated", "unrelated"),
    ("styled", rounds["styled"], "styled"),
  ):
    if needs and not _has(world, function):
      yield (
        f"config.rounds.{setting}={rounds[setting]!r} needs a config.world that has {function}()"
      )
  yield from _sources(rounds)


def _sources(rounds: Mapping[str, Any]) -> Iterator[str]:
  there = grouping.sources(rounds)
  for setting in ("prefer", "styled"):
    for source in rounds[setting]:
      if source not in (*there, "best"):
        yield (
          f"config.rounds.{setting} has {source!r}, but no candidate comes from there: set "
          f"config.rounds.{'candidates' if source == 'self' else source}, or drop it"
        )
      if rounds[setting].count(source) > 1:
        yield f"config.rounds.{setting} has {source!r} twice: drop one"
  if rounds["prefer"] and rounds["negatives"] != "sampled":
    yield (
      f"config.rounds.prefer is between answers to the prompt, and config.rounds.negatives="
      f"{rounds['negatives']!r} puts another prompt's in their place: drop one"
    )


def _compares(reward: Any) -> bool:
  """Whether the reward of a response depends on its list; a wrong one is said by its own check."""
  try:
    return reward is not None and hasattr(
      lookup.find(reward["name"], "larpo_jax.rewards"), "compares"
    )
  except (TypeError, KeyError, ValueError):
    return False


def _steps(tree: Mapping[str, Any]) -> Iterator[str]:
  """What goes with pairs of steps, which are made of what the policy sampled in the same round."""
  rounds = tree["rounds"]
  if not _has(tree["world"], "first_wrong"):
    yield "config.rounds.steps needs a config.world that has first_wrong()"
  for setting, value in (("memory", "none"), ("negatives", "sampled"), ("lists", None)):
    if rounds[setting] != value:
      yield (
        f"config.rounds.steps makes its own pairs of what the policy samples: set "
        f"config.rounds.{setting}={value!r}"
      )
  if rounds["steps"]["unit"] == "answer" and rounds["steps"]["misplaced"]:
    yield "config.rounds.steps.misplaced is of single steps: set 0, or rounds.steps.unit='step'"


def _has(world: Any, function: str) -> bool:
  """Whether the world has a function; a wrong world is said by its own check."""
  try:
    return world is not None and hasattr(worlds.find(world["name"]), function)
  except (TypeError, KeyError, ValueError):
    return True


def _pools(tree: Mapping[str, Any]) -> Iterator[str]:
  evaluate = tree["evaluate"]
  names = [f"{temperature:g}" for temperature in evaluate["temperatures"]]
  for name in WRITTEN:
    if evaluate[name] and tree["world"] is None:
      yield f"config.evaluate.{name} needs config.world, whose checker says what is right; or set 0"
  if evaluate["held_out"] == 1:
    yield "config.evaluate.held_out=1 is nothing to rank: give at least 2, or 0"
  if len(set(names)) < len(names):
    yield f"config.evaluate.temperatures={', '.join(names)} has one of them twice: drop it"


def _mesh(tree: Mapping[str, Any]) -> Iterator[str]:
  mesh = tree["mesh"]
  if 0 in mesh.values():
    yield f"config.mesh={mesh} has an axis of 0 devices: give at least 1, or -1 for what is left"
  if list(mesh.values()).count(-1) > 1:
    yield f"config.mesh={mesh} has more than one -1: only one axis can take what is left"


def _batch_sizes(tree: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
  yield "config.data.batch_size", tree["data"]["batch_size"]
  if tree["supervised"] is not None:
    yield "config.supervised.batch_size", tree["supervised"]["batch_size"]


def _kernels(loss: Any) -> Iterator[tuple[str, Any]]:
  """The kernels of a loss by their names, a wrapper's and what it is around as one."""
  for node in loss if isinstance(loss, tuple) else (loss,):
    if isinstance(node, dict):
      spec = {key: value for key, value in node.items() if key != "weight"}
      try:
        kernel = lookup.resolve(spec, "larpo_jax.losses")
      except ValueError:  # a wrong spec is said by its own check
        continue
      yield spec["name"], kernel
