"""Chat templates on trial, in a process of its own that the system ends: a template may loop or grow without end.

`tasks.chat_templates` runs this file by its path. Each line of stdin is a request, each line of stdout its answer, both JSON.
A trial that takes too long ends the process by SIGPROF, with no answer.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import threading
from queue import SimpleQueue
from typing import Any

LOOK_SECONDS = 1.0  # between two looks at whether the parent is there
MEMORY = 2 << 30  # of addresses, of which libraries have reserved a part


def main() -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever it is at
    requests = SimpleQueue[bytes]()
    # before the slow import: the process that asks may end meanwhile
    threading.Thread(target=_follow, args=[requests, os.getppid()], daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    from transformers.utils.chat_template_utils import render_jinja_template

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while True:
        request: dict[str, Any] = json.loads(requests.get())
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        problem = _problem(request, render_jinja_template)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps({"problem": problem}) + "\n")
        answers.flush()


def _follow(requests: SimpleQueue[bytes], parent: int) -> None:
    """Hands the lines of stdin on, and ends the process with the one that asks, of whose end of the pipe a fork may have a copy."""
    rest = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], LOOK_SECONDS)[0]:
            continue
        chunk = os.read(0, 1 << 16)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            requests.put(line)
    os._exit(0)


def _problem(request: dict[str, Any], render: Any) -> str | None:
    for messages in request["conversations"]:
        spoken = sum(len(message["content"]) for message in messages)
        asks = messages[-1]["role"] == "user"
        try:
            texts, _ = render(
                [messages], chat_template=request["template"], add_generation_prompt=asks, **request["tokens"]
            )
        except MemoryError:
            return "takes too much memory, and was stopped"
        except Exception:  # noqa: BLE001, S112  other problems with it are reported by its user
            continue
        if len(texts[0]) > spoken + request["most"]:
            return f"makes {len(texts[0]):,} characters of a conversation that has {spoken:,}"
    return None


if __name__ == "__main__":
    main()
