"""`worker` as a command: what goes together, and what it says."""

from __future__ import annotations

import json
import socket

import pytest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "2"], "--workers is for --executor process"),
        (["--executor", "process", "--cpus", "2"], "--address, --cpus and --gpus are for --executor ray"),
        (["--address", "head:6379"], "--address, --cpus and --gpus are for --executor ray"),
        (["--executor", "ray", "--address", "127.0.0.1:9", "--once"], "no Ray cluster can be reached at 127.0.0.1:9"),
        (["--group", "0"], "Invalid value for '--group'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_does_not_go_together_or_is_not_there_is_told(words, said, prepared):
    assert said in prepared("worker", *words, code=2).err


def test_it_says_one_object_a_line_and_answers_with_what_it_ended(prepared):
    for share in ("average", "ingredient-only"):
        prepared("build", "request", "skin-care", "--recipe", share)
    ran = prepared("worker", "--once", "--log-json", "--json")
    assert {build["status"] for build in ran.json} == {"succeeded"}
    said = [json.loads(line) for line in ran.err.splitlines()]
    assert [each["what"] for each in said] == ["begins", "begins", "succeeded", "succeeded", "ended"]
    assert said[0]["detail"] == "attempt 1, in one pass with 1 more"
    assert all(each["seconds"] > 0 for each in said if each["what"] == "succeeded")
    assert "no build was waiting" in prepared("worker", "--once").err


def test_counters_are_served_while_it_works_and_a_port_that_is_taken_is_told(prepared):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = prepared("worker", "--once", "--metrics-port", port, code=2)
    assert f"counters cannot be served at 127.0.0.1:{port}" in ran.err
    assert "another --metrics-port" in ran.err
    ran = prepared("worker", "--once", "--metrics-port", port)
    assert f"metrics are at http://127.0.0.1:{port}/metrics" in ran.err
