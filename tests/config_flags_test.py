"""Settings on the command line: typos and what a config lacks are explained."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from experiments import common
from larpo_jax.config import flags

ROOT = Path(__file__).parent.parent

REAL = "--config=experiments/real/preference_pairs.py"
MAIN = """
import sys
from absl import app, flags
from ml_collections import config_flags
from larpo_jax import config
_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
def main(argv):
  print("beta", _CONFIG.value.loss.beta, config.validate(_CONFIG.value).rounds.count, argv[1:])
app.run(main, flags_parser=config.parse_flags)
"""


@pytest.mark.parametrize(
  ("words", "code", "said"),
  [
    (["--config.loss.beta=0.5", "--config.rounds.count=2", "stray"], 0, "beta 0.5 2 ['stray']"),
    (["--config.optimizer.learning_rat=1"], 1, "did you mean 'optimizer.learning_rate'?"),
    (["--config.loss.label_smoothing=0.1"], 1, "config's loss has no 'label_smoothing'"),
    (["--config.loss.beta=0.5", "--config.loss.bta=1"], 1, "--config.loss.bta: this config's loss"),
    ([REAL, "--config.seed=3", "--config.supervised.steps=1"], 1, "write config.supervised in its"),
    (["--config.seed=3", "--config.data.test.reader.name=x"], 1, "data.test.reader has no 'name'"),
    (["--config=absent.py", "--config.seed=3"], 1, "No such file or directory: 'absent.py'"),
  ],
)
def test_overrides(words, code, said):
  process = subprocess.run(
    [sys.executable, "-c", MAIN, "--config=experiments/quickstart.py", *words],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  assert process.returncode == code, process.stderr
  assert said in process.stdout + process.stderr
  assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
  ("word", "said"),
  [
    ("--config.optimizer.bb=1", "--config.optimizer.bb is unknown (did you mean 'optimizer.b"),
    ("--config.lerning_rate=1", "did you mean 'optimizer.learning_rate'?"),
    ("--config.data.trian.path=x", "did you mean 'data.train.path'?"),
    ("--config.supervised.steps=3", "write config.supervised in its file first"),
    ("--config.loss.bta=3", "this config's loss has no 'bta'"),
  ],
)
def test_a_typo_on_the_command_line_is_explained(word, said):
  config = common.base()
  right = ["--config.seed=1", "--config.loss.beta=0.5", "--config.data.train.path=x", "--workdir=y"]
  for words in ([word], [word, *right], [*right, word]):
    explained = flags.explain(["main", "--config=x.py", *words], config)
    assert explained.startswith(word.split("=")[0])
    assert said in explained
  assert flags.explain(["main", "--config=x.py", *right, "--noconfig.export"], config) is None
