"""Questions that need a model: answered one after the other in a thread, for as many as may wait, and kept for who asked for a while.

Each instance has its own; one that is asked elsewhere does not know them.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from ..registry.errors import NotFoundError, RecCocktailError
from .errors import TooManyRequestsError

log = logging.getLogger(__name__)
A = TypeVar("A")

MOST_OPEN = 6  # that wait or are being answered
MOST_OPEN_OF_ONE = 2  # of one caller
KEPT = 60  # of all callers, the newest


class Abandoned(Exception):  # noqa: N818  no error: the server ends
    """Ends an answer that nobody will read."""


@dataclass
class Ask(Generic[A]):
    """`stage` says what is being done, `done` of `total`. Of one that failed, `error` is what an answer of the API has."""

    id: str
    caller: str
    about: Any
    state: Literal["waiting", "running", "answered", "failed"] = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    answer: A | None = None
    error: dict[str, Any] | None = None
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def is_open(self) -> bool:
        return self.state in ("waiting", "running")


Work = Callable[["Ask[A]", Callable[[str], Any]], A]
"""(ask, bar): the answer. `bar(label)` is entered for each stage and gives what receives (done, total)."""


class Asks(Generic[A]):
    def __init__(self, failure: Callable[[str, str, str | None], dict[str, Any]]) -> None:
        """`failure` makes the body of an error."""
        self._failure = failure
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Ask[A]] = OrderedDict()
        self._due: deque[tuple[Ask[A], Work[A]]] = deque()
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()

    def add(self, caller: str, about: Any, work: Work[A]) -> Ask[A]:
        """Raises TooManyRequestsError where too many are waiting already, of the caller or of all."""
        with self._lock:
            waiting = [each for each in self._known.values() if each.is_open]
            self._expect_room(caller, waiting)
            found = Ask(secrets.token_hex(16), caller, about)
            self._known[found.id] = found
            self._forget()
            self._due.append((found, work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._answer_all, name="asks", daemon=True)
                self._thread.start()
        return found

    def get(self, id_: str, caller: str) -> Ask[A]:
        """Raises NotFoundError, also for somebody else's."""
        found = self._known.get(id_)
        if found is None or found.caller != caller:
            raise NotFoundError("there is no such question, or no more", hint="ask again")
        return found

    def before(self, ask: Ask[A]) -> int:
        """How many have their turn before it."""
        with self._lock:
            return next((place for place, (each, _) in enumerate(self._due) if each is ask), 0) + 1

    def close(self, seconds: float) -> None:
        """Abandons what is waiting, and what is being answered as soon as it reports progress."""
        self._is_over.set()
        with self._lock:
            self._due.clear()
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _expect_room(self, caller: str, waiting: list[Ask[A]]) -> None:
        mine = sum(each.caller == caller for each in waiting)
        if mine >= MOST_OPEN_OF_ONE or len(waiting) >= MOST_OPEN:
            whose = f"{mine} questions of {caller}" if mine >= MOST_OPEN_OF_ONE else f"{len(waiting)} questions"
            raise TooManyRequestsError(f"{whose} wait for an answer already", hint="ask again once one is answered")

    def _forget(self) -> None:
        for id_ in [id_ for id_, each in self._known.items() if not each.is_open][: max(0, len(self._known) - KEPT)]:
            del self._known[id_]

    def _answer_all(self) -> None:
        """Until nothing is due; the next question begins another thread, so that an idle server has none."""
        while True:
            with self._lock:
                if not self._due:
                    self._thread = None
                    return
                ask, work = self._due.popleft()
            self._answer(ask, work)

    def _answer(self, ask: Ask[A], work: Work[A]) -> None:
        ask.state = "running"
        try:
            ask.answer = work(ask, lambda label: self._stage(ask, label))
            ask.state = "answered"
        except RecCocktailError as error:
            ask.error, ask.state = self._failure(error.code, str(error), error.hint)["error"], "failed"
        except Exception as error:
            if not isinstance(error, Abandoned):
                log.error("a question", exc_info=error)
            message, hint = f"{type(error).__name__} in the server", "the server's log says where"
            ask.error, ask.state = self._failure("internal", message, hint)["error"], "failed"
        finally:
            ask.ended.set()

    @contextmanager
    def _stage(self, ask: Ask[A], label: str) -> Iterator[Callable[[int, int], None]]:
        ask.stage, ask.done, ask.total = label, 0, 0

        def progress(done: int, total: int) -> None:
            if self._is_over.is_set():
                raise Abandoned
            ask.done, ask.total = done, total

        yield progress
