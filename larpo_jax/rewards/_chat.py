"""One question to a model behind an OpenAI-compatible endpoint: asked until it is answered.

An answer is a verdict: what the reply has in double square brackets, once, and one of those that
are accepted. Anything else is garbage, and a failed try like an error of the server or a time-out.
"""

from __future__ import annotations

from collections.abc import Collection
import dataclasses
import http.client
import json
import os
import re
import threading
import time
from typing import Any
import urllib.error
import urllib.parse
import urllib.request

LONGEST = 60.0  # seconds between two tries, at most
LARGEST = 1 << 22  # bytes of a reply
SHOWN = 300  # characters of what went wrong
PATIENT = (408, 425, 429)  # besides 5xx: what a later try may be spared
GARBAGE = ""  # the verdict of a judge who gave none, where that is asked for


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Who is asked, and with how much patience. Raises ValueError on what cannot be."""

  url: str  # such as http://localhost:8000/v1
  model: str
  variable: str  # of the environment, which holds the API key; "": no key is sent
  temperature: float
  max_tokens: int
  timeout: float  # seconds
  tries: int
  backoff: float  # seconds before the second try; twice as many before each later one
  parallel: int  # requests at a time
  garbage: str  # after the last try: "error" or "tie"

  def __post_init__(self) -> None:
    parts = urllib.parse.urlsplit(self.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ValueError(f"url={self.url!r} is not like http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
      raise ValueError("url has more than a host and a path: a key belongs in the environment")
    if self.garbage not in ("error", "tie"):
      raise ValueError(f"garbage={self.garbage!r} is not one of error, tie")
    for name, least in (("max_tokens", 1), ("tries", 1), ("parallel", 1), ("backoff", 0)):
      if getattr(self, name) < least:
        raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
    if not self.timeout > 0:
      raise ValueError(f"timeout={self.timeout} must be above 0, in seconds")

  def body(self, question: str) -> dict[str, Any]:
    """What is asked: all that a verdict depends on."""
    messages = [{"role": "user", "content": question}]
    settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
    return {"model": self.model, "messages": messages, **settings}

  def key(self) -> str:
    """The API key; "" where none is sent. Raises ValueError, which does not tell it."""
    if not self.variable:
      return ""
    key = os.environ.get(self.variable, "").strip()
    if not re.fullmatch(r"[\w.~+/=-]+", key, re.ASCII):
      raise ValueError(f"the environment variable {self.variable} holds no API key: set it")
    return key


class _Failed(Exception):
  """A try that failed: why, and what is said of when to try again."""

  def __init__(self, why: str, *, final: bool = False, after: float = 0.0, garbage: bool = False):
    super().__init__(why)
    self.final, self.after, self.garbage = final, after, garbage


def verdict(
  endpoint: Endpoint,
  key: str,
  body: dict[str, Any],
  accepted: Collection[str],
  stop: threading.Event,
) -> str:
  """The verdict on a question; GARBAGE after the last try where the endpoint takes that for a tie.

  Once stop is set there is no other try. Raises RuntimeError that says why the last one failed.
  """
  for number in range(1, endpoint.tries + 1):
    try:
      return _parsed(_posted(endpoint, key, body), accepted)
    except _Failed as error:
      failed = error
    if failed.final or number == endpoint.tries:
      break
    if stop.wait(min(LONGEST, max(failed.after, endpoint.backoff * 2 ** (number - 1)))):
      break
  if failed.garbage and endpoint.garbage == "tie" and number == endpoint.tries:
    return GARBAGE
  why = str(failed).replace(key, "***") if key else str(failed)  # before the cut: no part of it
  raise RuntimeError(f"{why[:SHOWN]}, at try {number} of {endpoint.tries}")


def _parsed(reply: str, accepted: Collection[str]) -> str:
  found = set(re.findall(r"\[\[([^\[\]]*)\]\]", reply))
  if len(found) != 1 or not found <= set(accepted):
    listed = " or ".join(f"[[{each}]]" for each in accepted)
    raise _Failed(f"no verdict {listed} in {reply[-80:]!r}", garbage=True)
  return found.pop()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
  """A redirect is an error: followed, it would take the key to another host."""

  def redirect_request(self, *_: Any) -> None:
    return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _posted(endpoint: Endpoint, key: str, body: dict[str, Any]) -> str:
  """The text that the model replies."""
  headers = {"Content-Type": "application/json"} | (
    {"Authorization": f"Bearer {key}"} if key else {}
  )
  address = f"{endpoint.url.rstrip('/')}/chat/completions"
  request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
  try:
    with _OPENER.open(request, timeout=endpoint.timeout) as response:
      raw = _whole(response, time.monotonic() + endpoint.timeout)
  except urllib.error.HTTPError as error:
    raise _refused(error) from None
  except (OSError, http.client.HTTPException) as error:
    raise _Failed(f"no reply ({getattr(error, 'reason', None) or error!r})") from None
  try:
    content = json.loads(raw)["choices"][0]["message"]["content"]
  except (ValueError, LookupError, TypeError):
    raise _Failed(f"no chat completion: {raw!r}") from None
  return content if isinstance(content, str) else ""


def _whole(response: Any, deadline: float) -> bytes:
  """What is sent until the deadline; the socket's own time-out is only for the time between."""
  parts: list[bytes] = []
  while part := response.read1(1 << 16):
    parts.append(part)
    if time.monotonic() > deadline or sum(map(len, parts)) > LARGEST:
      raise TimeoutError("a reply too slow, or too long")
  return b"".join(parts)


def _refused(error: urllib.error.HTTPError) -> _Failed:
  after = error.headers.get("Retry-After", "")
  try:
    said = error.read(1 << 16).decode("utf-8", "replace")
  except (OSError, http.client.HTTPException):
    said = ""
  final = error.code < 500 and error.code not in PATIENT
  seconds = float(after) if after.isascii() and after.isdigit() else 0.0
  return _Failed(f"status {error.code} {said!r}", final=final, after=seconds)
