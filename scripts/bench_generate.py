r"""Times sampling on the common work: greedy against a peer's, and lists against single prompts.

    python scripts/bench_generate.py h256_v8k                            # greedy, as the peers do
    python scripts/bench_generate.py h256_v8k --candidates 8 --prompts 2

Greedy, the spec's prompts get the spec's number of new tokens with nothing that ends one early, in
the same weights as the peers': `tokens_sha` is the same as theirs where every token is. Prints one
line of JSON with the peers' fields: `timing` of a call, `first_call_s`, `new_tokens_per_s`,
`tokens_sha`, `peak_rss_mib`.

With `--candidates K` it draws, at temperature 1, K responses to each of `--prompts` N prompts and
then one to each of N x K prompts, in turn. Both write as many tokens, so what is saved is the
prompts. Prints `lists` and `single` with `timing` and `new_tokens_per_s`, and their `ratio`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import functools
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import bench_work
import jax
import numpy as np

from larpo_jax import compiler, sampling, workdir

NO_END = -1  # no token is this one, so every response runs to its full length


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = bench_work.parser(__doc__ or "")
  parser.add_argument("--repeats", type=int, default=8)
  parser.add_argument("--candidates", type=int, default=0, metavar="K")
  parser.add_argument(
    "--prompts", type=int, default=1, metavar="N", help="lists, with --candidates"
  )
  return parser.parse_args(argv)


def load(options: argparse.Namespace, spec: dict[str, Any], workload: Any) -> Any:
  """The model and its parameters, by way of a checkpoint."""
  how = {"dtype": options.dtype, **bench_work.model_options(options.model)}
  with tempfile.TemporaryDirectory() as scratch:
    weights = workload.make_weights(spec)
    return bench_work.load(pathlib.Path(scratch) / "policy", spec, weights, **how)[:2]


def sampler(
  model: Any, params: Any, ids: np.ndarray, *, candidates: int, count: int, temperature: float
) -> Callable[[], np.ndarray]:
  """A call that draws responses to the prompts ids [B, P] and waits for them, [B, K, R]."""
  mask = np.ones(ids.shape, bool)
  draw = functools.partial(
    sampling.sample, model, params, ids.astype(np.int32), mask, jax.random.key(0),
    candidates=candidates, max_tokens=count, eos=NO_END, pad=bench_work.PAD,
    temperature=temperature,
  )  # fmt: skip
  return lambda: np.asarray(draw().response)


def clocked(calls: list[Callable[[], Any]], repeats: int, measure: Any) -> list[dict[str, Any]]:
  """The timing of each call, taken in turn so that all see the same machine."""
  clocks = [measure.StepClock() for _ in calls]
  for _ in range(repeats):
    for call, clock in zip(calls, clocks):
      clock.restart()
      clock.tick()
      call()
      clock.tick()
  return [clock.summary() for clock in clocks]


def greedy(
  options: argparse.Namespace, spec: dict[str, Any], workload: Any, measure: Any, peers: Any
) -> dict[str, Any]:
  """What the peers measure too."""
  count, ids = spec["generate"]["new_tokens"], peers.prompts(spec)
  model, params = load(options, spec, workload)
  call = sampler(model, params, ids, candidates=1, count=count, temperature=0.0)
  began = time.perf_counter()
  tokens = call()[:, 0]
  first = time.perf_counter() - began
  call()
  (timing,) = clocked([call], options.repeats, measure)
  return {
    "variant": f"greedy_{options.dtype}",
    "timing": timing,
    "first_call_s": first,
    "new_tokens_per_s": tokens.size / timing["median_s"],
    "tokens_sha": peers.sha(tokens),
  }


def lists_and_singles(
  options: argparse.Namespace, spec: dict[str, Any], workload: Any, measure: Any, peers: Any
) -> dict[str, Any]:
  """K responses to each of N prompts, and one to each of N x K."""
  K, N, count = options.candidates, options.prompts, spec["generate"]["new_tokens"]
  ids = peers.prompts({**spec, "generate": {**spec["generate"], "batch": N * K}})
  model, params = load(options, spec, workload)
  draw = functools.partial(sampler, model, params, count=count, temperature=1.0)
  calls = [draw(ids[:N], candidates=K), draw(ids, candidates=1)]
  for call in calls:
    call()
  lists, single = clocked(calls, options.repeats, measure)
  rate = lambda timing: N * K * count / timing["median_s"]  # noqa: E731
  return {
    "variant": f"{N}x{K}_{options.dtype}",
    "lists": {"timing": lists, "new_tokens_per_s": rate(lists)},
    "single": {"timing": single, "new_tokens_per_s": rate(single)},
    "ratio": single["median_s"] / lists["median_s"],
  }


def main(argv: list[str] | None = None) -> None:
  """Samples, measures, prints."""
  compiler.set_flags(os.environ)  # as a run does; XLA reads them when it first computes
  options = arguments(argv)
  bench = bench_work.find(options.bench)
  workload, measure = bench_work.modules(bench, "workload", "measure")
  peers = bench_work.script(bench, "bench_generate")
  spec = workload.load_spec(bench_work.spec_path(bench, options.spec), options.set)
  run = lists_and_singles if options.candidates else greedy
  found = {
    "bench": "larpo_jax_generate",
    "spec": spec["name"],
    "options": {"set": options.set, "model": options.model},
    **run(options, spec, workload, measure, peers),
    "peak_rss_mib": measure.peak_rss_mib(),
    "versions": workdir.versions(),
    "hardware": workdir.hardware(),
    "env": measure.environment(),
  }
  print(json.dumps(found), flush=True)


if __name__ == "__main__":
  main()
