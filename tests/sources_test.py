"""Sources of candidates: the policy, its greedy answer, teachers, people, the world."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_checkpoint
import tiny_rounds
from tiny_rounds import PROMPTS

from larpo_jax import config as config_lib
from larpo_jax import inputs, responders, retrieval, rounds
from larpo_jax.data import grouping
from larpo_jax.models import huggingface
from larpo_jax.rewards import worlds as rewards
from larpo_jax.worlds import arithmetic


@pytest.fixture(scope="module")
def started(tmp_path_factory):
  """A session and its first parameters."""
  return tiny_rounds.start(tmp_path_factory.mktemp("session"))


@pytest.fixture
def run(started, tmp_path):
  """What a round retrieves with settings of the rounds: its session, prompts, candidates, lines."""

  def retrieved(name="run", number=0, reward=rewards.arithmetic, **settings):
    here = tiny_rounds.placed(started[0], tmp_path / name, **settings)
    prompts = inputs.prompts(here)
    data = retrieval.retrieve(here, started[1], number, prompts, reward)
    text = (here.workdir / "rounds" / str(number) / "candidates.jsonl").read_text()
    return here, data, [json.loads(line) for line in text.splitlines()]

  return retrieved


@pytest.fixture(scope="module")
def teachers(started, tmp_path_factory):
  """Two checkpoints of the policy's kind with weights of their own."""
  session, params = started
  paths = []
  for scale in (0.5, 2.0):
    paths.append(str(tmp_path_factory.mktemp("teacher") / "checkpoint"))
    moved = jax.tree.map(lambda x, scale=scale: scale * x, params)
    huggingface.save(paths[-1], moved, session.architecture, tokenizer=session.tokenizer)
  return tuple(paths)


def texts(here, data):
  """The texts of each row, and its labels."""
  decode = here.tokenizer.batch_decode
  rows = [data[n] for n in range(len(data))]
  return [(decode(row.responses, skip_special_tokens=True), row.labels) for row in rows]


def of(line, source):
  return [text for text, its in zip(line["responses"], line["sources"]) if its == source]


def test_every_candidate_says_where_it_comes_from(run, teachers):
  teacher = dict(paths=teachers, candidates=2)
  here, data, lines = run(greedy=True, candidates=3, teacher=teacher, human=2, gold=True)
  counted = [1, 2, 4, 2, 1]
  wanted = [s for s, count in zip(grouping.SOURCES, counted, strict=True) for _ in range(count)]
  assert grouping.sources(here.config.rounds) == wanted
  assert grouping.candidates(here.config.rounds) == len(wanted)
  for line, (responses, labels) in zip(lines, texts(here, data), strict=True):
    assert line["sources"] == wanted
    assert line["responses"] == responses
    scores = rewards.arithmetic([line["prompt"]], [responses])[0]
    assert labels == pytest.approx(line["scores"])
    assert line["scores"] == pytest.approx(scores.tolist())
    assert len(line["finished"]) == len(line["lengths"]) == len(wanted)
    assert of(line, "gold") == [arithmetic.solution(line["prompt"])]
  plain = run("plain", greedy=True, candidates=3)[2]
  for line, alone in zip(lines, plain, strict=True):
    assert line["responses"][:3] == alone["responses"], "others change nothing of the policy's own"


def test_a_teacher_is_the_policy_of_its_checkpoint(started, run, teachers):
  _, _, lines = run(teacher=dict(paths=teachers, temperature=0.0), number=1)
  session, params = started
  for place, scale in enumerate((0.5, 2.0)):
    moved = jax.tree.map(lambda x, scale=scale: scale * x, params)
    here = tiny_rounds.placed(session, session.workdir / f"alone{place}", greedy=True)
    prompts = inputs.prompts(here)
    greedy = responders.sampled(here, moved, 1, prompts, here.key(0), name="own")
    assert [of(line, "teacher")[place] for line in lines] == [each.texts[0] for each in greedy]
  both = [of(line, "teacher") for line in run("two", teacher=dict(paths=teachers[:1] * 2))[2]]
  assert any(first != second for first, second in both), "each has noise of its own"


def test_a_teacher_with_another_tokenizer_is_refused(run, tmp_path):
  path = tiny_checkpoint.make(tmp_path / "other")
  with pytest.raises(ValueError, match="has another tokenizer than the policy"):
    run(teacher=dict(paths=(str(path),)))


def test_people_of_a_world_show_it_at_the_prompts_of_the_round(run):
  here, _, lines = run(human=3, number=1)
  world = here.config.world
  share = dict(slip=world.slip, hasty=world.hasty, steps=world.steps)
  found = []
  for draw in range(3):
    seed = here.config.seed + inputs.FRESH
    shown = arithmetic.demonstrations(2 * PROMPTS, seed=seed, draw=draw, **share)[PROMPTS:]
    assert [each.prompt for each in shown] == [line["prompt"] for line in lines]
    assert [each.response for each in shown] == [of(line, "human")[draw] for line in lines]
    found.append([each.response for each in shown])
  assert found[0] != found[1] or found[1] != found[2]


