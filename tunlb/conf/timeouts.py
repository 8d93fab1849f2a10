"""Timeouts of protocol states: the two profiles, and what a configuration overrides."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from tunlb.conf.base import Keys, Seconds

# Seconds in each state, without the configuration's `_s`. Sources: IPVS' and DPVS' state tables.
# IPVS has one UDP state, which both of ours stand for. ICMP: RFC 5508 section 3.2, at least 60 s.
# The two profiles differ in TCP alone.
_ALIKE: Final[Mapping[str, float]] = MappingProxyType(
    {
        "udp_none": 2,
        "udp_oneway": 300,
        "udp_normal": 300,
        "udp_last": 2,
        "sctp_none": 2,
        "sctp_init1": 4,
        "sctp_init": 61,
        "sctp_cookie_sent": 61,
        "sctp_cookie_replied": 61,
        "sctp_cookie_wait": 61,
        "sctp_cookie": 61,
        "sctp_cookie_echoed": 61,
        "sctp_established": 900,
        "sctp_shutdown_sent": 61,
        "sctp_shutdown_received": 61,
        "sctp_shutdown_ack_sent": 61,
        "sctp_rejected": 4,
        "sctp_closed": 61,
        "sctp_last": 2,
        "icmp_none": 2,
        "icmp_oneway": 60,
        "icmp_normal": 60,
    }
)

PROFILES: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "ipvs": MappingProxyType(
            {
                "tcp_none": 2,
                "tcp_established": 900,
                "tcp_syn_sent": 120,
                "tcp_syn_recv": 60,
                "tcp_fin_wait": 120,
                "tcp_time_wait": 120,
                "tcp_close": 10,
                "tcp_close_wait": 60,
                "tcp_last_ack": 30,
                "tcp_listen": 120,
                "tcp_synack": 120,
                "tcp_last": 2,
                **_ALIKE,
            }
        ),
        "dpvs": MappingProxyType(
            {
                "tcp_none": 2,
                "tcp_established": 90,
                "tcp_syn_sent": 3,
                "tcp_syn_recv": 30,
                "tcp_fin_wait": 7,
                "tcp_time_wait": 7,
                "tcp_close": 3,
                "tcp_close_wait": 7,
                "tcp_last_ack": 7,
                "tcp_listen": 120,
                "tcp_synack": 30,
                "tcp_last": 2,
                **_ALIKE,
            }
        ),
    }
)


class Overrides(Keys, kw_only=True, frozen=True):
    """Seconds in a state, where they differ from the profile's. None = not overridden."""

    tcp_none_s: Seconds | None = None
    tcp_established_s: Seconds | None = None
    tcp_syn_sent_s: Seconds | None = None
    tcp_syn_recv_s: Seconds | None = None
    tcp_fin_wait_s: Seconds | None = None
    tcp_time_wait_s: Seconds | None = None
    tcp_close_s: Seconds | None = None
    tcp_close_wait_s: Seconds | None = None
    tcp_last_ack_s: Seconds | None = None
    tcp_listen_s: Seconds | None = None
    tcp_synack_s: Seconds | None = None
    tcp_last_s: Seconds | None = None
    udp_none_s: Seconds | None = None
    udp_oneway_s: Seconds | None = None
    udp_normal_s: Seconds | None = None
    udp_last_s: Seconds | None = None
    sctp_none_s: Seconds | None = None
    sctp_init1_s: Seconds | None = None
    sctp_init_s: Seconds | None = None
    sctp_cookie_sent_s: Seconds | None = None
    sctp_cookie_replied_s: Seconds | None = None
    sctp_cookie_wait_s: Seconds | None = None
    sctp_cookie_s: Seconds | None = None
    sctp_cookie_echoed_s: Seconds | None = None
    sctp_established_s: Seconds | None = None
    sctp_shutdown_sent_s: Seconds | None = None
    sctp_shutdown_received_s: Seconds | None = None
    sctp_shutdown_ack_sent_s: Seconds | None = None
    sctp_rejected_s: Seconds | None = None
    sctp_closed_s: Seconds | None = None
    sctp_last_s: Seconds | None = None
    icmp_none_s: Seconds | None = None
    icmp_oneway_s: Seconds | None = None
    icmp_normal_s: Seconds | None = None

    def given(self) -> dict[str, float]:
        """The overridden states (without `_s`) and their seconds."""
        fields = ((name, getattr(self, f"{name}_s")) for name in PROFILES["ipvs"])
        return {name: seconds for name, seconds in fields if seconds is not None}


class Timeouts(Overrides, kw_only=True, frozen=True, tag_field="kind", tag="timeouts"):
    """Every service's timeouts."""

    profile: Literal["ipvs", "dpvs"] = "ipvs"
