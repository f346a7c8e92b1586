"""`webhook`: adding, showing, testing, delivering and redelivering, as it is typed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from reccocktail.engine.building.stale_events import record_stale
from reccocktail.registry import Registry
from reccocktail.registry.webhooks.hooks import WebhookFields


@pytest.fixture
def ops(prepared: Any, receiver: Any) -> Any:
    """skin-care with a version, and a webhook `ops` whose target is the receiver; the command has its secret."""

    def run(*words: Any, **more: Any) -> Any:
        return prepared("webhook", *words, **{"OPS_SECRET": receiver.secret} | more)

    run("add", "ops", receiver.url, "--secret-env", "OPS_SECRET", "--kind", "alias.moved", "--allow-private")
    return run


def test_a_webhook_is_added_tested_and_told_and_all_of_it_is_json(ops: Any, prepared: Any, receiver: Any) -> None:
    assert ops("test", "ops", "--json").json["status_code"] == 204
    assert receiver.bodies[0]["kind"] == "test"
    prepared("adapter", "alias", "skin-care@v1", "champion")
    (waiting,) = ops("log", "--json").json
    assert (waiting["status"], waiting["attempts"], waiting["subject"]) == ("pending", 0, "skin-care@champion")
    (done,) = ops("deliver", "--json").json
    assert (done["id"], done["status"], done["status_code"]) == (waiting["id"], "delivered", 204)
    assert receiver.received[1].is_signed
    assert receiver.bodies[1]["data"]["event"] == "alias.set"
    assert ops("deliver", "--json").json == []
    assert [each["status_code"] for each in ops("log", "--delivery", done["id"], "--json").json] == [204]
    (again,) = ops("redeliver", done["id"], "--json").json
    assert again["status"] == "pending"
    assert len(ops("deliver", "--json").json) == 1
    assert [body["id"] for body in receiver.bodies[1:]] == [done["event"]] * 2
    assert ops("redeliver", "--dead", "ops", "--json").json == []
    shown = ops("show", "ops", "--json").json
    assert (shown["secret"], shown["kinds"], shown["domains"]) == ("env:OPS_SECRET", ["alias.moved"], [])
    assert ops("disable", "ops", "--json").json["active"] is False
    assert ops("enable", "ops", "--json").json["active"] is True
    assert ops("edit", "ops", "--all-kinds", "--domain", "kitchen", "--json").json["domains"] == ["kitchen"]
    assert len(ops("edit", "ops", "--all-domains", "--json").json["kinds"]) == 6
    assert [each["name"] for each in ops("list", "--json").json] == ["ops"]
    assert ops("remove", "ops", "--json").json["pending"] == 0
    assert ops("list", "--json").json == []


def test_what_cannot_be_is_refused_by_a_code_and_nothing_is_written(ops: Any, receiver: Any) -> None:
    def code(*words: str, status: int, **more: str) -> str:
        return ops(*words, "--json", code=status, **more).json["error"]["code"]

    more = ("--secret-env", "X")
    assert code("add", "new", receiver.url, *more, status=2) == "webhook_target"
    assert code("add", "new", "https://127.0.0.1/", *more, status=2) == "webhook_target"
    assert code("add", "new", "https://8.8.8.8/", status=2) == "usage"
    assert code("add", "new", "https://8.8.8.8/", *more, "--kind", "build.faild", status=2) == "usage"
    assert code("add", "new", "https://8.8.8.8/", *more, "--domain", "nowhere", status=1) == "not_found"
    assert code("add", "ops", receiver.url, *more, "--allow-private", status=1) == "conflict"
    assert code("edit", "ops", status=2) == "usage"
    assert code("edit", "ops", "--kind", "build.failed", "--all-kinds", status=2) == "usage"
    assert code("edit", "ops", "--public-only", status=2) == "webhook_target"
    assert code("redeliver", status=2) == "usage"
    assert code("redeliver", "7", status=1) == "not_found"
    assert code("log", "--delivery", "7", status=1) == "not_found"
    assert code("log", "other", status=1) == "not_found"
    assert code("log", "ops", "--delivery", "7", status=2) == "usage"
    assert code("show", "opps", status=1) == "not_found"
    assert code("test", "ops", status=1, OPS_SECRET="") == "webhook"
    receiver.answer = lambda request: 500
    assert code("test", "ops", status=1) == "webhook"
    assert [each["name"] for each in ops("list", "--json").json] == ["ops"]


def test_what_did_not_arrive_is_an_exit_code_and_a_line_each(ops: Any, prepared: Any, receiver: Any) -> None:
    prepared("adapter", "alias", "skin-care@v1", "champion")
    answer = ops("deliver", code=1, OPS_SECRET="")
    assert "OPS_SECRET" in answer.err
    receiver.answer = lambda request: (500, {}, receiver.secret.encode())
    answer = ops("deliver", code=1)
    assert "500" in answer.out
    texts = [answer.out, answer.err, *(ops(*words).out for words in (["log"], ["show", "ops"], ["log", "--json"]))]
    texts.append(prepared("log", "--kind", "webhook", "--json").out)
    assert receiver.secret not in "".join(texts)


def test_a_process_that_follows_delivers_what_comes_and_ends_by_sigterm(
    ops: Any, prepared: Any, receiver: Any, warm: Any
) -> None:
    words = [Path(sys.executable).with_name("reccocktail"), "webhook", "deliver", "--follow", "--json"]
    environment = prepared.environment() | {"OPS_SECRET": receiver.secret}
    with warm.popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        prepared("adapter", "alias", "skin-care@v1", "champion")
        assert '"delivered"' in process.stdout.readline()
        prepared("adapter", "alias", "skin-care@champion", "--remove")
        assert '"alias.removed"' in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
    assert [body["data"]["event"] for body in receiver.bodies] == ["alias.set", "alias.removed"]


def test_a_domain_that_becomes_stale_is_an_event_once_for_each_time_that_it_does(
    built: Any, loras: dict[str, Path]
) -> None:
    def kinds(registry: Registry) -> list[str]:
        found = registry.events.list(kind="domain", domain="skin-care")
        return [event.kind for event in found if event.kind in ("domain.stale", "domain.fresh")][::-1]

    with built.registry() as registry:
        registry.webhooks.add("ops", WebhookFields("https://8.8.8.8/", ["domain.stale"], secret="env:X"))
        assert record_stale(registry) == []
        built("adapter", "add", loras["newer"], "--base", "tiny", "--domain", "skin-care")
        assert record_stale(registry) == ["skin-care"]
        assert record_stale(registry) == []
        event = registry.events.list(kind="domain.stale")[0]
        assert event.detail["reasons"]
        assert event.detail["build"] == registry.serving.served("skin-care")[0].build
        registry.adapters.archive("skin-care@v2", force=True)  # what is served is current again
        assert record_stale(registry) == []
        registry.adapters.restore("skin-care@v2")
        assert record_stale(registry) == ["skin-care"]
        assert kinds(registry) == ["domain.stale", "domain.fresh", "domain.stale"]
        assert [each.kind for each in registry.outbox.list()] == ["domain.stale"] * 2


def test_the_receiver_of_the_docs_takes_what_is_signed_and_refuses_the_rest(ops: Any, receiver: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text(encoding="utf-8")
    code = (
        page.partition("```python\n")[2]
        .partition("```")[0]
        .replace(".serve_forever()", "")
        .replace("HTTPServer((", "server = HTTPServer((")
    )
    heard: list[Any] = []
    found: dict[str, Any] = {"print": heard.append}
    exec(code.replace('("", 8000)', '("127.0.0.1", 0)'), found)
    server = found["server"]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    found["Hook"].log_message = lambda *words: None
    found["os"] = SimpleNamespace(environ={"OPS_SECRET": receiver.secret})  # a program of its own
    try:
        ops("edit", "ops", "--url", f"http://127.0.0.1:{server.server_port}/")
        assert ops("test", "ops", "--json").json["status_code"] == 204
        wrong = ops("test", "ops", "--json", code=1, OPS_SECRET="another secret 0123456789").json["error"]["message"]
    finally:
        server.shutdown()
        server.server_close()
    assert "401" in wrong
    assert [body["kind"] for body in heard] == ["test"]
