"""Requests made from the description itself, valid and not, against the real service: nothing may
answer with 5xx, with a status or a body that is not described, or accept what is described as
wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sealsvc.protocol.system import Simulate
from sealsvc_api.app import build_app
from sealsvc_api.settings import Settings
from tests.api.conftest import TOKEN
from tests.api.running import Front, simulated
from tests.support.waiting import PATIENCE

CHECKS = (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
EXAMPLES = 8  # of each operation

# It would log the caller out, and a stream does not end.
SKIPPED = {"GET /v1/events", "DELETE /v1/session"}


SCHEMA = schemathesis.openapi.from_dict(build_app(Settings()).openapi())
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations()}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    with simulated(tmp_path_factory.mktemp("fuzzed")) as found:
        with found.client() as control:
            control.call(Simulate, action="create", path="/sim/a", size=1 << 20)
        yield found


@pytest.mark.parametrize("mode", list(GenerationMode), ids=str)
@pytest.mark.parametrize("label", sorted(set(OPERATIONS) - SKIPPED))
def test_the_service_keeps_to_its_description(
    there: Front, label: str, mode: GenerationMode
) -> None:
    made = OPERATIONS[label].as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=made, token=st.sampled_from([TOKEN, TOKEN, "viewer", "guest", "nobody"]))
    def ask(case: schemathesis.Case, token: str) -> None:
        # Nothing here may wait for holders that are not there.
        if isinstance(case.body, dict) and label == "POST /v1/recalls":
            case.body.pop("wait", None)
        response = case.call(
            base_url=there.base, headers={"Authorization": f"Bearer {token}"}, timeout=PATIENCE
        )
        assert response.status_code < 500 or response.status_code == 503, response.text
        # Too large is refused, too; the check does not know it.
        checks = [c for c in CHECKS if (c, response.status_code) != (negative_data_rejection, 413)]
        case.validate_response(response, checks=checks)

    try:
        ask()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE
        pytest.skip("nothing about this operation can be wrong")
