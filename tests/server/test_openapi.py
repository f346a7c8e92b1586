"""The API does what its OpenAPI document says: schemathesis asks it what the document allows and what it does not, and nothing breaks."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from reccocktail.registry import Registry
from reccocktail.server.app import API, ServerOptions, create_app
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

CHECKS = [not_a_server_error, response_schema_conformance]
EXAMPLES = 12  # of each operation
HEADERS = {"Host": "localhost"}


def _try_all(app: Any, closed: Any) -> tuple[list[int], list[int]]:
    """Every operation of the document, with values that it allows; the statuses of the answers, and those of a server that wants tokens."""
    schema = schemathesis.openapi.from_asgi(f"{API}/openapi.json", app, headers=HEADERS)
    found, refused = list[int](), list[int]()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/follow"):
            continue  # it has no end

        @settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def ask(case: schemathesis.Case) -> None:
            answer = case.call(app=closed, headers=HEADERS)
            refused.append(answer.status_code)
            case.validate_response(answer, checks=[not_a_server_error])
            answer = case.call(headers=HEADERS)
            found.append(answer.status_code)
            case.validate_response(answer, checks=CHECKS)

        given(case=operation.as_strategy())(ask)()
    return found, refused


@pytest.mark.slow
def test_nothing_that_the_document_allows_breaks_the_server_or_is_told_without_a_token(stocked: Registry, loopback_hub):
    stocked.adapters.alias("skin-care@v1", "champion")
    stocked.tokens.create("ci", ["read"], lasts=None)
    found, refused = _try_all(create_app(stocked), create_app(stocked, ServerOptions(login=True)))
    assert {200, 404, 422} <= set(found)
    assert max(found) < 500
    assert 401 in refused
    assert set(refused) <= {400, 401, 403, 404, 405, 422}  # 400: a body that cannot be read at all
    assert len(refused) == len(found) > 500
