"""Preference optimisation of language models in JAX: kernels, sharded steps, experiments."""

__version__ = "0.1.0"
