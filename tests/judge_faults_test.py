"""Judges behind an endpoint: a fault costs a try and no more, and nothing is asked for twice."""

import functools
import signal
import subprocess
import sys
import time

from judge_server import RESPONSES, Reply, answers, asked_of, better, serving
import numpy as np
import pytest

from larpo_jax.rewards import _chat, judge

SECRET = "sk_verysecret-0123456789"


@pytest.fixture
def told(tmp_path):
  """A reward with a cache of the test's own, and no time lost between tries."""
  return functools.partial(asked_of, tmp_path / "cache")


def kept(tmp_path):
  (path,) = (tmp_path / "cache").glob("*.jsonl")
  return path


def once(fault):
  """Every question meets the fault first; the judge then prefers length."""
  return lambda question, times: fault if times == 0 else better(len)(question, times)


@pytest.mark.parametrize(
  "fault",
  [
    Reply(status=500, raw="oops"),
    Reply(status=429, raw="slowly", headers=(("Retry-After", "0"),)),
    Reply(raw="<html>"),
    Reply(raw='{"choices": []}'),
    Reply(raw='{"choices": [{"message": {"content": null}}]}'),
    Reply("no verdict"),
    Reply("[[A]] or [[B]]"),
    Reply("[[D]]"),
    Reply("[[a]]"),
    Reply(drops=True),
  ],
  ids=str,
)
def test_a_fault_costs_a_try(fault, told):
  with serving(better(len)) as server:
    wanted = told(server)
    asked = len(server.requests)
  with serving(once(fault)) as server:
    np.testing.assert_array_equal(told(server, model="other", tries=2), wanted)
    assert len(server.requests) == 2 * asked


@pytest.mark.parametrize("fault", [Reply("[[A]]", seconds=2.0), Reply("[[A]]", drips=0.1)], ids=str)
def test_a_slow_reply_costs_a_try(fault, told):
  with serving(once(fault)) as server:
    found = told(server, prompts=["p"], responses=[["aa", "a"]], tries=2, timeout=0.5)
    np.testing.assert_array_equal(found, [[1.0, 0.0]])
    assert len(server.requests) == 4


class Clock:
  """An event that never comes, and notes for how long it was waited for."""

  def __init__(self):
    self.waited = []

  def wait(self, seconds):
    self.waited.append(seconds)
    return False


def patient(server, **changes):
  settings = dict(temperature=0.0, max_tokens=9, timeout=9.0, tries=4, backoff=30.0, parallel=1)
  settings |= dict(url=server.url, model="m", variable="", garbage="error")
  return _chat.Endpoint(**settings | changes)


def test_tries_are_counted_and_further_apart():
  clock = Clock()
  with serving(lambda *_: Reply(status=503, raw="busy")) as server:
    ask = patient(server)
    with pytest.raises(RuntimeError, match="status 503 'busy', at try 4 of 4"):
      _chat.verdict(ask, "", ask.body("?"), ("A",), clock)
    assert clock.waited == [30.0, 60.0, 60.0], "a minute at most"
    assert len(server.requests) == 4


def test_a_server_says_how_long_to_wait():
  clock, later = Clock(), (("Retry-After", "7"),)
  with serving(lambda *_: Reply(status=429, headers=later)) as server:
    ask = patient(server, tries=3, backoff=5.0)
    with pytest.raises(RuntimeError, match="status 429"):
      _chat.verdict(ask, "", ask.body("?"), ("A",), clock)
    assert clock.waited == [7.0, 10.0]


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_no_later_try_can_mend_is_not_tried_again(status, told):
  fault = Reply(status=status, raw="wrong", headers=(("Location", "http://127.0.0.1:9/"),))
  said = pytest.raises(RuntimeError, match=f"status {status} 'wrong', at try 1 of 5")
  with serving(lambda *_: fault) as server, said:
    told(server, prompts=["p"], responses=[["aa", "a"]], parallel=1)
  assert len(server.requests) <= 2


def test_garbage_is_a_tie_only_where_that_is_asked_for(told, tmp_path):
  asked = dict(prompts=["p"], responses=[["aa", "a", ""]], tries=2)

  def reply(question, times):
    return Reply("hm") if "" in answers(question) else better(len)(question, times)

  with serving(reply) as server:
    with pytest.raises(
      RuntimeError, match=r"no verdict \[\[A\]\] or \[\[B\]\] or \[\[C\]\] in 'hm'"
    ):
      told(server, **asked)
    found = told(server, **asked, garbage="tie")
    np.testing.assert_allclose(found, [[0.75, 0.25, 0.5]])
    before = len(server.requests)
    np.testing.assert_array_equal(told(server, **asked, garbage="tie"), found)
    assert len(server.requests) == before, "garbage is remembered"
    with pytest.raises(RuntimeError, match="no verdict"):
      told(server, **asked)
    assert len(server.requests) > before, "and asked for again where it is an error"
  with (
    serving(lambda *_: Reply(status=500)) as server,
    pytest.raises(RuntimeError, match="status 500"),
  ):
    told(server, **asked, garbage="tie", model="other")


def test_no_more_than_so_many_at_once(told):
  slow = lambda question, times: better(len)(question, times)._replace(seconds=0.05)  # noqa: E731
  for most in (1, 3):
    with serving(slow) as server:
      told(server, parallel=most, model=f"of {most}")
      assert server.most_at_once <= most
      assert (server.most_at_once > 1) == (most > 1)


