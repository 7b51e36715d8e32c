"""Checkpoints that are whole or are not loaded."""

from larpo_jax.checkpoints.store import Restored, Store

__all__ = ["Restored", "Store"]
