r"""Answers of a model to a benchmark's prompts, in the file that the benchmark's judge reads.

    python -m larpo_jax.answer --model runs/mine/export --format alpaca_eval \
      --prompts alpaca_eval.json --output model_outputs.json

The model is a Hugging Face directory: a run's export (adapters are merged there), or any checkpoint
of a known architecture. The same command again goes on from OUTPUT.partial where it was stopped.
docs/evaluation.md says what is read and written for each benchmark, and what is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys

from larpo_jax import compiler
from larpo_jax.answer import alpaca_eval, arena_hard, mixeval

FORMATS = {"alpaca_eval": alpaca_eval, "arena_hard": arena_hard, "mixeval": mixeval}


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the file; a user's mistake ends in one sentence and exit code 1."""
  options = _parser().parse_args(argv)
  try:
    run(options)
  except (ValueError, OSError) as error:
    print(f"larpo_jax: error: {error}", file=sys.stderr)
    return 1
  return 0


def run(options: argparse.Namespace) -> None:
  """Reads, samples and writes; raises ValueError or OSError in one sentence."""
  from larpo_jax import pretrained, workdir  # jax, once the command line is right
  from larpo_jax.answer import sampled

  benchmark = FORMATS[options.format]
  asked = benchmark.read(options.prompts)
  if not asked:
    raise ValueError(f"{options.prompts} holds no prompts")
  if options.output.exists():
    raise ValueError(f"{options.output} is there already: move it away, or give another --output")
  stem = options.output.stem if options.format == "arena_hard" else ""
  name = options.name or stem or pathlib.Path(os.path.abspath(options.model)).name
  if stem and name != stem:
    raise ValueError(f"Arena-Hard's judge looks for {name} in {name}.jsonl: give that as --output")
  loaded = pretrained.load(
    options.model,
    dtype=options.dtype,
    tokenizer=options.tokenizer,
    chat_template=options.chat_template,
  )
  shaped = dict(max_tokens=options.max_tokens, chat=options.chat)
  prompts = sampled.encoded(
    loaded,
    [question.text for question in asked],
    system=options.system,
    overlong=options.overlong,
    **shaped,
  )
  options.output.parent.mkdir(parents=True, exist_ok=True)
  partial = options.output.with_name(f"{options.output.name}.partial")
  drawing = {key: getattr(options, key) for key in ("batch_size", "seed", "temperature")}
  drawing |= dict(top_k=options.top_k, top_p=options.top_p)
  texts = sampled.answers(loaded, prompts, partial, **drawing, **shaped)
  workdir.write_text(options.output, benchmark.write(asked, texts, name))
  partial.unlink()
  print(f"wrote {len(texts)} answers of {name} to {options.output}")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m larpo_jax.answer",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--model", required=True, help="a Hugging Face directory")
  add("--prompts", required=True, help="the benchmark's own file of prompts")
  add("--format", required=True, choices=sorted(FORMATS))
  add("--output", required=True, type=pathlib.Path, help="what is written")
  add("--name", default="", help="what the model is called; default: its directory's name")
  add("--max_tokens", type=int, default=2048, help="where an answer is cut")
  add("--temperature", type=float, default=0.0, help="0, the default, is greedy")
  add("--top_k", type=int, default=0, help="0 keeps all tokens")
  add("--top_p", type=float, default=1.0)
  add("--seed", type=int, default=0)
  add("--batch_size", type=int, default=16, help="prompts at a time; changes speed and memory only")
  add("--chat", action=argparse.BooleanOptionalAction, default=True, help="the chat template")
  add("--system", default="", help="a system's turn before the prompt")
  add("--chat_template", default="", help="another template, or the file that holds it")
  add("--tokenizer", default="", help="another tokenizer's directory")
  add("--overlong", choices=("error", "truncate"), default="error", help="too long a prompt")
  add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
  return parser


if __name__ == "__main__":
  compiler.set_flags(os.environ)
  sys.exit(main())
