"""The settings of a run: what they may be, and what of them may be shown."""

from larpo_jax.config.fields import FIELDS
from larpo_jax.config.flags import parse_flags
from larpo_jax.config.redaction import differences, digest, flat, plain, redact
from larpo_jax.config.validation import validate

__all__ = ["FIELDS", "differences", "digest", "flat", "parse_flags", "plain", "redact", "validate"]
