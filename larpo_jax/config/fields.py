"""Every setting of a run: its default, whose type is its type, and what it may be."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from larpo_jax.data import grouping, problems


@dataclasses.dataclass(frozen=True)
class Field:
  """A setting: its default, whose type is its type, and what it may be."""

  default: Any
  low: float = -math.inf  # inclusive
  high: float = math.inf  # inclusive
  above: float = -math.inf  # exclusive
  choices: tuple[str, ...] = ()
  empty: bool = False  # a text that may be "", a tuple that may be ()
  item: Any = ""  # of a tuple whose default is (): one of its type
  required: bool = False  # where its node is given, so must it be
  filled: bool = True  # where it is left out, the default is filled in


class Node:
  """A group of settings that may be None as a whole."""


@dataclasses.dataclass(frozen=True)
class Spec:
  """dict(name="module.function", **its_keyword_arguments), from a package."""

  package: str
  module: str = ""  # the only one of the package that counts
  optional: bool = False
  several: bool = False  # may be a sequence of specs with a weight each


@dataclasses.dataclass(frozen=True)
class Free:
  """A mapping of any length whose keys are data."""

  keys: tuple[str, ...] = ()  # () is any
  values: tuple[str, ...] = ()


_AXES = ("data", "fsdp", "tensor")
_LOGICAL = ("layers", "vocab", "embed", "heads", "kv_heads", "head_dim", "mlp", "lora")

FIELDS: dict[str, Field | Node | Spec | Free] = {
  "seed": Field(0, low=0),
  "steps": Field(-1, low=-1),
  "epochs": Field(1.0, low=0),
  "accumulation": Field(1, low=1),
  "log_every": Field(10, low=0),
  "export": Field(True),
  "model.path": Field("", empty=True),
  "model.shape": Free(),
  "model.dtype": Field("float32", choices=("float32", "bfloat16")),
  "model.attention": Field("xla", choices=("xla", "fused")),
  "model.remat": Field("dots", choices=("none", "dots", "full")),
  "model.scan": Field(True),
  "model.lora.rank": Field(0, low=0),
  "model.lora.alpha": Field(16.0, above=0),
  "model.lora.targets": Field(
    ("q", "k", "v", "o", "gate", "up", "down"),
    choices=("q", "k", "v", "o", "gate", "up", "down"),
  ),
  "scorer": Spec("larpo_jax.scorers"),
  "tokenizer.path": Field("", empty=True),
  "tokenizer.chat_template": Field("", empty=True),
  "data.train.path": Field("", empty=True),
  "data.train.split": Field("", empty=True),
  "data.test.path": Field("", empty=True),
  "data.test.split": Field("", empty=True),
  "data.test.reader": Spec("larpo_jax.data", module="readers", optional=True),
  "data.reader": Spec("larpo_jax.data", module="readers"),
  "data.candidates": Field(0, low=0),
  "data.batch_size": Field(8, low=1),
  "data.max_prompt": Field(512, low=1),
  "data.max_response": Field(512, low=1),
  "data.overlong": Field("truncate", choices=("truncate", "drop")),
  "data.max_bad_rows": Field(0, low=0),
  "data.eos": Field(True),
  "data.chat": Field(False),
  "data.loss_on": Field("last", choices=("last", "all_assistant")),
  "data.boundary": Field("joint", choices=("joint", "apart")),
  "data.max_merged": Field(0.1, low=0, high=1),
  "data.shapes": Field(4, low=1),
  "data.rooms": Field(2, low=1),
  "data.spans": Field(False),
  "data.mismatched": Field(False),
  "data.skip": Field((), choices=tuple(problems.KINDS), empty=True),
  "loss": Spec("larpo_jax.losses", several=True),
  "reference.cache": Field(True),
  "reference.cache_dir": Field("", empty=True),
  # Every so many steps (0: never) it becomes (1 - share) of itself and share of the policy.
  "reference.sync_every": Field(0, low=0),
  "reference.sync_share": Field(0.6, above=0, high=1),
  "optimizer.name": Field("adamw", choices=("adamw", "adafactor", "lion", "rmsprop", "sgd")),
  "optimizer.learning_rate": Field(1e-6, above=0),
  "optimizer.schedule": Field("linear", choices=("constant", "linear", "cosine")),
  "optimizer.warmup": Field(0.1, low=0),
  "optimizer.clip": Field(1.0, low=0),
  "optimizer.weight_decay": Field(0.0, low=0, filled=False),
  "optimizer.b1": Field(0.9, low=0, high=1, filled=False),
  "optimizer.b2": Field(0.999, low=0, high=1, filled=False),
  "optimizer.eps": Field(1e-8, above=0, filled=False),
  **{f"mesh.{axis}": Field(-1 if axis == "data" else 1, low=-1) for axis in _AXES},
  "rules": Free(_LOGICAL, _AXES),
  "checkpoint.every": Field(100, low=0),
  "checkpoint.keep": Field(3, low=1),
  "evaluate.every": Field(0, low=0),
  "evaluate.rows": Field(256, low=0),
  "evaluate.samples": Field(0, low=0),
  "evaluate.temperatures": Field((1.0,), above=0),
  "evaluate.batch_size": Field(256, low=1),
  "evaluate.held_out": Field(0, low=0),
  "supervised": Node(),
  "supervised.examples": Field(0, low=0),
  "supervised.steps": Field(-1, low=-1),
  "supervised.epochs": Field(1.0, above=0),
  "supervised.batch_size": Field(32, low=1),
  "supervised.learning_rate": Field(1e-3, above=0),
  "supervised.shared": Field(False),
  "rounds": Node(),
  "rounds.count": Field(1, low=1, required=True),
  "rounds.prompts": Field(1, low=1, required=True),
  "rounds.candidates": Field(4, low=1),
  "rounds.max_tokens": Field(128, low=1),
  "rounds.temperature": Field(1.0, above=0),
  "rounds.top_p": Field(1.0, above=0, high=1),
  "rounds.top_k": Field(0, low=0),
  "rounds.repetition_penalty": Field(1.0, above=0),  # these two as in transformers
  "rounds.no_repeat_ngram_size": Field(0, low=0),
  "rounds.steps_per_round": Field(-1, low=-1),
  "rounds.learning_rates": Field(
    (), above=0, empty=True, item=1.0
  ),  # of each round; (): the optimizer's
  "rounds.batch_size": Field(64, low=1),
  # Which rounds' candidates a round learns from beside its own.
  "rounds.memory": Field("none", choices=("none", "previous", "all")),
  # Other prompts each round, or the same: then what is remembered of a prompt joins its candidates.
  "rounds.prompt_split": Field("disjoint", choices=("disjoint", "shared")),
  # The reference: the policy at the start of the round, of the curriculum's stage, or of the run.
  "rounds.reference": Field("round", choices=("round", "stage", "start")),
  # A new optimiser each stage, or one that goes on, its schedule over the steps of all rounds.
  "rounds.optimizer": Field("reset", choices=("reset", "kept")),
  # A round's lists in stages, by their difficulty.
  "rounds.curriculum": Spec("larpo_jax.data", module="curriculum", optional=True),
  "rounds.difficulty": Field(
    "label_gap", choices=("label_gap", "score_gap", "place", "logp_gap", "implicit_gap")
  ),
  # What is trained on of a prompt's candidates; None is lists.whole. A text counts once: dedupe.
  "rounds.lists": Spec("larpo_jax.data", module="lists", optional=True),
  "rounds.dedupe": Field(False),
  "rounds.min_gap": Field(0.0, low=0),  # lists whose rewards differ by less are left out
  # What a judge who errs makes of the lists' labels; None: they are the reward's.
  "rounds.noise": Spec("larpo_jax.data", module="noise", optional=True),
  "rounds.agreed": Field(False),  # lists in which noise changed who is preferred are left out
  "rounds.greedy": Field(False),  # the first of the candidates is the greedy answer
  "rounds.gold": Field(False),  # the world's solution is one more candidate
  # Other policies that answer, too: checkpoints whose tokenizer is the policy's; answers of each.
  "rounds.teacher": Node(),
  "rounds.teacher.paths": Field(("",), required=True),
  "rounds.teacher.candidates": Field(1, low=1),
  "rounds.teacher.temperature": Field(1.0, low=0),
  # So many answers of the data set to the prompt, its best, or of the world's demonstrations.
  "rounds.human": Field(0, low=0),
  # The sources whose candidates lists are built of; () is all. Of several, a candidate of one is
  # better than any of the next, whatever the reward; of one, or of all, the reward says which.
  "rounds.prefer": Field((), choices=grouping.SOURCES, empty=True),
  # What is written in the world's other style once it is ranked: by its source, or the best.
  "rounds.styled": Field((), choices=("best", *grouping.SOURCES), empty=True),
  # What the best candidate is to beat: the others, or what was sampled for another prompt of the
  # round, or for a problem of the world's `unrelated`; scored as answers to this one.
  "rounds.negatives": Field("sampled", choices=("sampled", "other_prompt", "unrelated")),
  # None, or pairs of the policy's first wrong answer to a prompt and a right one: `step_pairs`.
  "rounds.steps": Node(),
  "rounds.steps.unit": Field("step", choices=("step", "answer")),  # answer: the same pairs, whole
  # Who goes on right from before the error: the policy, of so many continuations, or the world, in
  # another surface form.
  "rounds.steps.chosen": Field("self", choices=("self", "oracle")),
  "rounds.steps.continuations": Field(8, low=1),
  "rounds.steps.misplaced": Field(0.0, low=0, high=1),  # share of pairs located after the error
  "rounds.steps.pairs": Field(0, low=0),  # kept of a round, the first ones; 0: all
  # Which candidates are explored, and how much: what kernels read as importance. None: not said.
  "rounds.novelty": Spec("larpo_jax.data", module="novelty", optional=True),
  "world": Spec("larpo_jax.worlds", optional=True),
  "reward": Spec("larpo_jax.rewards", optional=True),
}
