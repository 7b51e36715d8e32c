"""Hub ids without waiting: is the hub there, and if not, what to do."""

from __future__ import annotations

import os
import socket
import threading
import urllib.parse

SECONDS = 1.5


def offline() -> bool:
  """Whether the environment forbids the network, so that only cached copies count."""
  names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
  return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def token() -> str | bool:
  """The hub's access token from HF_TOKEN, False (none, and none from disk) where it is not set."""
  return os.environ.get("HF_TOKEN") or False


def require(what: str) -> None:
  """Raises ValueError within two seconds, with the remedy, unless the hub or a cache can be asked.

  The libraries themselves try for most of a minute.
  """
  if offline() or _reachable(*_address()):
    return
  raise ValueError(
    f"{what!r} is no file or directory here, and as a hub id it needs {_address()[0]}, which cannot"
    " be reached: give a local path, or set HF_HUB_OFFLINE=1 if it is in the local cache already"
  )


def missing(what: str, error: Exception) -> ValueError:
  """The error for a hub id that was asked for and not found."""
  reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
  where = "in the local cache (HF_HUB_OFFLINE is set)" if offline() else "on the hub"
  return ValueError(
    f"{what!r} was not found {where}: {reason}; give a local path, or HF_TOKEN if it is private"
  )


def _address() -> tuple[str, int]:
  """Who has to answer: the proxy where there is one, else the hub."""
  proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
  url = proxy or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
  parts = urllib.parse.urlsplit(url if "//" in url else f"//{url}")
  return parts.hostname or "huggingface.co", parts.port or (80 if parts.scheme == "http" else 443)


def _reachable(host: str, port: int) -> bool:
  answered = threading.Event()

  def knock() -> None:
    try:
      socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError:
      return
    answered.set()

  # In a thread, because looking up a name has no time-out of its own.
  thread = threading.Thread(target=knock, daemon=True)
  thread.start()
  thread.join(SECONDS)
  return answered.is_set()