def test_what_is_known_is_not_asked_for_again(told, tmp_path):
  with serving(better(len)) as server:
    wanted = told(server)
    count = len(server.requests)
    np.testing.assert_array_equal(told(server), wanted)
    assert len(server.requests) == count
    told(server, responses=[[*row, "new"] for row in RESPONSES])
    assert len(server.requests) == count + 2 * (3 + 4), "what is new is"
    for changed in (
      dict(model="other"),
      dict(template=f"Once more. {judge.PAIRWISE}"),
      dict(temperature=0.5),
    ):
      count = len(server.requests)
      told(server, **changed)
      assert len(server.requests) > count, changed
  # Nobody is there any more: a whole cache needs no judge, and no key.
  np.testing.assert_array_equal(told(server, variable="LARPO_NO_SUCH_KEY"), wanted)


def test_after_an_error_what_was_answered_is_kept(told):
  down = set()

  def reply(question, times):
    return Reply(status=500) if down and "bb" in question else better(len)(question, times)

  with serving(reply) as server:
    down.add(True)
    with pytest.raises(RuntimeError, match=r"; \d+ of 18 verdicts are in .*jsonl") as error:
      told(server, tries=1, parallel=2)
    have = int(str(error.value).split("; ")[1].split(" of ")[0])
    assert have > 0, "those of the first list"
    down.clear()
    server.requests.clear()
    wanted = told(server)
    assert len(server.requests) == 18 - have
  with serving(better(len)) as server:
    np.testing.assert_array_equal(told(server, model="other"), wanted)


def test_a_torn_line_is_asked_for_again_and_spoils_no_other(told, tmp_path):
  with serving(better(len)) as server:
    wanted = told(server)
    text = kept(tmp_path).read_text()
    kept(tmp_path).write_text(text[: -len(text.splitlines()[-1]) // 2])
    server.requests.clear()
    for _ in range(2):
      np.testing.assert_array_equal(told(server), wanted)
      assert len(server.requests) == 1
    lines = kept(tmp_path).read_text().splitlines()
    assert len(lines) == len(text.splitlines()) + 1


KILLED = """
import sys
from larpo_jax.rewards import judge
judge.pairwise(["p"], [list("abcdefgh")], url=sys.argv[1], model="m", cache=sys.argv[2], parallel=2)
"""


def test_a_killed_run_asks_for_what_it_lacks(told, tmp_path):
  """SIGKILL half-way: then only what was on its way is asked for twice."""
  slow = lambda question, times: better(ord)(question, times)._replace(seconds=0.05)  # noqa: E731
  with serving(slow) as server:
    path = tmp_path / "cache"
    run = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(path)])
    while len(server.requests) < 10 and run.poll() is None:
      time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    have = len(kept(tmp_path).read_text().splitlines())
    assert 5 <= have <= 40
    time.sleep(0.2)  # those on their way come to nothing
    begun = len(server.requests)
    assert begun - have <= 3
    found = told(server, prompts=["p"], responses=[list("abcdefgh")])
    assert len(server.requests) - begun == 56 - have
    np.testing.assert_allclose(found[0], np.arange(8) / 7, rtol=1e-6)


def test_the_key_is_sent_and_told_nobody(told, tmp_path, monkeypatch, capfd):
  monkeypatch.setenv("LARPO_TEST_KEY", SECRET)
  asked = dict(variable="LARPO_TEST_KEY", prompts=["p"], responses=[["aa", "a"]])
  with serving(better(len)) as server:
    told(server, **asked)
    assert set(server.authorizations) == {f"Bearer {SECRET}"}
    told(server, **asked | dict(variable=""), model="other")
    assert server.authorizations[-1] is None
  for padding in range(260, 340, 7):  # wherever a message is cut
    echo = lambda *_: Reply(status=401, raw="x" * padding + SECRET)  # noqa: E731, B023
    with serving(echo) as server, pytest.raises(RuntimeError) as error:
      told(server, **asked, model="third", tries=1)
    assert SECRET[:8] not in str(error.value)
  told_of = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
  assert not [text for text in (*told_of, *capfd.readouterr()) if SECRET[:8] in text]
  for wrong in ("", " ", f"{SECRET}\n{SECRET}"):
    monkeypatch.setenv("LARPO_TEST_KEY", wrong)
    with pytest.raises(ValueError, match="LARPO_TEST_KEY holds no API key: set it") as error:
      told(server, **asked, model="fourth")
    assert SECRET[:8] not in str(error.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_with_the_key(status, told, monkeypatch):
  monkeypatch.setenv("LARPO_TEST_KEY", SECRET)
  asked = dict(variable="LARPO_TEST_KEY", prompts=["p"], responses=[["aa", "a"]])
  with serving(better(len)) as other:
    away = Reply(status=status, headers=(("Location", f"{other.url}/chat/completions"),))
    said = pytest.raises(RuntimeError, match=f"status {status}")
    with serving(lambda *_: away) as server, said:
      told(server, **asked)
    assert not other.requests


def test_nobody_there_is_said(told):
  with serving(better(len)) as server:
    pass
  with pytest.raises(
    RuntimeError, match=r"gave no reply .*refused.* at try 2 of 2; 0 of 18 verdicts"
  ):
    told(server, tries=2)
