"""Settings that are right each for itself and contradict each other."""

import pytest
from refusals import put, refused

from experiments import common, quickstart
from larpo_jax import config as config_lib


def test_data_settings_that_contradict_each_other():
  config = common.base()
  config.model.path = "somewhere"
  assert "data.train.path is empty" in refused(config)
  config.supervised = dict(steps=3)
  assert "config.supervised needs demonstrations" in refused(config)
  config.data.train.path = "rows.jsonl"
  config_lib.validate(config)
  config.data.candidates = 1
  assert "config.data.candidates=1, but pairwise.dpo ranks a list" in refused(config)
  config.loss = dict(name="pointwise.sft")
  config_lib.validate(config)
  for name in ("samples", "held_out"):
    config.evaluate[name] = 10
    assert f"config.evaluate.{name} needs config.world" in refused(config)
    config.evaluate[name] = 0
  config.reward, config.rounds = dict(name="rules.brevity"), dict(count=1, prompts=8)
  config_lib.validate(config)
  for name in ("spans", "mismatched"):
    config.data[name] = True
    assert f"config.data.{name} is of a data set's responses" in refused(config)
    config.data[name] = False


def test_settings_of_rounds_that_contradict_each_other():
  config = common.base()
  config.model.path, config.data.train.path = "somewhere", "rows.jsonl"
  config.reward = dict(name="rules.brevity")
  easy = dict(name="curriculum.easy_to_hard", stages=3)
  for settings, said in (
    (dict(learning_rates=(1e-3,)), "has 1 rates for config.rounds.count=2"),
    (
      dict(learning_rates=(1e-3, 1e-4), optimizer="kept", steps_per_round=3),
      "config.rounds.optimizer='kept' has one schedule",
    ),
    (
      dict(count=1, curriculum=easy, difficulty="implicit_gap", steps_per_round=3),
      "'implicit_gap' is 0 for all lists of the first round",
    ),
    (
      dict(min_gap=0.1, human=1, prefer=("human", "self")),
      "config.rounds.min_gap is of the rewards",
    ),
  ):
    config.rounds = dict(count=2, prompts=8) | settings
    assert said in refused(config), settings
  for settings in (
    dict(learning_rates=(1e-3, 1e-4)),
    dict(curriculum=easy, difficulty="implicit_gap", steps_per_round=3),
    dict(min_gap=0.1, prefer=("self",)),
  ):
    config.rounds = dict(count=2, prompts=8) | settings
    config_lib.validate(config)


def test_an_argument_that_may_be_left_out_has_a_type():
  """As those of a reward model, which are read from its export where they are not given."""
  config = common.base()
  config.model.path, config.data.train.path = "somewhere", "rows.jsonl"
  config.rounds = dict(count=1, prompts=8)
  for name, value in (("max_prompt", "96"), ("max_prompt", 96.5), ("chat", "False"), ("chat", 1)):
    config.reward = {"name": "models.scalar", "path": "export", name: value}
    assert f"config.reward.{name}={value!r} must be" in refused(config)
  config.reward = dict(name="models.scalar", path="export", max_prompt=96, chat=None, eos=False)
  config_lib.validate(config)


def test_settings_of_candidates_that_contradict_each_other():
  config = common.base()
  config.model.path, config.data.train.path = "somewhere", "rows.jsonl"
  config.reward, config.rounds = dict(name="rules.brevity"), dict(count=1, prompts=1)
  config_lib.validate(config)
  for name, value, said in (
    ("gold", True, "config.rounds.gold=True needs a config.world that has solution()"),
    ("negatives", "unrelated", "needs a config.world that has unrelated()"),
    ("negatives", "other_prompt", "give rounds.prompts at least 2"),
    ("styled", ("self",), "config.rounds.styled=('self',) needs a config.world that has styled()"),
  ):
    config.rounds = dict(count=1, prompts=1, **{name: value})
    assert said in refused(config)
  config.world = dict(name="arithmetic")
  config.rounds = dict(count=1, prompts=1, gold=True, candidates=1)
  config_lib.validate(config)  # the gold answer is the second candidate
  config.rounds.prefer = ("self",)
  assert "ranks a list: give at least 2" in refused(config)
  config.rounds.update(prefer=("gold", "self"), styled=("best", "gold"))
  config_lib.validate(config)
  config.rounds.update(prompts=2, negatives="other_prompt")
  assert "config.rounds.negatives='other_prompt' puts another prompt's" in refused(config)
  config.rounds = dict(count=1, prompts=1, gold=True, candidates=1)
  config.rounds.greedy = True
  assert "config.rounds.greedy=True takes one of config.rounds.candidates=1" in refused(config)
  novelty = dict(name="novelty.counts")
  config.rounds = dict(count=1, prompts=2, negatives="other_prompt", novelty=novelty)
  assert "config.rounds.novelty is of what was sampled to the prompt" in refused(config)
  config.rounds = dict(count=1, prompts=1, candidates=1)
  assert "ranks a list: give at least 2" in refused(config)


