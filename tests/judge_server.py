"""A judge behind an OpenAI-compatible endpoint of this machine, with the faults of a test."""

import contextlib
import http.server
import json
import re
import threading
import time
from typing import NamedTuple

from larpo_jax import lookup

PROMPTS = ["p", "q"]
RESPONSES = [["aaa", "a", "aa", "a"], ["b", "bbb", "", "bb"]]  # to `better(len)`, longer is better


class Reply(NamedTuple):
  """What the server does with a request."""

  content: object = None  # of the message; None: the raw text below
  status: int = 200
  raw: str = ""
  headers: tuple = ()
  seconds: float = 0.0  # before anything is sent
  drops: bool = False  # the connection is closed without a word
  drips: float = 0.0  # seconds between two bytes


class Server:
  """What was asked, and of what: `replies` is a function of (question, how often it was asked)."""

  def __init__(self, replies):
    self.replies, self.url = replies, ""
    self.requests, self.authorizations = [], []
    self.at_once = self.most_at_once = 0
    self.lock = threading.Lock()

  def asked(self, question):
    return sum(body["messages"][0]["content"] == question for body in self.requests)


@contextlib.contextmanager
def serving(replies):
  """A Server that runs until the block ends."""
  server = Server(replies)
  handler = type("Handler", (_Handler,), {"judge": server})
  listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  listening.daemon_threads = True
  thread = threading.Thread(
    target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
  )
  thread.start()
  server.url = f"http://127.0.0.1:{listening.server_port}/v1"
  try:
    yield server
  finally:
    listening.shutdown()
    listening.server_close()
    thread.join()


def asked_of(cache, server, name="pairwise", prompts=PROMPTS, responses=RESPONSES, **settings):
  """The rewards that a server's judge gives."""
  how = dict(url=server.url, model="m", backoff=0.0, cache=str(cache)) | settings
  reward = lookup.resolve({"name": f"judge.{name}", **how}, "larpo_jax.rewards")
  return reward(prompts, responses)


def answers(question):
  """The two answers of the default question of pairs."""
  found = re.search(r"<answer_a>\n(.*)\n</answer_a>.*<answer_b>\n(.*)\n</answer_b>", question, re.S)
  return found.groups()


def better(worth):
  """A judge of pairs that prefers the answer of higher worth, a function of its text."""

  def reply(question, _):
    a, b = map(worth, answers(question))
    return Reply("Reasons. " + ("[[A]]" if a > b else "[[B]]" if b > a else "[[C]]"))

  return reply


class _Handler(http.server.BaseHTTPRequestHandler):
  judge: Server

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    question, judge = body["messages"][0]["content"], self.judge
    with judge.lock:
      times = judge.asked(question)
      judge.requests.append(body | {"path": self.path})
      judge.authorizations.append(self.headers.get("Authorization"))
      judge.at_once += 1
      judge.most_at_once = max(judge.most_at_once, judge.at_once)
    reply = judge.replies(question, times)
    time.sleep(reply.seconds)
    with judge.lock:  # before who asked has the reply, and asks again
      judge.at_once -= 1
    self.answer(reply)

  do_GET = do_POST

  def answer(self, reply):
    if reply.drops:
      self.close_connection = True
      return
    message = {"choices": [{"message": {"content": reply.content}}]}
    raw = (reply.raw if reply.content is None else json.dumps(message)).encode()
    with contextlib.suppress(OSError):  # who asked has gone
      self.send_response(reply.status)
      for name, value in (*reply.headers, ("Content-Length", str(len(raw)))):
        self.send_header(name, value)
      self.end_headers()
      for part in [raw] if not reply.drips else [raw[i : i + 1] for i in range(len(raw))]:
        self.wfile.write(part)
        self.wfile.flush()
        time.sleep(reply.drips)

  def log_message(self, *_):
    pass
