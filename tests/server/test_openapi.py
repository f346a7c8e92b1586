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

CHECKS = (not_a_server_error, response_schema_conformance)
EXAMPLES = 12  # of each operation


def _try_all(app: Any, headers: dict[str, str], checks: tuple[Any, ...] = CHECKS) -> list[int]:
    """Every operation of the document, with values that it allows; the statuses of the answers."""
    schema = schemathesis.openapi.from_asgi(f"{API}/openapi.json", app, headers={"Host": "localhost"} | headers)
    found: list[int] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/follow"):
            continue  # it has no end

        @settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def ask(case: schemathesis.Case) -> None:
            answer = case.call(headers={"Host": "localhost"} | headers)
            found.append(answer.status_code)
            case.validate_response(answer, checks=list(checks))

        given(case=operation.as_strategy())(ask)()
    return found


@pytest.mark.slow
def test_nothing_that_the_document_allows_breaks_the_server(stocked: Registry, loopback_hub):
    stocked.adapters.alias("skin-care@v1", "champion")
    found = _try_all(create_app(stocked), {})
    assert {200, 404, 422} <= set(found)
    assert max(found) < 500


@pytest.mark.slow
def test_without_a_token_nothing_is_told(stocked: Registry):
    stocked.tokens.create("ci", ["read"], lasts=None)
    found = _try_all(create_app(stocked, ServerOptions(login=True)), {}, (not_a_server_error,))
    assert set(found) <= {400, 401, 403, 404, 405, 422}  # 400: a body that cannot be read at all
