"""Flags of XLA that make a run faster; set by what starts one, before jax is imported."""

from __future__ import annotations

from collections.abc import MutableMapping
import importlib.metadata

# XLA:CPU of jaxlib 0.10, in docs/performance.md: Eigen's matrix products take 12 % less CPU time
# than YNNPACK's, and the older loop emitter compiles in half the time and 400 MiB less.
CPU = {
  "0.10.": {
    "--xla_cpu_experimental_ynn_fusion_type": "",
    "--xla_cpu_use_fusion_emitters": "false",
  }
}


def set_flags(environment: MutableMapping[str, str]) -> None:
  """Adds to XLA_FLAGS what it does not say; another version of jaxlib, or device, adds nothing."""
  version, given = importlib.metadata.version("jaxlib"), environment.get("XLA_FLAGS", "")
  flags = next((flags for start, flags in CPU.items() if version.startswith(start)), {})
  added = [f"{name}={value}" for name, value in flags.items() if name not in given]
  environment["XLA_FLAGS"] = " ".join([given, *added]).strip()
