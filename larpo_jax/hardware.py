"""What machines can do: measured here, or as their datasheets have it."""

from __future__ import annotations

import functools
import os
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Chip(NamedTuple):
  """One accelerator."""

  flops: float  # FLOP/s of dense matrices in bfloat16
  memory: float  # bytes
  bandwidth: float  # bytes/s to its memory
  link: float  # bytes/s that it sends to others beside it
  beside: int = 8  # how many are linked so
  network: float = 50e9  # bytes/s that it sends further


class Machine(NamedTuple):
  """What a run is planned for."""

  name: str
  chip: Chip
  devices: int
  share: float  # of the chip's rate that a step's arithmetic reaches


# Of the vendors' datasheets; a link's speed is one way, over all links of a chip. Machines of eight
# GPUs have a network card of 400 Gbit/s for each; a TPU pod is linked as a whole.
CHIPS = {
  "a100": Chip(312e12, 80e9, 2.0e12, 300e9),
  "h100": Chip(989e12, 80e9, 3.35e12, 450e9),
  "h200": Chip(989e12, 141e9, 4.8e12, 450e9),
  "v4": Chip(275e12, 32e9, 1.2e12, 300e9, beside=4096),
  "v5e": Chip(197e12, 16e9, 0.82e12, 200e9, beside=256),
  "v5p": Chip(459e12, 95e9, 2.77e12, 600e9, beside=8960),
  "v6e": Chip(918e12, 32e9, 1.64e12, 448e9, beside=256),
}
SHARE = {"cpu": 0.5, "accelerator": 0.4}  # measured in docs/performance.md; an assumption
KINDS = {"v5 lite": "v5e", "v6 lite": "v6e", "v5": "v5p"}  # as jax calls TPUs, where it differs


def chip_of(kind: str) -> Chip | None:
  """The datasheet of a device of that kind, as jax names it, such as "NVIDIA H100 80GB HBM3"."""
  text = kind.lower()
  named = [name for word, name in KINDS.items() if word in text]
  named += [name for name in CHIPS if name in text]
  return CHIPS[named[0]] if named else None


def machine(name: str, devices: int, share: float) -> Machine:
  """The machine that flags describe; that of this process without a chip. Raises ValueError."""
  if name and name not in CHIPS:
    raise ValueError(f"no chip {name!r}; there are: {', '.join(CHIPS)}")
  devices = devices or jax.device_count()
  if name:
    return Machine(name, CHIPS[name], devices, share or SHARE["accelerator"])
  here = chip_of(jax.devices()[0].device_kind)
  if here is not None:
    return Machine(jax.devices()[0].device_kind, here, devices, share or SHARE["accelerator"])
  cpu = this_cpu()  # devices of a CPU share it
  cpu = cpu._replace(flops=cpu.flops / devices, memory=cpu.memory / devices)
  return Machine("cpu", cpu, devices, share or SHARE["cpu"])


def this_cpu() -> Chip:
  """This machine as one chip: its matmul rate in float32, measured, and its memory.

  What it reads and sends a second is not measured: 20 GB/s stands for both.
  """
  memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
  return Chip(peak_flops(jnp.dtype(jnp.float32), size=2048), memory, 20e9, 20e9)


_measuring = threading.Lock()  # so that runs side by side do not measure each other


def peak_flops(dtype: jnp.dtype, *, size: int | None = None, repeats: int = 5) -> float:
  """FLOP/s of the best of a few square matmuls, over all devices of the run.

  Measured rather than looked up, so that utilisation is the share of what this machine really
  gives; once a process. size is the matrix side; the default takes well under a second.
  """
  with _measuring:
    return _peak_flops(dtype, size, repeats)


@functools.cache
def _peak_flops(dtype: jnp.dtype, size: int | None, repeats: int) -> float:
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
