"""What a run is compiled with: ours where the user says nothing."""

import importlib.metadata

import optax
import pytest
import tiny
import toy

from larpo_jax import compiler, train_step
from larpo_jax.losses import pointwise


@pytest.fixture
def version(monkeypatch):
  return lambda number: monkeypatch.setattr(importlib.metadata, "version", lambda _: number)


CPU = "--xla_cpu_use_fusion_emitters"
GPU = "--xla_gpu_enable_latency_hiding_scheduler"


def test_flags_are_added_to_those_of_the_user(version):
  version("0.10.2")
  for given, said in (
    ({}, f"{CPU}=false {GPU}=true"),
    ({"XLA_FLAGS": "--a=1"}, f"--a=1 {CPU}=false {GPU}=true"),
    ({"XLA_FLAGS": f"{CPU}=true"}, f"{CPU}=true {GPU}=true"),
    ({"XLA_FLAGS": f"{GPU}=false {CPU}=true"}, f"{GPU}=false {CPU}=true"),
  ):
    for _ in range(2):
      compiler.set_flags(given)
      assert given == {"XLA_FLAGS": said}
  assert compiler.large_products("cpu")
  assert compiler.large_products("gpu") is None


def test_a_version_that_may_not_know_them_gets_none(version):
  for number, said in (("0.12.0", f"{GPU}=true"), ("0.9.9", ""), ("0.100.0", "")):
    version(number)
    environment = {}
    compiler.set_flags(environment)
    assert environment == {"XLA_FLAGS": said}
    assert compiler.large_products("cpu") is None


def test_the_step_and_the_scores_are_compiled_with_what_pays_for_large_products(seed, monkeypatch):
  told = []
  monkeypatch.setattr(compiler, "large_products", lambda backend: told.append(backend))
  optimizer, mesh = optax.sgd(0.1), toy.mesh_of()
  parts = dict(model=None, scorer=toy.bigrams, mesh=mesh)
  step = train_step.make_train_step(loss=pointwise.sft, optimizer=optimizer, **parts)
  params = toy.params(seed)
  step.lower(train_step.init(params, optimizer), None, tiny.batch(seed))
  train_step.make_score_step(**parts)
  assert told == ["cpu", "cpu"]
