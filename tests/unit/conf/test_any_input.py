"""Whatever a file holds, it is a Config or a ConfigError that can be printed."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tunlb.conf import ConfigError, loads
from tunlb.conf.schema import KINDS

# Text that some reader takes, or nearly.
NEAR = (
    "10.0.0.1",
    "10.0.0.1/24",
    "::1",
    "1-2",
    "10.0.0.1-10.0.0.9",
    "fe80::1%x",
    "²",
    "::/²",
    "lb0",
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS | st.sampled_from(NEAR),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("id", "addresses", "tcp_close_s", "")), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@st.composite
def lines(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from((*KINDS, "x")))
    keys = KINDS[kind].__struct_fields__ if kind in KINDS else ("name",)
    found: dict[str, Any] = draw(st.dictionaries(st.sampled_from((*keys, "z")), VALUES, max_size=8))
    return json.dumps({**found, "kind": kind})


def check(text: str) -> None:
    try:
        loads(text)
    except ConfigError as error:
        str(error).encode()  # raises for a text that no terminal takes


@settings(max_examples=300, deadline=None)
@given(st.lists(lines(), max_size=4))
def test_any_values(rows: list[str]) -> None:
    check("\n".join(rows))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    check(text)
