"""Webhooks: each event reaches each target that wants it, signed and in order, on both databases; and targets that are refused."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from reccocktail.registry import Adapter, Registry
from reccocktail.registry.catalog.events import KINDS as EVENT_KINDS
from reccocktail.registry.database import migrate, triggers
from reccocktail.registry.database.tables import Table, now
from reccocktail.registry.errors import ConflictError, NotFoundError, UsageError, WebhookError, WebhookTargetError
from reccocktail.registry.webhooks import post as posting
from reccocktail.registry.webhooks.delivery import Deliverer, Surroundings, send_test
from reccocktail.registry.webhooks.hooks import Webhook, WebhookFields
from reccocktail.registry.webhooks.kinds import KINDS
from reccocktail.registry.webhooks.outbox import MAX_ATTEMPTS, Answer, Delivery, DeliveryFilter, wait_seconds
from reccocktail.registry.webhooks.signing import read_secret, reference
from reccocktail.registry.webhooks.targets import is_public, parse


@dataclass
class Clock:
    """Stands still until it is moved."""

    moment: datetime

    def __call__(self) -> datetime:
        return self.moment

    def pass_(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class Post:
    """Who delivers, by a clock of its own; all wait the whole of each back-off."""

    def __init__(self, registry: Registry, receiver: Any) -> None:
        self.clock = Clock(now() + timedelta(seconds=1))
        self._registry = registry
        self.environ = {"HOOK": receiver.secret}

    def deliverer(self, **other: Any) -> Deliverer:
        around = {"clock": self.clock, "share": lambda: 1.0, "environ": self.environ} | other
        return Deliverer(self._registry.outbox, Surroundings(**around))

    def run(self, **other: Any) -> list[Delivery]:
        return [*self.deliverer(**other).run()]


@pytest.fixture
def post(registry: Registry, receiver: Any) -> Post:
    return Post(registry, receiver)


@pytest.fixture
def hook(registry: Registry, receiver: Any) -> Callable[..., Webhook]:
    """(name, fields of WebhookFields): a webhook whose target is the receiver."""

    def add(name: str = "hook", **fields: Any) -> Webhook:
        given = {"url": receiver.url, "secret": "env:HOOK", "allow_private": True} | fields
        return registry.webhooks.add(name, WebhookFields(**given))

    return add


@pytest.fixture
def moves(registry: Registry, add: Callable[..., Adapter]) -> Callable[..., None]:
    """(domain, count): champion goes to and fro so often between two versions of the domain."""
    moved = Counter[str]()

    def move(domain: str, count: int) -> None:
        if domain not in moved:
            registry.domains.add(domain)
            add(domain, 1)
            add(domain, 2)
        for _ in range(count):
            moved[domain] += 1
            registry.adapters.alias(f"{domain}@v{1 + moved[domain] % 2}", "champion")

    return move


def test_each_event_that_is_wanted_arrives_once_signed_and_as_the_log_has_it(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any
) -> None:
    moves("toys", 1)  # before there is a webhook
    hook("all")
    hook("toys-only", domains=["toys"], kinds=["alias.moved"])
    hook("off", active=False)
    moves("beauty", 3)
    moves("toys", 1)
    assert registry.webhooks.get("off").pending == 0
    done = post.run()
    assert {(each.status, each.status_code, each.attempts) for each in done} == {("delivered", 204, 1)}
    wanted = [e for e in registry.events.list(limit=1000)[::-1] if e.kind in {k for ks in KINDS.values() for k in ks}]
    of_all = [each for each in done if each.webhook == "all"]
    assert sorted(each.event for each in of_all) == [event.id for event in wanted][-len(of_all) :]
    assert [each.happened for each in done if each.webhook == "toys-only"] == ["alias.moved"]
    assert all(each.is_signed for each in receiver.received)
    assert {int(each.headers["RecCocktail-Event"]) for each in receiver.received} == {each.event for each in done}
    newest = registry.events.list(limit=1)[0]
    body = next(body for body in receiver.bodies if body["id"] == newest.id)
    assert body == {
        "id": newest.id,
        "kind": "alias.moved",
        "domain": "toys",
        "time": newest.created_at.isoformat(),
        "actor": newest.created_by,
        "data": {"event": newest.kind, "subject": "toys@champion", "detail": dict(newest.detail)},
    }
    assert post.run() == []


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_database_and_the_code_have_the_same_kinds(dialect: str) -> None:
    rules = max(triggers.FOLDER.glob(f"*.{dialect}.sql")).read_text()
    written = rules.partition("events_wake_webhooks")[2].partition("ELSE NEW.kind END")[0]
    renamed = {event: kind for kind, events in KINDS.items() for event in events if event != kind}
    assert dict(re.findall(r"WHEN '([a-z.]+)' THEN '([a-z.]+)'", written)) == renamed
    known = {f"{noun}.{verb}" for noun, verbs in EVENT_KINDS.items() for verb in verbs}
    assert {event for events in KINDS.values() for event in events} <= known


def test_what_fails_is_tried_again_later_and_later_and_given_up_and_redelivered(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any
) -> None:
    hook(kinds=["alias.moved"])
    moves("beauty", 1)
    receiver.answer = lambda request: (500, {}, b"our disk is full \x1b[31m" + receiver.secret.encode())
    waits = []
    for attempt in range(1, MAX_ATTEMPTS + 1):
        (done,) = post.run()
        assert (done.attempts, done.status_code) == (attempt, 500)
        assert post.run() == []  # not before its time
        if done.retry_at is not None:
            waits.append((done.retry_at - post.clock()).total_seconds() - (done.seconds or 0))
            post.clock.pass_(waits[-1] + (done.seconds or 0))
    assert waits[:4] == pytest.approx([10, 20, 40, 80])
    assert max(waits) == pytest.approx(6 * 3600)
    assert [wait_seconds(3, 0.0), wait_seconds(3, 1.0)] == [20.0, 40.0]  # the jitter
    assert done.status == "dead"
    assert registry.outbox.dead("hook") == [done.id]
    tried = registry.outbox.attempts(done.id)
    assert len(tried) == MAX_ATTEMPTS
    assert tried[0].error == "answered 500: our disk is full [31m[secret]"

    receiver.answer = lambda request: 200
    (again,) = registry.outbox.redeliver([done.id])
    assert (again.status, again.attempts) == ("pending", 0)
    with pytest.raises(ConflictError):
        registry.outbox.redeliver([done.id])
    with pytest.raises(NotFoundError):
        registry.outbox.redeliver([done.id, 99])
    (sent,) = post.run()
    assert (sent.status, sent.error, sent.event) == ("delivered", None, done.event)
    assert len({each.raw for each in receiver.received}) == 1  # the body is the same each time
    assert len({each.headers["RecCocktail-Timestamp"] for each in receiver.received}) == MAX_ATTEMPTS
    assert all(each.is_signed for each in receiver.received)
    assert registry.outbox.redeliver([done.id])[0].status == "pending"  # what arrived may be sent again too


def test_a_later_event_waits_for_an_earlier_one_of_its_domain_and_kind_and_no_other_does(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any
) -> None:
    moves("beauty", 1)
    moves("toys", 1)
    hook()
    moves("beauty", 3)
    moves("toys", 2)
    registry.adapters.archive("toys@v1", force=True)
    stuck = min(each.event for each in registry.outbox.list() if each.domain == "beauty")
    receiver.answer = lambda request: 503 if request.body["id"] == stuck else 204
    done = post.run()
    assert [each.event for each in done if each.domain == "beauty"] == [stuck]
    assert [each.status for each in done if each.domain == "toys"] == ["delivered"] * 2
    assert registry.webhooks.get("hook").pending == 3
    receiver.answer = lambda request: 204
    post.clock.pass_(11)
    later = [each.event for each in post.run()]
    assert later == sorted(later)
    assert len(later) == 3
    # one that was given up does not keep the others back
    moves("beauty", 2)
    first, second = (each.id for each in registry.outbox.list(DeliveryFilter(status="pending"))[::-1])
    receiver.answer = lambda request: 503 if request.headers["RecCocktail-Delivery"] == str(first) else 204
    for _ in range(MAX_ATTEMPTS):
        assert {each.id for each in post.run()} <= {first, second}
        post.clock.pass_(6 * 3600 + 60)
    assert [each.status for each in registry.outbox.list(limit=2)] == ["delivered", "dead"]


def test_what_one_deliverer_holds_no_other_sends_until_its_lease_has_run_out(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any
) -> None:
    hook(kinds=["alias.moved"])
    moves("beauty", 2)
    (held,) = registry.outbox.claim("gone", 8, post.clock(), ["hook"])
    assert registry.outbox.claim("other", 8, post.clock(), ["hook"]) == []  # nor what comes after it
    assert post.run() == []
    post.clock.pass_(61)
    assert [each.status for each in post.run()] == ["delivered"] * 2
    # whoever was slow reports late: its attempt is kept, and changes nothing
    late = registry.outbox.settle(held, "gone", post.clock(), Answer(None, "no answer", 1.0), 1.0)
    assert late is not None
    assert (late.status, late.attempts, late.error) == ("delivered", 1, "no answer")
    # and what is given back is free at once
    moves("beauty", 1)
    registry.outbox.claim("stopped", 8, post.clock(), ["hook"])
    registry.outbox.release("stopped")
    assert len(post.run()) == 1


def test_a_webhook_with_many_domains_that_hang_leaves_turns_to_others(
    registry: Registry, hook: Any, post: Post, moves: Any
) -> None:
    hook("slow", kinds=["alias.moved"])
    for number in range(4):
        moves(f"d{number}", 1)
    hook("quick", kinds=["alias.moved"])
    moves("d3", 1)
    assert {each.webhook for each in registry.outbox.claim("me", 2, post.clock(), ["slow", "quick"])} == {
        "slow",
        "quick",
    }


def test_without_its_secret_nothing_is_sent_or_lost_and_it_is_said(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any
) -> None:
    hook(kinds=["alias.moved"])
    moves("beauty", 1)
    for value in (None, "short"):
        post.environ = {"HOOK": value} if value else {}
        deliverer = post.deliverer()
        assert [*deliverer.run()] == []
        assert "HOOK" in deliverer.unsigned["hook"]
        assert "this process" in deliverer.unsigned["hook"]
        assert "short" not in deliverer.unsigned["hook"].replace("too short", "")
        with pytest.raises(WebhookError):
            send_test(registry.webhooks.get("hook"), Surroundings(environ=post.environ))
    assert receiver.received == []
    assert registry.outbox.list()[0].attempts == 0
    post.environ = {"HOOK": receiver.secret}
    assert len(post.run()) == 1
    assert send_test(registry.webhooks.get("hook"), Surroundings(environ=post.environ)).error is None
    assert receiver.received[-1].is_signed
    assert receiver.bodies[-1]["kind"] == "test"


def test_a_secret_is_named_and_never_kept(tmp_path: Any) -> None:
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef\n")
    assert read_secret(reference(None, file)) == b"0123456789abcdef"
    assert reference("HOOK", None) == "env:HOOK"
    for given in ((None, None), ("HOOK", file), ("s3cr3t-value with blanks", None)):
        with pytest.raises(UsageError) as caught:
            reference(*given)
        assert "s3cr3t" not in str(caught.value)
    file.write_text("x" * 5000)
    for where in (f"file:{file}", f"file:{tmp_path}", f"file:{tmp_path}/none"):
        with pytest.raises(WebhookError):
            read_secret(where)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "ftp://example.com/hook",
        "https://ann@example.com/",
        "https:///hook",
        "https://example.com/#part",
        "https://example.com:99999/",
        "https://example.com:0/",
        "example.com/hook",
        "https://example.com/" + "x" * 2000,
        "https://exa\nmple.com/",
    ],
)
def test_a_url_that_is_no_target_is_refused(url: str) -> None:
    with pytest.raises(WebhookTargetError):
        parse(url, allow_private=False)


def test_addresses_that_are_not_public_are_recognised_however_they_are_written() -> None:
    private = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"]  # fmt: skip
    inside = ["::1", "::", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "no address"]  # fmt: skip
    assert [address for address in private + inside if is_public(address)] == []
    assert all(map(is_public, ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"]))


def test_a_private_target_is_refused_when_it_is_added_and_edited_and_at_each_delivery(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any
) -> None:
    port = receiver.url.rpartition(":")[2].partition("/")[0]
    url = f"https://hooks.example:{port}/hook"
    asked: list[str] = []

    def resolving(*answers: list[str]) -> Callable[[str, int], list[str]]:
        left = [*answers]

        def resolve(host: str, port: int) -> list[str]:
            asked.append(host)
            return left.pop(0) if len(left) > 1 else left[0]

        return resolve

    fields = WebhookFields(url=url, secret="env:HOOK", kinds=["alias.moved"])
    for answer in (["127.0.0.1"], ["8.8.8.8", "10.0.0.1"]):  # one of several is enough
        with pytest.raises(WebhookTargetError, match=answer[-1]):
            registry.webhooks.add("hook", fields, resolve=resolving(answer))
    with pytest.raises(WebhookTargetError):
        registry.webhooks.add("hook", WebhookFields(url="https://127.1/", secret="env:HOOK"))
    hook(kinds=["alias.moved"])
    with pytest.raises(WebhookTargetError):
        registry.webhooks.edit("hook", WebhookFields(allow_private=False))
    assert registry.webhooks.get("hook").allow_private
    registry.webhooks.edit("hook", WebhookFields(url=url, allow_private=False), resolve=resolving(["8.8.8.8"]))
    moves("beauty", 1)
    # the name was public when it was added, and is not any more
    (done,) = post.run(resolve=resolving(["127.0.0.1"]))
    assert (done.status, done.status_code) == ("pending", None)
    assert "127.0.0.1" in (done.error or "")
    assert receiver.received == []

    def gone(host: str, port: int) -> list[str]:
        raise OSError("unknown")

    post.clock.pass_(11)
    assert "cannot be resolved" in (post.run(resolve=gone)[0].error or "")


def test_the_connection_goes_to_the_address_that_was_checked_and_to_no_other(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any
) -> None:
    """The name does not exist: whoever asked the name server again would not find it. The receiver still sees the name."""
    hook(url=receiver.url.replace("127.0.0.1", "hooks.example"), kinds=["alias.moved"])
    moves("beauty", 1)
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if asked == ["hooks.example"] else ["203.0.113.1"]

    (done,) = post.run(resolve=resolve)
    assert done.status == "delivered"
    assert asked == ["hooks.example"]
    assert receiver.received[0].headers["Host"].startswith("hooks.example:")


def test_a_redirect_is_not_followed_and_an_answer_is_read_only_so_far(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any
) -> None:
    hook(kinds=["alias.moved"])
    moves("beauty", 1)
    receiver.answer = lambda request: (302, {"Location": "/elsewhere"}, b"")
    (done,) = post.run()
    assert (done.status_code, done.status) == (302, "pending")
    post.clock.pass_(11)
    receiver.answer = lambda request: (418, {}, b"x" * 1_000_000)
    (done,) = post.run()
    assert len(done.error or "") <= 300
    assert [each.path for each in receiver.received] == ["/hook"] * 2
    receiver.close()
    post.clock.pass_(21)
    (done,) = post.run()
    assert (done.status_code, done.attempts) == (None, 3)


def test_an_answer_that_drips_is_given_up(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "TOTAL_SECONDS", 0.2)
    hook(kinds=["alias.moved"])
    moves("beauty", 1)
    over = threading.Event()

    def drip(request: Any) -> int:
        over.wait(60)
        return 204

    receiver.answer = drip
    (done,) = post.run()
    over.set()
    assert (done.status_code, done.status) == (None, "pending")
    assert "in time" in (done.error or "")


def test_a_webhook_is_edited_shown_and_removed_and_the_log_has_who_did_it(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any, sql: Any
) -> None:
    registry.domains.add("toys")
    found = hook(kinds=["build.failed", "alias.moved"], domains=["toys"])
    assert (found.kinds, found.domains, found.secret) == (("alias.moved", "build.failed"), ("toys",), "env:HOOK")
    with pytest.raises(ConflictError):
        hook()
    for wrong in ({"kinds": ["alias.mved"]}, {"url": None}, {"secret": None}):
        with pytest.raises(UsageError):
            hook("other", **wrong)
    with pytest.raises(NotFoundError):
        hook("other", domains=["beauty"])
    edited = registry.webhooks.edit("hook", WebhookFields(domains=[], kinds=[], secret="env:OTHER"))
    assert (edited.kinds, edited.domains, edited.secret) == (tuple(KINDS), (), "env:OTHER")
    registry.webhooks.edit("hook", WebhookFields(domains=[]))  # changes nothing
    moves("beauty", 2)
    assert registry.webhooks.edit("hook", WebhookFields(active=False, secret="env:HOOK")).pending == 4
    assert post.run() == []  # what waited still does
    moves("beauty", 1)
    assert registry.webhooks.edit("hook", WebhookFields(active=True)).pending == 4
    assert len(post.run()) == 4
    moves("beauty", 1)
    assert registry.webhooks.remove("hook").pending == 1
    assert registry.webhooks.list() == []
    for name in ("webhook_deliveries", "webhook_attempts"):
        assert sql(f"SELECT count(*) FROM {name}") == [(0,)]
    with pytest.raises(NotFoundError):
        registry.webhooks.get("hook")
    kinds = [event.kind for event in registry.events.list(kind="webhook")][::-1]
    assert kinds == ["webhook.added", "webhook.edited", "webhook.edited", "webhook.edited", "webhook.removed"]


def test_the_secret_is_in_no_row(
    registry: Registry, hook: Any, post: Post, receiver: Any, moves: Any, sql: Any
) -> None:
    hook()
    moves("beauty", 1)
    receiver.answer = lambda request: (400, {}, f"wrong: {receiver.secret}".encode())
    post.run()
    rows = [repr(sql(f"SELECT * FROM {table}")) for table in Table.metadata.tables]
    assert "env:HOOK" in "".join(rows)
    assert receiver.secret not in "".join(rows)


def test_the_database_holds_what_a_delivery_is(registry: Registry, hook: Any, post: Post, moves: Any, sql: Any) -> None:
    hook(kinds=["alias.moved"])
    moves("beauty", 2)
    post.run()
    moves("beauty", 1)
    pending = "WHERE status = 'pending'"
    columns = "webhook_id, event_id, kind, domain_id, status, attempts, created_at"
    for statement in (
        "UPDATE webhooks SET name = 'other'",
        "UPDATE webhooks SET secret = 'a plain secret'",
        f"UPDATE webhook_deliveries SET kind = 'build.failed' {pending}",
        f"UPDATE webhook_deliveries SET status = 'delivered', finished_at = created_at {pending}",
        f"UPDATE webhook_deliveries SET status = 'dead', finished_at = created_at {pending}",
        f"UPDATE webhook_deliveries SET worker = 'me' {pending}",
        f"DELETE FROM webhook_deliveries {pending}",
        f"INSERT INTO webhook_deliveries ({columns}) SELECT {columns} FROM webhook_deliveries {pending}",
        f"INSERT INTO webhook_deliveries ({columns}) SELECT webhook_id, 1, kind, domain_id, status, 0, created_at FROM webhook_deliveries {pending}",
        "UPDATE webhook_attempts SET status_code = 500",
        "DELETE FROM webhook_attempts",
        "INSERT INTO webhook_attempts (delivery_id, at, seconds, status_code) SELECT delivery_id, at, 1, 500 FROM webhook_attempts LIMIT 1",
    ):
        with pytest.raises(sql.refusals):
            sql(statement)
    assert [row.status for row in registry.outbox.list()] == ["pending", "delivered", "delivered"]


def test_going_back_a_schema_takes_webhooks_away_and_leaves_all_else(
    registry: Registry, hook: Any, post: Post, moves: Any
) -> None:
    hook(kinds=["alias.moved"])
    moves("beauty", 2)
    assert len(post.run()) == 2
    before, url = registry.events.list(limit=1000), registry.settings.database_url
    with pytest.raises(UsageError, match="webhooks"):
        migrate.downgrade(url, "0010")
    migrate.downgrade(url, "0010", allow_loss=True)
    migrate.upgrade(url)
    migrate.check(url)
    assert registry.events.list(limit=1000) == before
    assert registry.webhooks.list() == []
    moves("beauty", 1)
