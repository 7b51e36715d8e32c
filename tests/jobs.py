"""Jobs for the tests of launchers: what is submitted, and how it is waited for."""

import sys
import time

# Says that it is ready, and on SIGTERM ends as a run that has saved.
SAVES = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
SAVES += "print('ready', flush=True)\ntime.sleep(60)\n"


def python(code):
  return [sys.executable, "-c", code]


def ended(launcher, job, seconds=60):
  deadline = time.monotonic() + seconds
  while (code := launcher.poll(job)) is None:
    assert time.monotonic() < deadline, "it never ends"
    time.sleep(0.1)
  return code


def says(log, words, seconds=60):
  deadline = time.monotonic() + seconds
  while not (log.exists() and words in log.read_text()):
    assert time.monotonic() < deadline, f"never says {words}"
    time.sleep(0.1)
