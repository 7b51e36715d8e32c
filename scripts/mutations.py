"""Plants faults in a copy of the package, one at a time, and runs the tests that should see them.

    python scripts/mutations.py                 # all of them, writes docs/mutations.md
    python scripts/mutations.py kto "ties:"     # only faults that say so, prints, writes nothing

A fault is killed by a test that fails with it and passes without it. Two kinds survive: those that
no test sees, which is a hole in the tests, and those whose tests fail without them too.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

import faults
from faults import Fault
import faults_of_kernels
import faults_of_rounds
import faults_of_sampling

FAULTS = [
  *faults.FAULTS,
  *faults_of_kernels.FAULTS,
  *faults_of_rounds.FAULTS,
  *faults_of_sampling.FAULTS,
]
ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "mutations.md"
SEED = "20240501"
LIMIT = 420  # seconds for the tests of one fault: what hangs is seen too


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a fault: the test that killed it, or why it survived."""

  fault: Fault
  killer: str
  why: str  # what the test says, or why no test does
  seconds: float


def planted(text: str, fault: Fault) -> str:
  """The file with the fault. Raises ValueError unless the old text stands there exactly once."""
  count = text.count(fault.old)
  if count != 1:
    raise ValueError(f"{fault.file} has {count} times {fault.old!r}: bring the fault up to date")
  return text.replace(fault.old, fault.new)


def run(copy: Path, *arguments: str) -> tuple[int, str]:
  """Pytest's exit status and output, in the copy."""
  command = [
    sys.executable,
    "-m",
    "pytest",
    "-x",
    "-q",
    "-rfE",
    "-p",
    "no:cacheprovider",
    "-n",
    "0",
  ]
  environment = os.environ | {"LARPO_SEED": SEED, "PYTHONDONTWRITEBYTECODE": "1"}
  environment["PYTHONPATH"] = str(copy)
  environment.setdefault("LARPO_DATA", str(ROOT.parent / "shared" / "data"))
  try:
    done = subprocess.run(
      [*command, *arguments],
      cwd=copy,
      env=environment,
      timeout=LIMIT,
      capture_output=True,
      text=True,
    )
  except subprocess.TimeoutExpired:
    return 1, "FAILED it took too long"
  return done.returncode, done.stdout


def outcome(copy: Path, fault: Fault) -> Outcome:
  """Plants the fault, runs its tests, and the one that failed once more without it."""
  path = copy / "larpo_jax" / fault.file
  right = path.read_text()
  files = sorted({str(p.relative_to(copy)) for x in fault.tests.split() for p in copy.glob(x)})
  began = time.perf_counter()
  path.write_text(planted(right, fault))
  try:
    status, output = run(copy, *files, "-k", fault.select)
  finally:
    path.write_text(right)
  seconds = time.perf_counter() - began
  # From the summary's "FAILED tests/a_test.py::test_b[c] - why"; a name may hold a blank.
  failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", output, re.MULTILINE)
  if status == 0:
    return Outcome(fault, "", "no test sees it", seconds)
  if status != 1 or failed is None:
    return Outcome(fault, "", f"pytest exits with {status}: {output[-300:]}", seconds)
  killer = failed[1]
  if "::" in killer and run(copy, killer)[0] != 0:
    return Outcome(fault, "", f"{killer} fails without it too", seconds)
  return Outcome(fault, killer.removeprefix("tests/"), failed[2] or "", seconds)


def page(outcomes: list[Outcome], command: str) -> str:
  """The table as Markdown."""
  killed = [x for x in outcomes if x.killer]
  cell = lambda text: text.replace("|", "\\|").replace("\n", " ")  # noqa: E731
  rows = [
    f"| {cell(x.fault.what)} | {x.fault.file} | {cell(f'`{x.killer}`' if x.killer else x.why)}"
    f" | {x.seconds:.0f} |"
    for x in outcomes
  ]
  return "\n".join(
    [
      "# Faults that the tests have to see",
      "",
      f"`{command}` plants {len(outcomes)} faults in a copy of the package, one at a time, and runs"
      " the tests that should fail. A fault is killed by a test that fails with it and passes"
      " without it; the first that fails is named.",
      "",
      f"Killed: {len(killed)} of {len(outcomes)}. Python {platform.python_version()},"
      f" LARPO_SEED={SEED}; seconds with one fault planted, on two shared cores.",
      "",
      "| fault | in | killed by | s |",
      "|---|---|---|---|",
      *rows,
      "",
    ]
  )


def main() -> int:
  """Exit status 1 where a fault survives."""
  wanted = sys.argv[1:]
  planned = [x for x in FAULTS if not wanted or any(word in x.what for word in wanted)]
  with tempfile.TemporaryDirectory() as directory:
    copy = Path(directory)
    for name in ("larpo_jax", "tests", "experiments", "scripts"):
      shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
      shutil.copy(ROOT / name, copy / name)
    for fault in planned:  # all before the first is run
      planted((copy / "larpo_jax" / fault.file).read_text(), fault)
    outcomes = []
    for fault in planned:
      outcomes.append(outcome(copy, fault))
      last = outcomes[-1]
      print(f"{last.seconds:5.0f} s  {fault.what}: {last.killer or 'SURVIVED'} ({last.why})")
      sys.stdout.flush()
  if not wanted:
    PAGE.write_text(page(outcomes, "python scripts/mutations.py"))
  survivors = [x for x in outcomes if not x.killer]
  print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} killed")
  return 1 if survivors else 0


if __name__ == "__main__":
  sys.exit(main())
