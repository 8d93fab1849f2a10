"""The SYN proxy's keys, and what they do not go with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tunlb.conf import ConfigError, loads


def text(dest: dict[str, Any] | None = None, **keys: Any) -> str:
    lines = [
        {"kind": "port", "name": "lb0", "addresses": ["10.0.0.254/24"]},
        {
            **{
                "kind": "service",
                "name": "web",
                "proto": "tcp",
                "vaddr": "10.0.0.100",
                "vport": 80,
            },
            **{"laddrs": ["10.0.0.200"], **keys},
        },
        {"kind": "dest", "service": "web", "daddr": "10.0.0.11", **(dest or {})},
    ]
    return "\n".join(json.dumps(line) for line in lines)


def test_as_written() -> None:
    keys: dict[str, Any] = {
        "synproxy": True,
        "synproxy_above": 100,
        "synproxy_mss": 1400,
        "synproxy_wscale": 0,
        "synproxy_sack": False,
        "synproxy_timestamps": False,
    }
    [service] = loads(text(**keys)).services
    assert {key: getattr(service, key) for key in keys} == keys


@pytest.mark.parametrize(
    ("keys", "dest", "told"),
    [
        ({"proto": "udp"}, {}, "f:2: $.synproxy: udp has no handshake that could be proxied"),
        ({"fwdmode": "dr"}, {}, 'f:2: $.synproxy: the SYN proxy cannot serve "dr"'),
        ({}, {"fwdmode": "dr"}, 'f:3: $.fwdmode: the SYN proxy of service "web" cannot serve "dr"'),
        (
            {"fwdmode": "nat", "fallback": True, "scheduler": "mh"},
            {},
            "f:2: $.fallback: fallback and the SYN proxy do not go together",
        ),
        (
            {"synproxy": False, "synproxy_above": 5},
            {},
            "f:2: $.synproxy_above: there is no SYN proxy to set it for",
        ),
    ],
)
def test_refused(keys: dict[str, Any], dest: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text(dest, **{"synproxy": True, **keys}), "f")
    found = [str(problem) for problem in caught.value.problems]
    assert any(line.startswith(told) for line in found), found
    assert all("hint" in line for line in found)
