"""Answers of a model to a benchmark's prompts, in the files that the benchmark's judge reads."""
