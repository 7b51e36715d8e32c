"""What XLA is told beyond its defaults, where that was measured to pay: docs/performance.md.

Only jaxlib 0.10 on CPUs is told anything: another version may not know the words.
"""

from __future__ import annotations

from collections.abc import MutableMapping
import importlib.metadata

KNOWN = "0.10."
# The older loop emitter compiles in two thirds of the time and 400 MiB less.
FLAGS = {"--xla_cpu_use_fusion_emitters": "false"}
# Eigen multiplies large matrices in 15 % less time than YNNPACK, those of decoding in 25 % more.
LARGE_PRODUCTS = {"xla_cpu_experimental_ynn_fusion_type": ""}


def set_flags(environment: MutableMapping[str, str]) -> None:
  """Adds to XLA_FLAGS what it does not say; before jax computes anything."""
  given = environment.get("XLA_FLAGS", "")
  flags = FLAGS if importlib.metadata.version("jaxlib").startswith(KNOWN) else {}
  added = [f"{name}={value}" for name, value in flags.items() if name not in given]
  environment["XLA_FLAGS"] = " ".join([given, *added]).strip()


def large_products(backend: str) -> dict[str, str] | None:
  """jax.jit's compiler_options for a program of large matrix products on that backend."""
  known = backend == "cpu" and importlib.metadata.version("jaxlib").startswith(KNOWN)
  return LARGE_PRODUCTS if known else None
