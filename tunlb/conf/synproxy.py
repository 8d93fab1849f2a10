"""Checks of the SYN proxy's keys."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import UNSET

from tunlb.conf.errors import Problems, shown
from tunlb.conf.service import DestLine, ServiceLine

_MODES: Final = ("fnat", "nat")
_DEFAULTS: Final[Mapping[str, object]] = MappingProxyType(
    {
        "synproxy_above": 0,
        "synproxy_mss": None,
        "synproxy_wscale": 7,
        "synproxy_sack": True,
        "synproxy_timestamps": True,
    }
)
_HINT: Final = (
    "the dest numbers its bytes otherwise than the client was told, so its answers have to pass"
    ' here: use "fnat" or "nat"'
)


def check(problems: Problems, line: int, service: ServiceLine) -> None:
    """Adds what is wrong with a service's own keys."""
    if not service.synproxy:
        for key, default in _DEFAULTS.items():
            if getattr(service, key) != default:
                hint = 'set "synproxy": true, or leave the key out'
                problems.add(line, f"$.{key}", "there is no SYN proxy to set it for", hint=hint)
        return
    if service.proto != "tcp":
        message = f"{service.proto} has no handshake that could be proxied"
        problems.add(line, "$.synproxy", message, hint='use "proto": "tcp", or leave the key out')
    if service.fwdmode not in _MODES:
        message = f"the SYN proxy cannot serve {shown(service.fwdmode)}"
        problems.add(line, "$.synproxy", message, hint=_HINT)
    if service.fallback:
        message = "fallback and the SYN proxy do not go together"
        hint = "how far the sides' sequence numbers are apart, only the director that proxied knows"
        problems.add(line, "$.fallback", message, hint=hint)


def check_dest(problems: Problems, line: int, dest: DestLine, service: ServiceLine) -> None:
    """Adds what is wrong with a dest's own fwdmode, where its service has a SYN proxy."""
    if not service.synproxy or dest.fwdmode is UNSET or dest.fwdmode in _MODES:
        return
    message = f"the SYN proxy of service {shown(service.name)} cannot serve {shown(dest.fwdmode)}"
    problems.add(line, "$.fwdmode", message, hint=_HINT)
