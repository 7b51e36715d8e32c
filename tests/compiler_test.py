"""What a run is compiled with: ours where the user says nothing."""

import importlib.metadata

import pytest

from larpo_jax import compiler


@pytest.fixture
def version(monkeypatch):
  return lambda number: monkeypatch.setattr(importlib.metadata, "version", lambda _: number)


def test_flags_are_added_to_those_of_the_user(version):
  version("0.10.2")
  environment = {"XLA_FLAGS": "--a=1 --xla_cpu_use_fusion_emitters=true"}
  compiler.set_flags(environment)
  said = environment["XLA_FLAGS"].split()
  assert said[:2] == ["--a=1", "--xla_cpu_use_fusion_emitters=true"]
  assert said[2:] == ["--xla_cpu_experimental_ynn_fusion_type="]
  compiler.set_flags(environment)
  assert environment["XLA_FLAGS"].split() == said


def test_a_version_that_may_not_know_them_gets_none(version):
  version("0.12.0")
  environment = {}
  compiler.set_flags(environment)
  assert environment == {"XLA_FLAGS": ""}
