from __future__ import annotations

import pytest

from tests.flow.kit import V4, V6, Net


@pytest.fixture(params=[V4, V6], ids=["v4", "v6"])
def net(request: pytest.FixtureRequest) -> Net:
    found: Net = request.param
    return found