def test_people_of_a_data_set_answer_best_first(started, tmp_path):
  session, params = started
  answered = {"1+1:": ["=3", "=2", "=4"], "2+2:": ["=4", "=5", "=6"]}
  scores = [[0.5, 1.0, 0.0], [1.0, 0.0, 0.5]]
  path = tmp_path / "rows.jsonl"
  rows = zip(answered.items(), scores)
  lines = [json.dumps(dict(prompt=p, responses=r, scores=s)) for (p, r), s in rows]
  path.write_text("\n".join(lines))
  config = session.config.copy_and_resolve_references().unlock()
  config.world, config.data.train.path = None, str(path)
  config.tokenizer.path = str(tmp_path / "tokenizer")
  session.tokenizer.save_pretrained(config.tokenizer.path)
  config.data.reader = dict(name="readers.lists", prompt="prompt", responses="responses")
  config.data.reader.scores = "scores"
  config.rounds.update(prompts=2, human=2, prefer=("human",))
  here = dataclasses.replace(session, config=config_lib.validate(config), workdir=tmp_path)
  level = lambda questions, texts: np.tile(np.arange(len(texts[0])), (len(texts), 1))  # noqa: E731
  data = retrieval.retrieve(here, params, 0, inputs.prompts(here), level)
  assert [found for found, _ in texts(here, data)] == [["=2", "=3"], ["=4", "=6"]]
  assert all(ids[-1] == inputs.prompts(here).end for ids in data[0].responses)
  here.config.rounds.human = 4
  with pytest.raises(ValueError, match="human=4, but the data set has 3 answers to '1"):
    retrieval.retrieve(here, params, 1, inputs.prompts(here), level)


def test_one_preferred_source_is_ranked_by_the_reward(run):
  here, data, lines = run(greedy=True, human=3, prefer=("human",))
  for (found, labels), line in zip(texts(here, data), lines, strict=True):
    assert found == of(line, "human")
    scores = [s for s, source in zip(line["scores"], line["sources"]) if source == "human"]
    assert labels == pytest.approx(scores)
  assert grouping.candidates(here.config.rounds) == 3


def test_of_several_sources_one_is_better_than_the_next_whatever_the_reward(run):
  prefer = ("greedy", "human", "gold")
  best_last = dict(greedy=True, human=2, gold=True, prefer=prefer)
  here, data, lines = run(**best_last, lists=dict(name="lists.best_worst"))
  for (found, labels), line in zip(texts(here, data), lines, strict=True):
    assert found == [text for source in prefer for text in of(line, source)]
    assert labels == [2.0, 1.0, 1.0, 0.0]
  built = rounds.build(here, 0, {0: data})
  for (pair, _), line in zip(texts(here, built), lines, strict=True):
    assert pair == [of(line, "greedy")[0], of(line, "gold")[0]], "the worse is preferred"
  assert built.candidates == 2


def test_a_style_is_put_on_after_the_ranking(run):
  sources = dict(greedy=True, human=1, gold=True)
  here, data, lines = run(**sources, styled=("gold",))
  plain, without, same = run("plain", **sources)
  assert lines == same, "the reward sees what was written"
  styled = 0
  for (found, labels), (before, wanted) in zip(texts(here, data), texts(plain, without)):
    assert found == [*before[:-1], arithmetic.styled(before[-1])]
    assert labels == wanted
    styled += found != before
  assert styled == PROMPTS
  assert data[0].responses[-1][-1] == without[0].responses[-1][-1], "it still ends"
  here, data, _ = run("best", **sources, styled=("best", "greedy"))
  for (found, labels), (before, _) in zip(texts(here, data), texts(plain, without)):
    best = int(np.argmax(labels))
    wanted = [arithmetic.styled(t) if n in (0, best) else t for n, t in enumerate(before)]
    assert found == wanted


def test_a_response_that_has_no_end_gets_none_with_its_style(run):
  here, data, lines = run(max_tokens=4, candidates=8, styled=("self",))
  end = inputs.prompts(here).end
  unfinished = 0
  for n, line in enumerate(lines):
    rows = zip(data[n].responses, line["responses"], line["finished"])
    for ids, text, finished in rows:
      assert len(ids)
      assert (ids[-1] == end) == finished
      unfinished += not finished and arithmetic.styled(text) != text
  assert unfinished


def test_what_a_style_does_not_change_keeps_its_tokens(run):
  here, _, _ = run(styled=("self",))
  end = inputs.prompts(here).end
  ids = np.asarray([here.tokenizer.pad_token_id] * 3, np.int32)  # said, and not in the text
  row = [retrieval.Candidate(ids, "", "self", 0.0)]
  ((found, *_),) = retrieval._styled(here, arithmetic.styled, row, end)
  assert found.tolist() == ids.tolist()


def test_a_style_changes_what_tells_chosen_from_rejected(run):
  sources = dict(human=1, gold=True, prefer=("gold", "human"))
  found = [
    retrieval.described(run(name, **sources, styled=styled)[0], 0)["candidates/separable"]
    for name, styled in (("plain", ()), ("styled", ("gold",)))
  ]
  assert found[1] == 1
  assert found[0] < 1
