"""The plan of a config: what it says of memory, time and what to change."""

import io
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from rich.console import Console
import safetensors.numpy
import tiny_checkpoint

from experiments import common
from experiments.real import ranked_answers
from larpo_jax import config as configs
from larpo_jax import hardware, plan
from larpo_jax.plan import rounds, tables

MESH = dict(data=1, fsdp=1, tensor=1)
ROOT = pathlib.Path(__file__).parent.parent
SHAPE = dict(
  model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
  num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return tiny_checkpoint.make(tmp_path_factory.mktemp("checkpoint"))


def config(**changes):
  """Rounds in the arithmetic world, with a model of eight billion parameters."""
  tree = common.base().to_dict() | dict(
    model=dict(path="", shape=SHAPE, dtype="bfloat16"),
    world=dict(name="arithmetic"),
    reward=dict(name="rules.brevity"),
    rounds=dict(count=1, prompts=64, candidates=8, max_tokens=512),
    steps=100,
  )
  tree["data"] |= dict(batch_size=64, max_prompt=512)
  return configs.validate(ml_collections.ConfigDict({**tree, **changes}))


def told(what, machine, tokens=None):
  out = io.StringIO()
  tables.show(plan.job_of(what, machine, tokens), Console(file=out, width=120))
  return out.getvalue()


def of(text, name):
  return float(re.search(rf"{name}\D+([\d.]+)", text)[1])


def test_a_mesh_splits_what_it_should():
  whole = told(config(), hardware.machine("h200", 1, 0))
  split = told(config(mesh=dict(data=1, fsdp=8, tensor=1)), hardware.machine("h200", 8, 0))
  billion = 8.03  # of Llama 3 8B
  for text, parts in ((whole, 1), (split, 8)):
    held = 4 * billion * 1e9 / parts / 2**30
    assert of(text, "parameters  ") == pytest.approx(held, rel=0.01)
    assert of(text, "optimizer  ") == pytest.approx(2 * held, rel=0.01)


def test_what_does_not_fit_says_so_and_what_would():
  text = told(config(), hardware.machine("h100", 16, 0))
  assert "does not fit." in text
  flags = dict(re.findall(r"--config\.([\w.]+)=(\w+)", text))
  better = config(
    mesh={axis: int(flags[f"mesh.{axis}"]) for axis in ("data", "fsdp", "tensor")},
    accumulation=int(flags["accumulation"]),
  )
  better.model.remat = flags["model.remat"]
  text = told(better, hardware.machine("h100", 16, 0))
  assert "does not fit." not in text
  assert of(text, "together") < 0.92 * of(text, "there is")


def test_a_round_is_planned_with_the_models_that_it_reads(checkpoint, tmp_path):
  """Teachers while it samples, the reward model all the time, neither where it is not there."""
  asked = config(model=dict(path=str(checkpoint), shape={}, dtype="float32"))
  asked.tokenizer.path = str(checkpoint)
  asked.rounds.update(count=1, prompts=64, candidates=8, max_tokens=64, batch_size=64)
  machine = hardware.machine("h100", 1, 0)
  table = lambda job: rounds.sampling(  # noqa: E731
    job.config, job.model.architecture, plan.held(job, MESH), MESH, job.works[0]
  )
  alone = table(plan.job_of(asked, machine, None))
  weights = sum(
    x.size for x in safetensors.numpy.load_file(checkpoint / "model.safetensors").values()
  )
  assert alone["parameters"] == 4 * weights
  assert "optimizer" not in alone
  asked.rounds.teacher = dict(paths=(str(checkpoint), str(tmp_path / "no")), candidates=8)
  asked.rounds.teacher.temperature = 1.0
  asked.reward = dict(name="models.pairwise", path=str(checkpoint))
  job = plan.job_of(configs.validate(asked), machine, None)
  found = table(job)
  assert found["a teacher"] == found["reward model"] == 4 * weights
  assert sum(found.values()) - sum(alone.values()) == 8 * weights
  text = told(asked, machine)
  assert "while a round samples" in text
  assert f"{tmp_path / 'no'} is not there" in text


def test_a_reward_model_has_no_logits(checkpoint):
  asked = config(model=dict(path=str(checkpoint), shape={}, dtype="float32"))
  asked.tokenizer.path, asked.data.train.path = str(checkpoint), "somewhere"
  asked.world = asked.rounds = asked.reward = None
  machine = hardware.machine("h100", 1, 0)
  language = plan.job_of(configs.validate(asked), machine, (64, 64))
  asked.scorer = dict(name="rewards.scalar")
  asked.loss = dict(name="reward_models.bradley_terry")
  scalar = plan.job_of(configs.validate(asked), machine, (64, 64))
  assert language.works[0].scored == 2 * 64
  assert scalar.works[0].scored == 0
  size = lambda job: sum(x.size for x in jax.tree.leaves(job.model.params))  # noqa: E731
  head = scalar.model.architecture.hidden_size
  assert size(scalar) == size(language) + head, "the unembedding is tied"
  assert plan.held(scalar, MESH)["parameters"] == 4 * size(scalar)


def test_nothing_helps_a_single_small_chip():
  text = told(config(), hardware.machine("v5e", 1, 0))
  assert "use more" in text.replace("\n", " ")


def test_adapters_leave_little_state():
  node = dict(shape=SHAPE, dtype="bfloat16", lora=dict(rank=8))
  text = told(config(model=node), hardware.machine("h100", 1, 0))
  assert of(text, "optimizer  ") < 0.5
  assert of(text, "parameters  ") == pytest.approx(4 * 8.05e9 / 2**30, rel=0.02)


def test_twice_the_devices_take_half_the_time():
  slow, fast = (told(config(), hardware.machine("h200", n, 0)) for n in (1, 2))
  alone, together = (of(text, "takes about") for text in (slow, fast))
  assert 0.5 < together / alone < 0.6


def test_the_data_is_planned_as_it_will_be_batched(checkpoint, shared_data, tmp_path, monkeypatch):
  monkeypatch.setenv("LARPO_CACHE", str(tmp_path))
  monkeypatch.setenv("LARPO_DATA", str(shared_data))
  command = [
    sys.executable, "-m", "larpo_jax.plan",
    f"--config={ROOT}/experiments/real/ranked_answers.py:oasst_ranked",
    f"--config.model.path={checkpoint}", "--chip=h100", "--devices=2",
  ]  # fmt: skip
  ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  assert ended.returncode == 0, ended.stderr[-2000:]
  room = of(ended.stdout, "tokens,")
  longest = of(ended.stdout, "at most")
  assert 0 < longest <= 96
  assert 0 < room < longest + 8 * 96
  assert "fsdp=2" in ended.stdout


def test_an_epoch_is_whole_however_few_batches_are_looked_at(checkpoint, shared_data, monkeypatch):
  page = ranked_answers.get_config("oasst_ranked")
  page.model.path = str(checkpoint)
  page.data.train.path = str(shared_data / "oasst_ranked" / "train.jsonl.gz")
  page = configs.validate(page)
  machine = hardware.machine("h100", 1, 0)
  jobs = [plan.job_of(page, machine, None)]
  monkeypatch.setattr(plan, "LONGEST", 1)
  jobs.append(plan.job_of(page, machine, None))
  assert [len(job.works) for job in jobs] == [jobs[0].per_epoch, 1]
  assert jobs[0].per_epoch == jobs[1].per_epoch > 1


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--chip=h900"], "no chip 'h900'"),
    (["--chip=h100", "--devices=3"], "does not fit 3 device"),
    (["--tokens=512"], "two lengths"),
  ],
)
def test_mistakes_are_said_in_a_sentence(flags, message):
  path = f"--config={ROOT}/experiments/quickstart.py"
  mesh = ["--config.mesh.data=2"]
  command = [sys.executable, "-m", "larpo_jax.plan", path, *mesh, *flags]
  ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  assert ended.returncode == 1
  assert message in ended.stderr
  assert "Traceback" not in ended.stderr


def test_the_devices_that_are_here_are_the_default():
  machine = hardware.machine("", 0, 0)
  assert machine.devices == jax.device_count()
  assert machine.name == "cpu" or machine.chip.flops > 1e13


def test_the_matmul_rate_is_measured_once_a_process():
  first = hardware.peak_flops(jnp.dtype(jnp.float32), size=64)
  assert first == hardware.peak_flops(jnp.dtype(jnp.float32), size=64), "two would differ"
  assert first != hardware.peak_flops(jnp.dtype(jnp.float32), size=32)
