"""The configuration: JSON lines in, one immutable Config or every problem out.

Addresses, prefixes and port ranges in it are parsed values (`ipaddress` objects, PortRange,
AddressRange, Mac), whose str() is the text to print. Nothing here touches a device.
"""

from __future__ import annotations

from tunlb.conf.diff import Change, Diff, diff, live
from tunlb.conf.errors import ConfigError, Problem
from tunlb.conf.load import DEFAULT_PATH, control_path, find, load, loads
from tunlb.conf.schema import (
    DEST_MAX,
    FWDMODES,
    HOOK_POINTS,
    KINDS,
    PROFILES,
    PROTOS,
    RESTART_KEYS,
    SCHEDULERS,
    WORKERS_MAX,
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
from tunlb.conf.values import (
    AddressRange,
    IPAddress,
    IPInterface,
    IPNetwork,
    Mac,
    PortRange,
    User,
)

__all__ = [
    "DEFAULT_PATH",
    "DEST_MAX",
    "FWDMODES",
    "HOOK_POINTS",
    "KINDS",
    "PROFILES",
    "PROTOS",
    "RESTART_KEYS",
    "SCHEDULERS",
    "WORKERS_MAX",
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
    "User",
    "Vlan",
    "control_path",
    "diff",
    "find",
    "live",
    "load",
    "loads",
]
