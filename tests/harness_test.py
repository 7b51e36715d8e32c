"""The model of lm-evaluation-harness says what the harness's own PyTorch model says."""

import json
import os

import numpy as np
import pytest
import tiny_answers

if os.environ.get("LARPO_REQUIRE_ALL") != "1":  # then its absence is an error
  pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
import lm_eval.__main__
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from larpo_jax.harness import __main__ as command
from larpo_jax.harness.model import LarpoLM

LENGTH = 48  # tokens, of bytes: some texts are longer


@pytest.fixture(scope="module")
def directory(tmp_path_factory, module_seed):
  path = tmp_path_factory.mktemp("model") / "tiny"
  return tiny_answers.make(path, module_seed, max_position_embeddings=LENGTH)


@pytest.fixture(scope="module")
def ours(directory):
  return LarpoLM(str(directory), batch_size=3)


@pytest.fixture(scope="module")
def theirs(directory, torch_peer):
  from lm_eval.models.huggingface import HFLM

  return HFLM(pretrained=str(directory), batch_size=1, device="cpu", dtype="float32")


def words(rng, low, high):
  return "".join(rng.choice(list("ab c\n"), rng.integers(low, high)))


def requests(kind, arguments):
  return [Instance(kind, {}, each, at) for at, each in enumerate(arguments)]


def pairs(rng, count=7):
  """Contexts that are empty, short, long, and with spaces at their end."""
  drawn = [(words(rng, 1, 60) + "x ", words(rng, 1, 12) + "y") for _ in range(count)]
  return [("", "some text"), ("a  ", " b"), ("x" * LENGTH, "y"), *drawn]


def test_log_likelihoods_are_those_of_pytorch(ours, theirs, seed):
  asked = requests("loglikelihood", pairs(np.random.default_rng(seed)))
  mine, other = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
  np.testing.assert_allclose([x for x, _ in mine], [x for x, _ in other], atol=1e-4, rtol=1e-5)
  assert [greedy for _, greedy in mine] == [greedy for _, greedy in other]


def test_rolling_log_likelihoods_are_those_of_pytorch(ours, theirs, seed):
  rng = np.random.default_rng(seed)
  texts = [("a",), (words(rng, 3 * LENGTH, 4 * LENGTH),), ("b" * LENGTH,), ("",)]
  asked = requests("loglikelihood_rolling", texts)
  mine, other = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked)
  np.testing.assert_allclose(mine, other, atol=1e-4, rtol=1e-5)
  assert mine[-1] == 0.0


def test_answers_are_those_of_pytorch(ours, theirs, seed):
  rng = np.random.default_rng(seed)
  contexts = [words(rng, 1, 60) + "x" for _ in range(4)]
  whole = {"until": [], "max_gen_toks": 12}
  asked = requests("generate_until", [(text, whole) for text in contexts])
  mine = ours.generate_until(asked)
  assert mine == theirs.generate_until(asked, disable_tqdm=True)
  assert len(set(mine)) > 1, "the model says the same to everything, so this compares nothing"
  stop = next(character for character in "".join(mine) if character.isascii())
  asked = requests("generate_until", [(t, {"until": [stop], "max_gen_toks": 12}) for t in contexts])
  assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)
  assert [text.split(stop)[0] for text in mine] == ours.generate_until(asked)


def test_what_greedy_decoding_writes_is_greedy(ours, seed):
  """And the same with its last token changed is not."""
  context = words(np.random.default_rng(seed), 5, 20) + "x"
  ids = ours.tok_encode(context)
  written = []
  for _ in range(4):
    scores = ours._loglikelihood_tokens([(None, ids + written, [t]) for t in range(261)])
    assert sum(greedy for _, greedy in scores) == 1
    assert np.logaddexp.reduce([score for score, _ in scores]) == pytest.approx(0, abs=1e-4)
    written.append(int(np.argmax([score for score, _ in scores])))
  other = [*written[:-1], (written[-1] + 1) % 261]
  [(_, same), (_, changed)] = ours._loglikelihood_tokens([(None, ids, written), (None, ids, other)])
  assert (same, changed) == (True, False)


