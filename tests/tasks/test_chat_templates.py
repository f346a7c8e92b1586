"""A chat template is a program of somebody's: it is bounded in time, memory and output, and what is bounded works as before."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from reccocktail.tasks import chat_templates, generate, load_template, questions
from reccocktail.tasks.chat_templates import expect_bounded
from reccocktail.tasks.errors import ChatTemplateError
from reccocktail.tasks.prompts import fit

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
HOSTILE = {
    "loops for long conversations alone": (
        "{% if messages[-1].content|length > 80 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
        "{% endfor %}{% endif %}",
        "too long",
    ),
    "a power, which is worked out while it is compiled": ("{{ 9 ** (9 ** 9) }}", "too long"),
    "a text that is repeated": ("{{ 'a' * 10 ** 11 }}", "memory"),
    "a text that doubles": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "too (long|much memory)",
    ),
    "much text": ("{{ 'a' * 2000000 }}", "2,000,000 characters"),
}


def tokenizer(template: Any) -> Any:
    return SimpleNamespace(
        chat_template=template, special_tokens_map={"eos_token": "<|im_end|>"}, name_or_path="acme/shop"
    )


def asked(length: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": "x" * length}]]


@pytest.mark.parametrize(("template", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_template_without_end_is_refused_and_named(template: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reccocktail.tasks.chat_templates.SECONDS", 1.0)
    begun = time.process_time()
    with pytest.raises(ChatTemplateError, match=rf"acme/shop.*{said}"):
        expect_bounded(tokenizer(template), asked(100))
    assert time.process_time() - begun < 1  # nothing of it ran here


def test_templates_that_do_what_they_should_pass_and_those_that_only_fail_are_left_to_the_library() -> None:
    expect_bounded(tokenizer(CHATML), asked(100_000))
    expect_bounded(tokenizer({"default": CHATML, "tool_use": "{{ 9 ** (9 ** 9) }}"}), asked(1))
    expect_bounded(tokenizer("{{ raise_exception('no system message') }}"), asked(1))
    expect_bounded(tokenizer("{% if %}"), asked(1))
    expect_bounded(tokenizer(None), asked(1))
    expect_bounded(tokenizer(HOSTILE["loops for long conversations alone"][0]), asked(10))


def test_questions_are_tried_as_they_are_put(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reccocktail.tasks.chat_templates.SECONDS", 1.0)
    _, found = questions(generate("skin-care", users=8), "test", load_template("pick-one"), limit=2)
    words = tokenizer(HOSTILE["loops for long conversations alone"][0])
    words.added_tokens_decoder, words.all_special_tokens = {}, []
    monkeypatch.setattr("reccocktail.tasks.prompts._tokens", lambda text, tokenizer: 1)
    with pytest.raises(ChatTemplateError, match="too long"):
        fit(found, words)
    words.chat_template = CHATML
    assert fit(found, words) == found


def test_the_process_that_tries_ends_with_the_one_that_asks_even_if_a_fork_holds_the_pipe() -> None:
    asking = """
import subprocess, sys, time
trial = subprocess.Popen([sys.executable, "-P", sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True)
fork = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, pass_fds=[trial.stdin.fileno()])
print(trial.pid, fork.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", asking, str(chat_templates._TRIAL)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    trial, fork = map(int, parent.stdout.readline().split())
    try:
        until = time.monotonic() + 60
        while len(os.listdir(f"/proc/{trial}/task")) < 2:  # noqa: PTH208  the thread knows its parent
            assert time.monotonic() < until
            time.sleep(0.01)
        parent.terminate()
        parent.wait()
        assert select.select([parent.stdout], [], [], 60)[0], "the trial, which has the other end, is still there"
        assert parent.stdout.read() == ""
    finally:
        os.kill(fork, signal.SIGKILL)
        parent.stdout.close()
