"""No secret reaches what is kept of a build or a publication: its log, its row, its errors."""

from __future__ import annotations

import string
from typing import Any

import pytest
from reccocktail.registry import Base, Registry

TOKEN = "hf_" + (string.ascii_letters + string.digits)[:34]
SECRETS = {
    "a URL's password": ("postgresql://ann:hunter22@db/x is away", "hunter22"),
    "a Hub token": (f"401 for {TOKEN}", TOKEN),
    "a signed URL": ("https://cdn.example/b?X-Amz-Signature=abc123&Expires=9 is gone", "abc123"),
}


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_a_builds_log_its_row_and_its_events_have_no_secret(
    registry: Registry, sql: Any, base: Base, text: str, secret: str
) -> None:
    registry.domains.add("beauty")
    for key, end in (("a", "fail"), ("b", "postpone")):
        build = registry.builds.request("beauty", base.name, key, {}, {}).build
        registry.builds.claim("worker")
        registry.builds.log(build.id, "worker", f"Traceback: {text}")
        error = {"code": "hub", "message": text, "hint": text, "traceback": [text]}
        if end == "fail":
            registry.builds.fail(build.id, "worker", error)
        else:
            registry.builds.postpone(build.id, "worker", error, 60.0)
    kept = [str(sql(f"SELECT * FROM {table}")) for table in ("builds", "build_logs", "events")]
    assert not [table for table in kept if secret in table]
    assert "Traceback" in kept[1]
    said = [line.text for build in registry.builds.list() for line in registry.builds.logs(build.id)]
    assert len(said) == 2
    assert secret not in str([said, [build.to_json() for build in registry.builds.list()]])
