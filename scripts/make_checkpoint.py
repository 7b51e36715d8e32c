r"""Makes a small language model from text: tokenizer, pre-training, instruction tuning, export.

    python scripts/make_checkpoint.py --out runs/checkpoint --minutes 10

Reads `pretrain_*/train.jsonl.gz` (a `text` a row) and `instruct_sft/train.jsonl.gz` (a `prompt` and
a `response`) under --data, trains a byte-level BPE tokenizer on a sample of them and a Llama-shaped
decoder from nothing, three quarters of the time on the text and a quarter on the instructions, and
writes a Hugging Face directory. Prints the perplexity on the `test` files before and after.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
import math
import os
import pathlib
import time
from typing import Any

import checkpoint_text as text
import jax
import numpy as np
import optax
import tqdm
from transformers import PreTrainedTokenizerFast

from larpo_jax import sharding, train_step
from larpo_jax.losses import pointwise
from larpo_jax.models import config as config_lib
from larpo_jax.models import huggingface, transformer
from larpo_jax.scorers import tokens
from larpo_jax.types import Batch, LogProbs

STAGES = {"pre-training": "pretrain_*", "instructions": "instruct_sft"}  # and their folders
PRETRAIN_SHARE = 0.75
WARM_UP = 0.03  # share of the run
HELD_OUT_WINDOWS = 64


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line."""
  here = pathlib.Path(__file__).resolve().parents[1]
  data = os.environ.get("LARPO_DATA", here.parent / "shared" / "data")
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(data))
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--minutes", type=float, default=10.0, help="of training")
  parser.add_argument("--steps", type=int, help="instead of --minutes: the same bits each time")
  parser.add_argument("--vocab", type=int, default=4096)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--layers", type=int, default=6)
  parser.add_argument("--window", type=int, default=256, help="tokens")
  parser.add_argument("--batch", type=int, default=4, help="windows a step")
  parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args(argv)
  if options.minutes <= 0 or (options.steps is not None and options.steps <= 0):
    parser.error("--minutes and --steps must be above 0")
  return options


def as_batch(windows: list[text.Marked], bos: int, size: int, count: int) -> Batch:
  """K = 1 lists: the prompt is one <bos>, the response a window; short of count, weight 0."""
  response = np.zeros((count, 1, size), np.int32)
  mask = np.zeros((count, 1, size), np.float32)
  for row, (ids, marks) in enumerate(windows):
    response[row, 0, : len(ids)] = ids
    mask[row, 0, : len(ids)] = marks
  real = np.arange(count) < len(windows)
  return Batch(
    prompt=np.full((count, 1, 1), bos, np.int32),
    prompt_mask=np.ones((count, 1, 1), bool),
    response=response,
    response_mask=mask,
    label=np.ones((count, 1), np.float32),
    valid=real[:, None],
    weight=real.astype(np.float32),
    row=np.where(real, np.arange(count), -1).astype(np.int32),
  )


def model_config(options: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> text.Row:
  """config.json of a Llama-shaped decoder with heads of 32 and tied embeddings."""
  if options.width % 32:
    raise ValueError(f"--width {options.width} must be a multiple of 32, the size of a head")
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": len(tokenizer),
    "hidden_size": options.width,
    "intermediate_size": 32 * round(options.width * 8 / 3 / 32),
    "num_hidden_layers": options.layers,
    "num_attention_heads": options.width // 32,
    "num_key_value_heads": options.width // 32,
    "head_dim": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": tokenizer.bos_token_id,
    "eos_token_id": tokenizer.eos_token_id,
    "pad_token_id": tokenizer.pad_token_id,
  }


def spread(windows: list[text.Marked], most: int) -> list[text.Marked]:
  """At most that many of them, evenly over the whole."""
  return windows[:: max(1, math.ceil(len(windows) / most))]


def perplexity(scored: Iterable[LogProbs]) -> float:
  """exp of the mean negative log-prob of the tokens that count."""
  total = count = 0.0
  for scores in scored:
    total += float(np.sum(scores.token))
    count += float(np.sum(scores.mask))
  return math.exp(-total / count)


