"""What the machine can do: the matmul rate that utilisation is measured against."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp


def peak_flops(dtype: jnp.dtype, *, size: int | None = None, repeats: int = 5) -> float:
  """FLOP/s of the best of a few square matmuls, over all devices of the run.

  Measured rather than looked up, so that utilisation is the share of what this machine really
  gives. size is the matrix side; the default takes well under a second.
  """
  on_cpu = jax.default_backend() == "cpu"
  size = size or (1024 if on_cpu else 8192)
  left = jnp.ones((size, size), dtype)
  multiply = jax.jit(lambda a, b: a @ b)
  multiply(left, left).block_until_ready()
  best = float("inf")
  for _ in range(repeats):
    start = time.perf_counter()
    multiply(left, left).block_until_ready()
    best = min(best, time.perf_counter() - start)
  # Fake CPU devices share one machine; real accelerators add up.
  return 2.0 * size**3 / best * (1 if on_cpu else jax.device_count())
