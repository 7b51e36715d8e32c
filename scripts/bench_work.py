"""The common work of the benchmarks: where it lies, and its weights and rows as this project's.

The work itself (specs, weights, rows, FLOP counts, clocks) is a directory of its own that every
side reads, so that all of them train the same weights on the same tokens: `workload.py`,
`measure.py`, `specs/*.json`, and the scripts of the peers. It is found as `--bench DIR`, else
`$LARPO_BENCH`, else `../shared/bench` beside this repository. `bench_train.py` and
`bench_generate.py` read it through here.

Weights go through a Hugging Face directory and rows through the memory-mapped store, which is what
a run reads: nothing reaches the model or the loop by a way that a user's does not.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import safetensors.numpy

from larpo_jax.data import store
from larpo_jax.data.candidates import Tokens
from larpo_jax.data.problems import Report
from larpo_jax.models import huggingface

ROOT = pathlib.Path(__file__).resolve().parents[1]
NEEDED = ("workload.py", "measure.py", "specs")
PAD, BOS, EOS = 0, 1, 2  # the rows' tokens begin at 3
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}


def find(given: str | None = None) -> pathlib.Path:
  """The directory of the common work; SystemExit that says how to name it where it is missing."""
  named = given or os.environ.get("LARPO_BENCH")
  directory = pathlib.Path(named) if named else ROOT.parent / "shared" / "bench"
  lacks = [name for name in NEEDED if not (directory / name).exists()]
  if lacks:
    raise SystemExit(
      f"no benchmark in {directory}: it lacks {', '.join(lacks)}; put the common work there, or "
      "name its directory with --bench DIR or LARPO_BENCH"
    )
  return directory.resolve()


def parser(page: str) -> argparse.ArgumentParser:
  """What every benchmark's command line has; page is the script's docstring."""
  found = argparse.ArgumentParser(
    description=page, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  found.add_argument("spec", help="a file, or the name of one of the specs of the common work")
  found.add_argument("--bench", metavar="DIR", help="the common work, else $LARPO_BENCH")
  found.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=JSON")
  found.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  found.add_argument("--model", action="append", default=[], metavar="KEY=VALUE")
  return found


def modules(directory: pathlib.Path, *names: str) -> list[Any]:
  """Modules of the common work, imported from where it lies."""
  if str(directory) not in sys.path:
    sys.path.insert(0, str(directory))
  return [importlib.import_module(name) for name in names]


def script(directory: pathlib.Path, name: str) -> Any:
  """A script of the common work as a module, though one of the same name is here as well."""
  spec = importlib.util.spec_from_file_location(f"common_{name}", directory / f"{name}.py")
  assert spec is not None  # a .py file always has one, and its loader
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def spec_path(directory: pathlib.Path, spec: str) -> pathlib.Path:
  """A spec's file: a path, or the name of one of specs/; SystemExit that lists those."""
  for path in (pathlib.Path(spec), directory / "specs" / f"{pathlib.Path(spec).stem}.json"):
    if path.is_file():
      return path
  known = sorted(path.stem for path in (directory / "specs").glob("*.json"))
  raise SystemExit(f"no spec {spec}; give a file, or one of {', '.join(known)}")


def model_options(given: list[str]) -> dict[str, Any]:
  """`remat="full"` and the like, as options of the transformer; a bare word is a text."""
  found: dict[str, Any] = {}
  for item in given:
    key, _, value = item.partition("=")
    try:
      found[key] = json.loads(value)
    except ValueError:
      found[key] = value
  return found


def load(
  directory: pathlib.Path, spec: dict[str, Any], weights: dict[str, np.ndarray], **options: Any
) -> Any:
  """Writes the weights as a Hugging Face checkpoint and reads it: what `huggingface.load` gives."""
  directory.mkdir(parents=True)
  (directory / "config.json").write_text(json.dumps(_config(spec["model"])))
  safetensors.numpy.save_file(weights, directory / "model.safetensors")
  return huggingface.load(directory, **options)


def _config(model: dict[str, Any]) -> dict[str, Any]:
  """The spec's model in the words of config.json."""
  return {
    "model_type": model["arch"],
    "architectures": [ARCHITECTURES[model["arch"]]],
    "vocab_size": model["vocab"],
    "hidden_size": model["hidden"],
    "intermediate_size": model["intermediate"],
    "num_hidden_layers": model["layers"],
    "num_attention_heads": model["heads"],
    "num_key_value_heads": model["kv_heads"],
    "head_dim": model["head_dim"],
    "hidden_act": "silu",
    "rms_norm_eps": model["rms_eps"],
    "rope_theta": model["rope_theta"],
    "tie_word_embeddings": model["tie_embeddings"],
    "max_position_embeddings": 4096,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
  }


def tokenized(directory: pathlib.Path, batches: list[list[dict[str, Any]]]) -> store.TokenizedData:
  """The groups of all batches, in order, as rows on disk; response 0 has the highest label."""
  groups = [group for batch in batches for group in batch]
  with store.Writer(directory) as writer:
    for source, group in enumerate(groups):
      responses = [np.asarray(ids, np.int32) for ids in group["responses"]]
      masks = [np.ones(len(ids), bool) for ids in responses]
      labels = [float(len(responses) - 1 - k) for k in range(len(responses))]
      writer.add(Tokens(np.asarray(group["prompt"], np.int32), responses, masks, labels), source)
    report = Report("the common work", rows=len(groups), kept=len(groups))
    writer.finish(report, pad=PAD, end=EOS)
  data = store.load(directory)
  assert data is not None  # it was written just now
  return data
