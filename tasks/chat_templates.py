"""Chat templates come with models and adapters, from anybody: they are tried under limits before they are used.

A template is a program. What it makes of the very conversations that it is to write is tried in a process that is killed when it
takes too much time or memory; only then the library carries it out in this process, where nothing could stop it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ChatTemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Sequence[Mapping[str, str]]

SECONDS, SECONDS_EACH = 5.0, 0.02  # of the processor's time: for a trial, and more for each of its conversations
AT_ONCE = 400  # conversations of one trial
MOST_ADDED = 1_000_000  # characters beyond those of the messages
_TRIAL = Path(__file__).with_name("template_trial.py")


def expect_bounded(tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Conversation]) -> None:
    """Raises ChatTemplateError where the tokenizer's template cannot write these conversations in bounded time and space.

    What else may be wrong with it is told where it is used.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):  # several by name, of which a conversation takes this one
        template = template.get("default")
    if not isinstance(template, str):
        return
    left = iter(conversations)
    while some := list(islice(left, AT_ONCE)):
        request = {
            "template": template,
            "tokens": tokenizer.special_tokens_map,
            "conversations": some,
            "seconds": SECONDS + SECONDS_EACH * len(some),
            "most": MOST_ADDED,
        }
        if problem := _trial.problem(json.dumps(request, default=str)):
            raise ChatTemplateError(
                f"the chat template of {tokenizer.name_or_path or 'the tokenizer'} {problem}",
                hint="give it the template of the model that it was made from, as chat_template.jinja",
            )


class _Trial:
    """The process that tries, started when it is first needed, and again after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._passed: set[int] = set()

    def problem(self, request: str) -> str | None:
        with self._lock:
            if hash(request) in self._passed:
                return None
            problem = self._tried(request)
            if problem is None:
                self._passed.add(hash(request))
            return problem

    def _tried(self, request: str) -> str | None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(request + "\n")
            process.stdin.flush()
        if answer := process.stdout.readline():
            return json.loads(answer)["problem"]
        code = process.wait()
        self.close()
        if code == -signal.SIGPROF:
            return "takes too long, and was stopped"
        if code < 0:
            return "takes too much memory, and was stopped"
        raise ChatTemplateError(f"chat templates cannot be tried: the process ended with {code}")

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._owner != os.getpid():  # a fork has no process of its own yet
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_TRIAL)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the command
            )
        return self._process

    def close(self) -> None:
        process: Any = self._process
        if process is not None and self._owner == os.getpid():
            with suppress(BrokenPipeError):
                process.stdin.close()  # which ends it
            process.stdout.close()
            process.wait()
        self._process = None


_trial = _Trial()
atexit.register(_trial.close)
