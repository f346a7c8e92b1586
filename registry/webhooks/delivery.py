"""Delivering: claims what is due in the outbox, signs it, sends it, and records what came of it.

Several deliverers, on one machine or many, share one outbox. What a body has never changes between attempts; its timestamp and
signature are those of the attempt.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..database.tables import now
from ..errors import RecCocktailError, UsageError, WebhookError
from ..redaction import SECRET
from . import targets
from .hooks import Webhook
from .kinds import TEST
from .outbox import Answer, Claim, Delivery, Outbox
from .post import post
from .signing import HERE, read_secret, signature

AT_ONCE = 8  # requests under way

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Surroundings:
    """What a test may replace: the clock, the name server, and where the jitter comes from (a share from 0 to 1).

    `reader` is who reads secrets, as errors call it: this process, or the server for who asks it.
    """

    clock: Clock = now
    resolve: targets.Resolve = targets.resolve
    share: Callable[[], float] = random.random
    environ: Mapping[str, str] | None = None
    reader: str = HERE


class Deliverer:
    """Sends what is due, as one of any number that do. `unsigned` has the webhooks whose secret could not be read, and why."""

    def __init__(self, outbox: Outbox, surroundings: Surroundings | None = None) -> None:
        self._outbox = outbox
        self._around = surroundings or Surroundings()
        self._me = f"deliverer/{secrets.token_hex(8)}"
        self.unsigned: dict[str, str] = {}

    def run(self) -> Iterator[Delivery]:
        """Sends until nothing is due; each delivery that was tried, as it is afterwards. Claims are given back when it is stopped."""
        while found := self.round():
            yield from found

    def round(self) -> list[Delivery]:
        """One claim of a few deliveries, which are sent at the same time. None of a webhook whose secret is not to be had here."""
        keys = self._keys()
        claims = self._outbox.claim(self._me, AT_ONCE, self._around.clock(), keys) if keys else []
        if not claims:
            return []
        try:
            with ThreadPoolExecutor(len(claims), thread_name_prefix="webhook") as pool:
                done = [*pool.map(lambda claim: self._deliver(claim, keys[claim.webhook]), claims)]
        except BaseException:
            with suppress(RecCocktailError):  # otherwise the leases run out
                self._outbox.release(self._me)
            raise
        return [each for each in done if each is not None]

    def _keys(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        self.unsigned = {}
        for name, where in self._outbox.secrets().items():
            try:
                found[name] = read_secret(where, self._around.environ, reader=self._around.reader)
            except WebhookError as error:
                self.unsigned[name] = str(error)
        return found

    def _deliver(self, claim: Claim, secret: bytes) -> Delivery | None:
        began = self._around.clock()
        answer = _sent(_Message.of(claim), secret, began, self._around.resolve)
        return self._outbox.settle(claim, self._me, began, answer, self._around.share())


def send_test(hook: Webhook, surroundings: Surroundings | None = None) -> Answer:
    """Sends an event of the kind `test`, which is in no log, to see whether the target takes it. Raises WebhookError for the secret."""
    around = surroundings or Surroundings()
    moment = around.clock()
    about = {"webhook": hook.name, "kinds": [*hook.kinds]}
    headers = {"Event": TEST, "Delivery": TEST}
    body = _body(id=None, kind=TEST, domain=None, time=_iso(moment), actor=hook.created_by, data=about)
    message = _Message(hook.url, hook.allow_private, headers, body)
    secret = read_secret(hook.secret, around.environ, reader=around.reader)
    return _sent(message, secret, moment, around.resolve)


def expect_test(hook: Webhook, surroundings: Surroundings | None = None) -> dict[str, Any]:
    """As `send_test`: what the target answered, as plain JSON. Raises WebhookError where the event did not arrive, too."""
    found = send_test(hook, surroundings)
    if found.error is not None:
        raise WebhookError(
            f"the test event did not arrive: {found.error}", hint=f"`reccocktail webhook show {hook.name}`"
        )
    return {"webhook": hook.name, "status_code": found.status_code, "seconds": found.seconds}


@dataclass(frozen=True)
class _Message:
    """What is sent, before it is signed; `headers` without their common beginning."""

    url: str
    allow_private: bool
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(cls, claim: Claim) -> _Message:
        data = {"event": claim.event_kind, "subject": claim.subject, "detail": claim.detail}
        body = _body(
            id=claim.event_id, kind=claim.kind, domain=claim.domain, time=_iso(claim.at), actor=claim.actor, data=data
        )
        headers = {"Event": str(claim.event_id), "Delivery": str(claim.id)}
        return cls(claim.url, claim.allow_private, headers, body)


def _sent(message: _Message, secret: bytes, moment: datetime, resolve: targets.Resolve) -> Answer:
    """The answer of the target, whose addresses are looked up and checked now."""
    try:
        target = targets.parse(message.url, allow_private=message.allow_private)
        at = targets.addresses(target, allow_private=message.allow_private, resolve=resolve)
    except UsageError as error:
        return Answer(None, f"not sent: {error}", 0.0)
    timestamp = int(moment.timestamp())
    signed = {"Timestamp": str(timestamp), "Signature": signature(secret, timestamp, message.body)}
    headers = {f"RecCocktail-{name}": value for name, value in {**message.headers, **signed}.items()}
    headers |= {"Content-Type": "application/json", "User-Agent": "RecCocktail-Webhook"}
    answer = post(target, at, headers, message.body)
    hidden = (answer.error or "").replace(secret.decode("utf-8", "replace"), SECRET)
    return Answer(answer.status_code, hidden or None, answer.seconds)


def _body(**fields: Any) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()
