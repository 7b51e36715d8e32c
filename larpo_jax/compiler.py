"""What XLA is told beyond its defaults: docs/performance.md has what was measured of it.

Only versions of jaxlib that are known to know a word are told it: another one would not start.
"""

from __future__ import annotations

from collections.abc import MutableMapping
import importlib.metadata

KNOWN = "0.10."
FLAGS = {  # name: value, versions
  # The older loop emitter compiles in two thirds of the time and 400 MiB less.
  "--xla_cpu_use_fusion_emitters": ("false", (KNOWN,)),
  # Sends while it computes; not measured here.
  "--xla_gpu_enable_latency_hiding_scheduler": ("true", (KNOWN, "0.12.")),
}
# Eigen multiplies large matrices in 15 % less time than YNNPACK, those of decoding in 25 % more.
LARGE_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": ""}


def set_flags(environment: MutableMapping[str, str]) -> None:
  """Adds to XLA_FLAGS what it does not say; before jax computes anything."""
  given = environment.get("XLA_FLAGS", "")
  version = importlib.metadata.version("jaxlib")
  added = [
    f"{name}={value}"
    for name, (value, versions) in FLAGS.items()
    if version.startswith(versions) and name not in given
  ]
  environment["XLA_FLAGS"] = " ".join([given, *added]).strip()


def large_products(backend: str) -> dict[str, str] | None:
  """jax.jit's compiler_options for a program of large matrix products on that backend."""
  known = backend == "cpu" and importlib.metadata.version("jaxlib").startswith(KNOWN)
  return LARGE_PRODUCTS if known else None
