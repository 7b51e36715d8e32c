r"""What a train step sends between eight devices, for each way to use them: Markdown.

    python scripts/communication_table.py

Compiles a small step on eight fake CPU devices, a minute in all; the table is in docs/scaling.md.
"""

from __future__ import annotations

from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import conftest  # noqa: F401  eight devices, before jax looks for them

import communication  # isort: skip
from communication_test import MOST


def main() -> None:
  """Prints the table."""
  print("| mesh | " + " | ".join(communication.KINDS) + " |")
  print("|---" * (1 + len(communication.KINDS)) + "|")
  for mesh in MOST:
    shape = {axis: int(size) for axis, size in (part.split("=") for part in mesh.split())}
    found, parameters = communication.of_step(shape)
    totals = communication.totals(found)
    cells = [
      f"{totals[kind][1] / parameters:.2f} ({totals[kind][0]})" if kind in totals else "-"
      for kind in communication.KINDS
    ]
    print(f"| `{mesh}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
  main()
