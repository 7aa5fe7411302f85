"""The API's description (OpenAPI) holds: whatever is made from it gets an answer that it names, and never a fault."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.live import live, send

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def schema(label_service):
    with live(label_service) as port:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")


def test_every_operation_answers_what_is_described(schema):
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 6
    for operation in operations:

        @hypothesis.settings(max_examples=12, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(operation.as_strategy())
        def holds(case):
            case.call_and_validate(checks=CHECKS, timeout=20)

        holds()


def test_the_description_loads_nothing_from_elsewhere(label_service):
    with live(label_service) as port:
        assert send(port, "GET", "/docs")[0] == send(port, "GET", "/redoc")[0] == 404