def learning_rate(share: float, peak: float) -> float:
  """Linear warm-up, then a cosine to a twentieth of the peak, by the share of the run so far."""
  if share < WARM_UP:
    return peak * share / WARM_UP
  cosine = 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
  return peak * (0.05 + 0.95 * cosine)


def fit(
  state: Any,
  step: Callable[[Any, list[text.Marked]], tuple[Any, Any]],
  stages: dict[str, Iterator[list[text.Marked]]],
  options: argparse.Namespace,
) -> Any:
  """Runs both stages for the minutes, or the steps, that were asked for."""
  late, done, began, words = None, 0, time.perf_counter(), options.batch * options.window
  layout = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
  with tqdm.tqdm(total=100, bar_format=layout) as bar:
    while True:
      spent = time.perf_counter() - began
      share = done / options.steps if options.steps else spent / (60 * options.minutes)
      if share >= 1:
        return state
      name = "pre-training" if share < PRETRAIN_SHARE else "instructions"
      rate = np.float32(learning_rate(share, options.learning_rate))
      opt_state = optax.tree_utils.tree_set(state.opt_state, learning_rate=rate)
      state, metrics = step(state.replace(opt_state=opt_state), next(stages[name]))
      if late is not None:  # of the step before, so that the device need not wait
        speed = f"{(done - 1) * words / spent:,.0f} tokens/s"
        bar.set_postfix_str(f"{name}, loss {float(late):.3f}, {done} steps, {speed}", refresh=False)
        bar.update(100 * share - bar.n)
      else:
        jax.block_until_ready(metrics)  # compiled: the clock starts here
        began = time.perf_counter()
      late, done = metrics["loss"], done + 1


def compile_steps(graphdef: Any) -> tuple[Any, Any, Any, Any]:
  """The mesh, the optimizer, the train step and the score step; `fit` sets the learning rate."""
  mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.inject_hyperparams(optax.adamw)(learning_rate=0.0, b2=0.95, weight_decay=0.1),
  )
  score = train_step.make_score_step(model=graphdef, scorer=tokens.causal, mesh=mesh)
  step = train_step.make_train_step(
    model=graphdef, scorer=tokens.causal, loss=pointwise.sft, optimizer=optimizer, mesh=mesh
  )
  return mesh, optimizer, step, score


def main(argv: list[str] | None = None) -> None:
  """Reads, trains, measures, writes."""
  options = arguments(argv)
  rows = {name: text.read(options.data, files, "train") for name, files in STAGES.items()}
  tokenizer = text.train_tokenizer(text.sample(rows, options.seed), options.vocab)
  config = config_lib.read(model_config(options, tokenizer))
  graphdef, params = transformer.create(config, jax.random.key(options.seed))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(f"{count / 1e6:.2f}M parameters, {len(tokenizer)} tokens in the vocabulary", flush=True)

  prepare = {
    "pre-training": lambda rows: text.cut(text.encode_text(tokenizer, rows), options.window),
    "instructions": lambda rows: text.pack(text.encode_chat(tokenizer, rows), options.window),
  }
  held_out = {
    name: spread(prepare[name](text.read(options.data, files, "test")), HELD_OUT_WINDOWS)
    for name, files in STAGES.items()
  }
  mesh, optimizer, step, score = compile_steps(graphdef)

  def put(windows: list[text.Marked]) -> Batch:
    made = as_batch(windows, tokenizer.bos_token_id, options.window, options.batch)
    return sharding.put(made, mesh)

  def report(when: str, params: Any) -> None:
    for name, windows in held_out.items():
      value = perplexity(score(params, put(group)) for group in text.groups(windows, options.batch))
      print(f"held-out perplexity {when}, {name}: {value:.2f}", flush=True)

  report("before", params)
  stages = {
    name: text.groups(text.stream(rows[name], prepare[name], options.seed), options.batch)
    for name in STAGES
  }
  state = train_step.init(params, optimizer)
  state = fit(state, lambda state, windows: step(state, None, put(windows)), stages, options)
  report("after", state.params)
  huggingface.save(options.out, state.params, config, tokenizer=tokenizer)
  print(f"wrote {options.out}", flush=True)


if __name__ == "__main__":
  main()
