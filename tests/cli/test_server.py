"""`server` and `token`: what they print, that a server loads nothing heavy, and that one which is asked to end does."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

HEAVY = {"torch", "transformers", "peft", "accelerate", "scipy", "sklearn", "huggingface_hub"}
TRACE = "import time:"


def _said(stderr: IO[str], imported: set[str]) -> Iterator[str]:
    """The lines that are none of `-X importtime`, whose modules are added to `imported`."""
    for line in stderr:
        if line.startswith(TRACE):
            imported.add(line.rpartition("|")[2].strip())
        else:
            yield line


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return str(listening.getsockname()[1])


def test_a_token_is_made_listed_and_revoked(prepared):
    made = prepared("token", "create", "ci", "--scope", "read,promote:skin-care", "--scope", "build", "--json").json
    assert made["scopes"] == ["read", "promote:skin-care", "build"]
    assert made["token"].startswith("rct_")
    assert prepared("token", "create", "cd", "--scope", "admin", "--expires", "never").out.startswith("rct_")
    listed = prepared("token", "list", "--json").json
    assert [(each["name"], each["expires_at"] is None) for each in listed] == [("cd", True), ("ci", False)]
    assert made["token"] not in str(listed)
    assert prepared("token", "revoke", "ci", "--json").json["revoked_at"]
    assert "revoked" in prepared("token", "list").out
    for words in (("create", "x", "--scope", "write"), ("create", "x", "--scope", "read", "--expires", "soon")):
        assert prepared("token", *words, "--json", code=2).json["error"]["code"] == "usage"
    assert prepared("token", "revoke", "nobody", "--json", code=1).json["error"]["code"] == "not_found"


def test_a_server_begins_answers_and_ends(prepared):
    refused = prepared("server", "--host", "0.0.0.0", code=2).err.splitlines()
    assert [line.split()[0] for line in refused[:2]] == ["starting", "error:"]
    port = _free_port()
    installed = str(Path(sys.executable).with_name("reccocktail"))
    command = [sys.executable, "-X", "importtime", installed, "server", "--port", port]
    process = subprocess.Popen(
        command, env=prepared.environment(), cwd=prepared.folder, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        imported = set[str]()
        said = _said(process.stderr, imported)
        begins = next(said)
        assert begins.startswith("starting")
        assert f"127.0.0.1, port {port}," in begins
        assert next(said) == f"serving http://127.0.0.1:{port}\n"
        assert "reccocktail.server.app" in imported, "the trace was read"
        assert not {name.partition(".")[0] for name in imported} & HEAVY
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            assert json.load(answer) == {"ok": True}
        again = prepared.process("server", "--port", port, code=2)
        assert "cannot listen" in again.err
        # a page that shows what happens as it does, and has no end of its own
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/events/follow", timeout=60) as followed:
            assert followed.readline() == b"retry: 2000\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert followed.read() == b"\n"  # it ends as an answer does, and is not cut off
        assert [*said] == ["stopped\n"]
    finally:
        process.kill()
        process.wait()