def test_batches_change_nothing(ours, directory, seed):
  asked = requests("loglikelihood", pairs(np.random.default_rng(seed)))
  other = LarpoLM(str(directory), batch_size=9).loglikelihood(asked)
  together = ours.loglikelihood(asked)
  np.testing.assert_allclose([x for x, _ in together], [x for x, _ in other], atol=1e-4)
  shuffled = ours.loglikelihood(asked[::-1])[::-1]
  np.testing.assert_allclose([x for x, _ in shuffled], [x for x, _ in together], atol=1e-4)


def test_sampling_depends_on_the_seed_and_the_place(ours, directory):
  how = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_p": 0.9}
  asked = requests("generate_until", [("some", how)] * 3)
  drawn = ours.generate_until(asked)
  assert len(set(drawn)) == 3
  assert drawn == ours.generate_until(asked)
  assert drawn != LarpoLM(str(directory), batch_size=3, seed=1).generate_until(asked)


@pytest.mark.parametrize(
  ("given", "says"),
  [
    ({"num_beams": 4}, "num_beams is not implemented"),
    ({"max_gen_toks": LENGTH}, "leaves no room"),
  ],
)
def test_what_is_not_implemented_is_said(ours, given, says):
  with pytest.raises(ValueError, match=says):
    ours.generate_until(requests("generate_until", [("a", {"until": ["b"], **given})]))


def test_a_batch_size_is_a_number(directory):
  with pytest.raises(ValueError, match="has to be a number"):
    LarpoLM(str(directory), batch_size="auto")


@pytest.fixture
def tasks(tmp_path):
  """A directory with a multiple choice, a generation and a perplexity task on one local file."""
  rows = [
    {"question": f"{n} and {n}", "choices": [f"{2 * n}", "no"], "answer": n % 2} for n in range(4)
  ]
  data = tmp_path / "rows.json"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  common = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(data)}},
    "test_split": "test",
    "doc_to_text": "{{question}} is",
  }
  choice = {"output_type": "multiple_choice", "doc_to_target": "{{answer}}"}
  choice |= {"doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}]}
  written = {"output_type": "generate_until", "doc_to_target": "{{choices[0]}}"}
  written |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 8}}
  written |= {"metric_list": [{"metric": "exact_match"}]}
  rolling = {"output_type": "loglikelihood_rolling", "doc_to_target": "{{question}}"}
  rolling |= {"doc_to_text": "", "metric_list": [{"metric": "byte_perplexity"}]}
  for name, task in dict(choice=choice, written=written, rolling=rolling).items():
    text = json.dumps({"task": f"tiny_{name}", **common, **task})  # JSON is YAML
    (tmp_path / f"{name}.yaml").write_text(text)
  return tmp_path


def evaluated(model, names, tasks, **given):
  manager = TaskManager(include_path=str(tasks), include_defaults=False)
  how = dict(task_manager=manager, bootstrap_iters=0)
  return simple_evaluate(model, tasks=names, **how, **given)["results"]


def test_a_local_task_scores_the_same(ours, theirs, tasks, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  names = [f"tiny_{name}" for name in ("choice", "written", "rolling")]
  mine, other = (evaluated(model, names, tasks) for model in (ours, theirs))
  for name in names:
    numbers = {metric: x for metric, x in other[name].items() if isinstance(x, float)}
    assert numbers
    for metric, value in numbers.items():
      assert mine[name][metric] == pytest.approx(value, rel=1e-5), (name, metric)
  assert mine["tiny_rolling"]["byte_perplexity,none"] > 1


def test_the_model_goes_by_its_name(ours, directory, tasks):
  given = dict(model_args=f"pretrained={directory},max_length={LENGTH}", batch_size="2")
  named = evaluated("larpo_jax", ["tiny_choice"], tasks, device="cpu", **given)
  assert named == evaluated(ours, ["tiny_choice"], tasks)


def test_a_mistake_at_the_command_line_ends_in_one_sentence(monkeypatch, capsys):
  def evaluate():
    get_model("larpo_jax")(pretrained="/nowhere")

  monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", evaluate)
  assert command.main() == 1
  assert capsys.readouterr().err.startswith("larpo_jax: error: no config.json in /nowhere")
  monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: None)
  assert command.main() == 0
