"""Runs of one process that go side by side, a thread each, and take their steps together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
import contextlib
import dataclasses
import threading
from typing import Any


@dataclasses.dataclass
class _Asked:
  """What a lane waits for."""

  what: Hashable
  function: Callable[[list[Any]], Sequence[Any]]
  argument: Any
  result: Any = None
  error: BaseException | None = None
  answered: bool = False


class Lanes:
  """A meeting point: when every lane waits here, those that ask for the same are answered at once.

  A lane that ends leaves, one that waits for something else is away; neither keeps the others.
  """

  def __init__(self, count: int):
    """count: how many lanes begin."""
    self.count = self._present = count
    self._asked: list[_Asked] = []
    self._meeting = threading.Condition()
    self._made: dict[Hashable, Any] = {}
    self.alone = threading.Lock()  # for what is better not done by several at a time

  def together(
    self, what: Hashable, function: Callable[[list[Any]], Sequence[Any]], argument: Any
  ) -> Any:
    """This lane's part of function([argument of each lane that asks for the same what])."""
    mine = _Asked(what, function, argument)
    with self._meeting:
      self._asked.append(mine)
      self._answer()
      self._meeting.wait_for(lambda: mine.answered)
    if mine.error is not None:
      raise mine.error
    return mine.result

  def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
    """What make() gives, made by the first lane that asks for that name."""
    with self._meeting:
      if name not in self._made:
        self._made[name] = make()
      return self._made[name]

  @contextlib.contextmanager
  def away(self) -> Iterator[None]:
    """While a lane waits for something else."""
    self.leave()
    try:
      yield
    finally:
      with self._meeting:
        self._present += 1

  def leave(self) -> None:
    """This lane asks for nothing more."""
    with self._meeting:
      self._present -= 1
      self._answer()

  def _answer(self) -> None:
    """Answers all that are here, where all are."""
    if len(self._asked) < self._present:
      return
    asked, self._asked = self._asked, []
    for what in dict.fromkeys(each.what for each in asked):
      group = [each for each in asked if each.what == what]
      try:
        for each, result in zip(group, group[0].function([each.argument for each in group])):
          each.result = result
      except BaseException as error:
        for each in group:
          each.error = error
      for each in group:
        each.answered = True
    self._meeting.notify_all()


class Turns:
  """A store of checkpoints whose work is done before that of another lane begins.

  Orbax numbers its operations for the whole process: two at a time wait for each other's files.
  """

  def __init__(self, store: Any, lock: threading.Lock):
    self._store, self._lock = store, lock

  def save(self, *arguments: Any, **named: Any) -> None:
    """Saves, and waits until it is done."""
    with self._lock:
      self._store.save(*arguments, **named)
      self._store.wait()

  def restore(self, state: Any) -> Any:
    """The latest good one."""
    with self._lock:
      return self._store.restore(state)

  def __getattr__(self, name: str) -> Any:
    """The rest has nothing to wait for."""
    return getattr(self._store, name)
