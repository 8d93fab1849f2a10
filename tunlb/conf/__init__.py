"""The configuration: JSON lines in, one immutable Config or every problem out.

Addresses, prefixes and port ranges in it are parsed values (`ipaddress` objects, PortRange,
AddressRange, Mac), whose str() is the text to print. Nothing here touches a device.
"""

from __future__ import annotations

from tunlb.conf.diff import Change, Diff, diff, live
from tunlb.conf.errors import ConfigError, Problem
from tunlb.conf.load import DEFAULT_PATH, find, load, loads
from tunlb.conf.schema import (
    FWDMODES,
    HOOK_POINTS,
    KINDS,
    PROFILES,
    PROTOS,
    RESTART_KEYS,
    SCHEDULERS,
    Config,
    Dest,
    Hook,
    Neigh,
    Overrides,
    Port,
    Route,
    Service,
    Timeouts,
    Tunlb,
    Vlan,
)
from tunlb.conf.values import AddressRange, IPAddress, IPInterface, IPNetwork, Mac, PortRange

__all__ = [
    "DEFAULT_PATH",
    "FWDMODES",
    "HOOK_POINTS",
    "KINDS",
    "PROFILES",
    "PROTOS",
    "RESTART_KEYS",
    "SCHEDULERS",
    "AddressRange",
    "Change",
    "Config",
    "ConfigError",
    "Dest",
    "Diff",
    "Hook",
    "IPAddress",
    "IPInterface",
    "IPNetwork",
    "Mac",
    "Neigh",
    "Overrides",
    "Port",
    "PortRange",
    "Problem",
    "Route",
    "Service",
    "Timeouts",
    "Tunlb",
    "Vlan",
    "diff",
    "find",
    "live",
    "load",
    "loads",
]
