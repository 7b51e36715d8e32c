"""This library's models in EleutherAI's lm-evaluation-harness."""
