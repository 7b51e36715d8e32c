"""Pairs of steps: where an error is found, what is compared there, and by whom it is put right."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
import tiny_rounds
from tiny_rounds import StopsAt, lists

from larpo_jax import inputs, loop, rounds, sampling, session, step_pairs, writers
from larpo_jax.data import problems, store
from larpo_jax.data.candidates import Tokens
from larpo_jax.evaluators.generation import Evaluation
from larpo_jax.rewards import worlds as rewards
from larpo_jax.worlds import arithmetic

COUNT = 12


@pytest.fixture(scope="module")
def started(tmp_path_factory):
  """A session and its first parameters."""
  return tiny_rounds.start(tmp_path_factory.mktemp("session"))


@pytest.fixture
def run(started, tmp_path, seed):
  """build(pool, **steps) in a workdir of its own, and the session."""

  def make(name="run", guard=None, texts=None, ended=True, **steps):
    here = tiny_rounds.placed(started[0], tmp_path / name, max_tokens=64, steps=dict(steps))
    here = dataclasses.replace(here, guard=guard or StopsAt(10**9))
    pool = written(here, wrong_answers(seed) if texts is None else texts, ended)
    return here, step_pairs.build(here, 0, started[1], pool)

  return make


def wrong_answers(seed):
  """A right answer to each prompt, then one that slips, and another."""
  shown = arithmetic.demonstrations(20 * COUNT, seed=seed, slip=1.0, steps=(2, 5))
  return {
    each.prompt: [arithmetic.solution(each.prompt), each.response, "=1"]
    for each in {each.prompt: each for each in shown}.values()
  }


def written(here, texts, ended=True):
  """Candidates as `retrieval.retrieve` leaves them, of the first prompts."""
  ids = lambda text: np.asarray(here.tokenizer(text)["input_ids"], np.int32)  # noqa: E731
  end = here.tokenizer.eos_token_id
  directory = here.workdir / "candidates"
  shutil.rmtree(directory, ignore_errors=True)
  with store.Writer(directory) as writer:
    for place, (prompt, answers) in enumerate(list(texts.items())[:COUNT]):
      responses = [
        np.append(ids(text), [end] if ended else []).astype(np.int32) for text in answers
      ]
      masks = [np.ones(len(each), bool) for each in responses]
      writer.add(Tokens(ids(prompt), responses, masks, [0.0] * len(responses)), 7 + place)
    writer.finish(
      problems.Report("by hand", COUNT, COUNT), pad=here.tokenizer.pad_token_id, end=end
    )
  return store.load(directory)


@pytest.fixture
def policy(monkeypatch):
  """A policy that goes on wrong and then, if it can, right; what it was asked, by noise row."""
  asked = []

  def sample(self, params, ids, mask, key, *, candidates, max_tokens, rows, eos, pad, **how):
    ids, mask = np.asarray(ids), np.asarray(mask)
    texts = [text for (text,) in self.decode(ids, mask)]
    response = np.full((len(texts), candidates, max_tokens), pad, np.int32)
    for b, text in enumerate(texts):
      question, begun = text[: text.find(":") + 1], text[text.find(":") + 1 :]
      if question:
        asked.append((question, begun, key))
        for k, answer in enumerate(("=77", arithmetic.solution(question))[:candidates]):
          right = answer[len(begun) :] if k else answer
          tokens = [*self.tokenizer(right)["input_ids"], eos]
          response[b, k, : len(tokens)] = tokens
    found = (response != pad).astype(np.float32)
    return sampling.Samples(response, found, found, found.any(-1))

  monkeypatch.setattr(session.Session, "sample", sample)
  return asked


def told(here):
  return [json.loads(line) for line in (here.workdir / "rounds/0/lists.jsonl").open()]


def said(here, data):
  """The pairs as texts; every end of sequence is shown."""
  return [
    (here.tokenizer.decode(prompt), *here.tokenizer.batch_decode(sides))
    for prompt, sides, labels in lists(data)
    if labels == [1.0, 0.0]
  ]


@pytest.mark.parametrize("chosen", ["self", "oracle"])
def test_the_first_wrong_step_is_rejected_for_a_right_one_after_the_same_beginning(
  chosen, run, policy, seed
):
  here, data = run(chosen=chosen, continuations=2)
  known = wrong_answers(seed)
  pairs = said(here, data)
  assert len(pairs) == COUNT
  for (prompt, better, worse), (question, (_, wrong, _)) in zip(pairs, known.items()):
    begun = prompt.removeprefix(question)
    place = arithmetic.first_wrong(question, wrong)
    assert begun + worse == "".join(arithmetic.steps(wrong)[: place + 1])
    assert arithmetic.check(question, begun).steps_right == len(arithmetic.steps(begun)) == place
    assert "<" not in better + worse, "a step is not the end of an answer"
    assert arithmetic.first_wrong(question, begun + better) in (place + 1, None), "it is right"
    own = arithmetic.solution(question)
    assert (own.startswith(begun + better)) == (chosen == "self")
    assert (" " in better) == (chosen == "oracle")
  assert data.sources.tolist() == list(range(7, 7 + COUNT))
  assert len(policy) == (COUNT if chosen == "self" else 0)
  rest = [len(arithmetic.solution(question)) - len(begun) + 1 for question, begun, _ in policy]
  tokens = data.report.notes["continuation_tokens"]
  assert tokens == sum(rest) + len("=77.") * len(policy), "end of sequence among them"
  assert [line["responses"] for line in told(here)] == [[*sides] for _, *sides in pairs]


def test_what_the_policy_never_gets_right_is_no_pair(run, policy):
  with pytest.raises(ValueError, match=f"none of {COUNT} wrong answers has a right continuation"):
    run(continuations=1)
  assert len(policy) == COUNT


def test_what_the_policy_does_not_end_is_no_answer(run, policy, monkeypatch):
  sample = session.Session.sample

  def cut(self, *asked, **how):
    drawn = sample(self, *asked, **how)
    finished = drawn.finished & (np.arange(len(drawn.finished)) % 2 == 0)[:, None]
    return dataclasses.replace(drawn, finished=finished)

  whole = said(*run(name="whole", continuations=2))
  monkeypatch.setattr(session.Session, "sample", cut)
  assert said(*run(name="cut", continuations=2)) == whole[::2]


def test_an_answer_that_is_right_or_cut_or_lacks_a_step_has_no_wrong_step(run, policy, seed):
  known = list(wrong_answers(seed).items())[:3]
  (first, answers), (second, _), (third, _) = known
  short = "".join(arithmetic.steps(arithmetic.solution(second))[:-1])
  texts = {first: answers, second: [short], third: [arithmetic.solution(third)]}
  here, data = run(texts=texts, chosen="oracle")
  more = {third: [f"{arithmetic.solution(third)}\n=1"]}  # where it is wrong a right one has ended
  for steps in (dict(chosen="oracle"), dict(continuations=2)):
    with pytest.raises(ValueError, match="none of 1 wrong answers"):
      run(name="more", texts=more, **steps)
  assert [line["prompt"].partition(":")[0] + ":" for line in told(here)] == [first]
  assert data.report.rows == 1
  with pytest.raises(ValueError, match="none of 0 wrong answers"):
    run(name="cut", texts=texts, ended=False, chosen="oracle")


def test_whole_answers_are_of_the_same_pairs(run, policy):
  steps, single = run(continuations=2)
  here, data = run(name="whole", unit="answer", continuations=2)
  for cut, (prompt, better, worse) in zip(told(steps), said(here, data), strict=True):
    assert prompt == cut["prompt"].partition(":")[0] + ":"
    assert better == arithmetic.solution(prompt) + "<eos>"
    assert (prompt + worse).startswith(cut["prompt"] + cut["responses"][1])
    assert worse.endswith("<eos>")
  assert data.sources.tolist() == single.sources.tolist()


def test_a_share_of_errors_is_located_too_late(run, policy):
  found = {}
  for share in (0.0, 0.25, 0.5):
    here, data = run(name=f"{share}", continuations=2, misplaced=share)
    found[share] = told(here)
    written = [(line["prompt"], *line["responses"]) for line in found[share]]
    assert said(here, data) == written, "the tokens are of the texts"
  moved = {
    share: {n for n, line in enumerate(lines) if line["located"] != line["first_wrong"]}
    for share, lines in found.items()
  }
  assert {share: len(places) for share, places in moved.items()} == {
    share: round(share * COUNT) for share in found
  }
  assert moved[0.25] <= moved[0.5]
  for share, lines in found.items():
    for n, line in enumerate(lines):
      if n not in moved[share]:
        assert line == found[0.0][n]
      else:
        assert line["located"] > line["first_wrong"]
        assert len(set(line["responses"])) == 2
        begun = line["prompt"].partition(":")[2]
        assert len(arithmetic.steps(begun)) == line["located"], "the error is in the prompt"
        assert line["responses"][0] == _lines(line)[line["located"]]
  for n in moved[0.25]:
    assert found[0.25][n] == found[0.5][n]


def test_errors_after_which_nothing_differs_cannot_be_located_too_late(run, policy, seed):
  hasty = {prompt: ["=1", "=2"] for prompt in wrong_answers(seed)}
  assert run(name="right", texts=hasty, continuations=2, misplaced=0.0)
  with pytest.raises(ValueError, match=r"misplaced=0.25 of \d+ pairs, but in round 0 only 0 go on"):
    run(texts=hasty, continuations=2, misplaced=0.25)


def _lines(line):
  return arithmetic.steps(arithmetic.solution(line["prompt"].partition(":")[0] + ":"))


def test_no_more_pairs_than_asked_for_the_first_ones(run, policy):
  here, _ = run(name="all", continuations=2)
  few, data = run(name="few", continuations=2, pairs=5)
  assert told(few) == told(here)[:5]
  assert len(data) == 5


def test_what_is_drawn_depends_on_the_round_alone_and_is_read_where_it_is(
  run, started, monkeypatch
):
  wanted = lists(run(continuations=2, chosen="oracle", misplaced=0.5)[1])
  again, data = run(name="again", continuations=2, chosen="oracle", misplaced=0.5)
  assert lists(data) == wanted
  (again.workdir / "rounds/0/lists.jsonl").unlink()
  assert lists(step_pairs.build(again, 0, None, None)) == wanted, "nothing is asked again"
  shutil.rmtree(again.workdir / "rounds/0/lists")  # as if killed before it was whole
  pool = store.load(again.workdir / "candidates")
  assert lists(step_pairs.build(again, 0, started[1], pool)) == wanted


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopped_between_batches_a_round_goes_on_with_the_next(stop, run, policy):
  """To the same bits; no batch is sampled twice."""
  here, data = run(continuations=2)
  said = lambda: [(*asked, jax.random.key_data(key).tobytes()) for *asked, key in policy]  # noqa: E731
  every = said()
  assert len({key for *_, key in every}) == 1
  policy.clear()
  with pytest.raises(loop.Preempted, match="the same command resumes"):
    run(name="stopped", continuations=2, guard=StopsAt(stop))
  stopped = here.workdir.parent / "stopped" / "rounds" / "0"
  assert not list(stopped.glob("lists*")), "half a round is no round"
  sampled = len(policy)
  assert sampled == (stop - 1) * len(every) / 3
  again, found = run(name="stopped", continuations=2)
  assert said() == every
  assert lists(found) == lists(data)
  assert found.report.notes == data.report.notes
  assert told(again) == told(here)
  assert not (stopped / "continued").exists(), "a round that is whole needs no batches"


def test_log_probs_are_of_the_steps_alone_under_the_policy_it_is_given(run, started):
  here, data = run(chosen="oracle")
  level = jax.tree.map(lambda x: 0.0 * x, started[1])  # every token as likely as the others
  numbers = step_pairs.described(here, 0, level, data)
  lengths = np.mean([[len(ids) for ids in sides] for _, sides, _ in lists(data)], axis=0)
  wanted = -math.log(len(here.tokenizer)) * lengths
  sides = [numbers["steps/chosen_logp"], numbers["steps/rejected_logp"]]
  np.testing.assert_allclose(sides, wanted, rtol=1e-5)
  assert (numbers["steps/pairs"], numbers["steps/wrong_answers"]) == (len(data), COUNT)
  assert numbers["steps/tokens"] == 0, "the oracle samples nothing"
  assert step_pairs.described(here, 0, None, data) == numbers, "remembered"


def test_a_round_learns_from_its_steps_and_tells_of_them(started, tmp_path):
  steps = dict(chosen="oracle")
  here = tiny_rounds.placed(started[0], tmp_path, count=1, prompts=24, candidates=4, steps=steps)
  before, evaluate = {"gold/reward": 0.5}, lambda params: Evaluation({"gold/reward": 0.5}, [])
  asked = inputs.prompts(dataclasses.replace(here, workdir=tmp_path / "prompts"))
  given = dict(before=before, evaluate=evaluate)
  rounds.learn(here, started[1], asked, rewards.arithmetic, **given)
  rows = list(writers.read(tmp_path))
  (first,) = [row for row in rows if row["stage"] == "rounds"]
  assert first["steps/pairs"] == len(told(here)) > 0
  assert first["steps/chosen_logp"] < 0
  (step, *_) = [row for row in rows if row["stage"] == "round_0" and "loss" in row]
  assert step["rewards/margins"] == pytest.approx(0.0, abs=1e-5), "the reference is the start"