def test_settings_of_steps_that_contradict_each_other():
  config = quickstart.get_config()
  config.rounds.candidates = 1  # one wrong answer makes a pair
  config.rounds.steps = dict(chosen="oracle")
  complete = config_lib.validate(config)
  assert (complete.rounds.steps.unit, complete.rounds.steps.misplaced) == ("step", 0.0)
  for name, value, said in (
    ("rounds.memory", "all", "set config.rounds.memory='none'"),
    ("rounds.negatives", "unrelated", "set config.rounds.negatives='sampled'"),
    ("rounds.lists", dict(name="lists.best_worst"), "set config.rounds.lists=None"),
    ("rounds.steps.chosen", "expert", "must be one of self, oracle"),
    ("rounds.steps.misplaced", 1.5, "at most 1"),
    ("rounds.steps", dict(unit="answer", misplaced=0.2), "config.rounds.steps.misplaced is of"),
    ("world", None, "config.rounds.steps needs a config.world that has first_wrong()"),
  ):
    tree = config.to_dict()
    *way, last = name.split(".")
    node = tree
    for key in way:
      node = node[key]
    node[last] = value
    if name == "world":
      tree["tokenizer"]["path"], tree["data"]["train"]["path"] = "somewhere", "rows.jsonl"
      tree["supervised"] = None
    assert said in refused(tree)


def test_settings_of_stages_that_contradict_each_other():
  config = quickstart.get_config()
  shuffled = dict(name="curriculum.shuffled", stages=3)
  config.rounds.update(steps_per_round=2, curriculum=shuffled)
  assert "steps_per_round=2 leaves some of 3 stages without a step" in refused(config)
  config.rounds.steps_per_round = 3
  config_lib.validate(config)
  config.rounds.update(steps_per_round=-1, optimizer="kept")
  assert "config.rounds.optimizer='kept' needs to know all steps" in refused(config)


def test_a_reward_model_writes_nothing():
  config = common.base()
  config.model.path, config.data.train.path = "somewhere", "rows.jsonl"
  config.scorer = dict(name="rewards.scalar")
  config_lib.validate(config)
  for name, value in (
    ("rounds", dict(count=1, prompts=8)),
    ("supervised", dict(steps=3)),
    ("evaluate.samples", 4),
    ("evaluate.held_out", 4),
    ("model.lora.rank", 4),
  ):
    tree = config.to_dict() | dict(reward=dict(name="rules.brevity"), world=dict(name="arithmetic"))
    put(tree, name, value)
    assert name.replace("model.", "") in refused(tree)
    tree["scorer"] = dict(name="tokens.causal")
    config_lib.validate(tree)


@pytest.mark.parametrize(
  "reward",
  [dict(name="models.pairwise", path="a"), dict(name="judge.pairwise", url="http://a", model="b")],
  ids=["model", "judge"],
)
@pytest.mark.parametrize(
  "settings",
  [dict(gold=True), dict(negatives="other_prompt"), dict(memory="all", prompt_split="shared")],
)
def test_a_score_against_a_list_is_not_mixed_with_others(settings, reward):
  config = common.base()
  config.model.path, config.world = "somewhere", dict(name="arithmetic")
  config.reward = dict(reward)
  config.rounds = dict(count=2, prompts=8, memory="all")
  config_lib.validate(config)
  config.rounds.update(settings)
  assert "scores a response against its list" in refused(config)
  config.reward = dict(name="models.scalar", path="elsewhere")
  config_lib.validate(config)
