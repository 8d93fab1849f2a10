"""docs/configuration.md says what the schema does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from tunlb.conf import (
    DEST_MAX,
    PROFILES,
    RESTART_KEYS,
    WORKERS_MAX,
    AddressRange,
    ConfigError,
    loads,
)
from tunlb.conf.match import MATCHES_MAX, PREFIXES_MAX, Match
from tunlb.conf.schema import KINDS, Vlan
from tunlb.conf.service import TunnelKeys

DOCS = Path(__file__).parents[3] / "docs" / "configuration.md"
TEXT = DOCS.read_text(encoding="utf-8")
STRUCTS: dict[str, type[msgspec.Struct]] = {
    **KINDS,
    "vlans": Vlan,
    "match": Match,
    "tunnel": TunnelKeys,
}


def tables() -> dict[str, list[dict[str, str]]]:
    """The rows of each kind's table, by column."""
    found = {}
    for section in re.split(r"^##+ ", TEXT, flags=re.MULTILINE)[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        if lines:
            head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
            kind = section.split("`")[1]
            found[kind] = [dict(zip(head, row, strict=True)) for row in rows]
    return found


TABLES = tables()


def default(value: object) -> str:
    if value is msgspec.NODEFAULT:
        return "**required**"
    if value is None or value is msgspec.UNSET:
        return "*none*"
    if isinstance(value, msgspec.Struct):
        return "`{}`"
    plain = value if isinstance(value, str | int | float | tuple) else str(value)
    return f"`{json.dumps(plain)}`"


def test_every_kind_has_a_table() -> None:
    assert list(TABLES) == [
        "tunlb",
        "port",
        "vlans",
        "route",
        "neigh",
        "service",
        "tunnel",
        "match",
        "dest",
        "timeouts",
        "hook",
        "acl",
        "tc",
    ]
    assert set(TABLES) == set(STRUCTS)


@pytest.mark.parametrize("kind", STRUCTS)
def test_keys_and_defaults(kind: str) -> None:
    fields = {field.name: default(field.default) for field in msgspec.structs.fields(STRUCTS[kind])}
    documented = {row["key"].strip("`"): row["default"] for row in TABLES[kind]}
    assert documented == fields


@pytest.mark.parametrize("kind", STRUCTS)
def test_live_or_restart(kind: str) -> None:
    applied = {row["key"].strip("`"): row["applied"] for row in TABLES[kind]}
    expected = {key: "restart" if f"{kind}.{key}" in RESTART_KEYS else "live" for key in applied}
    assert applied == expected


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles(profile: str) -> None:
    documented = {row["key"].strip("`"): row[profile] for row in TABLES["timeouts"][1:]}
    assert documented == {f"{name}_s": str(value) for name, value in PROFILES[profile].items()}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", blocks("jsonl"))
def test_examples(text: str) -> None:
    assert loads(text).services


def test_example_errors() -> None:
    text = (
        '{"kind":"port","name":"lb0","addresses":["10.0.0.254/24"]}\n'
        '{"kind":"dest","service":"web","daddr":"10.0.0.11","weigth":1}\n'
        '{"kind":"service","name":"web","proto":"tcp","vaddr":"10.0.0.100","vport":70000}'
    )
    with pytest.raises(ConfigError) as caught:
        loads(text, "lb.jsonl")
    assert blocks("text") == [f"{caught.value}\n"]


def test_the_most_laddrs() -> None:
    first = AddressRange.__doc__ or ""
    assert "LADDRS_MAX" in first
    assert "1024 addresses" in next(r["range"] for r in TABLES["service"] if "laddrs" in r["key"])


def test_the_most_dests_and_workers() -> None:
    assert f"At most {DEST_MAX} lines, over all services" in TEXT
    (workers,) = (row for row in TABLES["tunlb"] if row["key"] == "`workers`")
    assert workers["range"] == f'1-{WORKERS_MAX} or `"auto"`'


def test_the_most_matches_and_prefixes() -> None:
    assert f"At most {MATCHES_MAX} services with a match" in TEXT
    assert f"At most {PREFIXES_MAX} prefixes in one" in TEXT
