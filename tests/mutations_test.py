"""The faults of scripts/mutations.py can be planted: their texts stand in the package once."""

import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def mutations():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("mutations")


def test_every_fault_can_be_planted_and_has_tests_that_should_see_it(mutations):
  assert len({fault.what for fault in mutations.FAULTS}) == len(mutations.FAULTS) > 100
  for fault in mutations.FAULTS:
    right = (ROOT / "larpo_jax" / fault.file).read_text()
    assert mutations.planted(right, fault) != right
    assert all(list(ROOT.glob(pattern)) for pattern in fault.tests.split()), fault.what


def test_a_text_that_is_gone_is_said(mutations):
  fault = mutations.FAULTS[0]
  with pytest.raises(ValueError, match="0 times"):
    mutations.planted("", fault)
