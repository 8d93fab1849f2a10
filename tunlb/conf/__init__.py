"""The configuration: JSON lines in, one immutable Config or every problem out.

Addresses, prefixes and port ranges in it are parsed values (`ipaddress` objects, PortRange,
AddressRange, Mac), whose str() is the text to print. Nothing here touches a device.
"""

from __future__ import annotations

from tunlb.conf.diff import Change, Diff, diff, live
from tunlb.conf.errors import ConfigError, Problem
from tunlb.conf.load import DEFAULT_PATH, control_path, find, load, loads
from tunlb.conf.protection import ACL_MAX, TC_MAX, Acl, Tc
from tunlb.conf.schema import (
    DEST_MAX,
    HOOK_POINTS,
    KINDS,
    RESTART_KEYS,
    WORKERS_MAX,
    Config,
    Hook,
    Neigh,
    Port,
    Route,
    Tunlb,
    Vlan,
)
from tunlb.conf.service import FWDMODES, PROTOS, Dest, Service
from tunlb.conf.timeouts import PROFILES, Overrides, Timeouts
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
    "ACL_MAX",
    "DEFAULT_PATH",
    "DEST_MAX",
    "FWDMODES",
    "HOOK_POINTS",
    "KINDS",
    "PROFILES",
    "PROTOS",
    "RESTART_KEYS",
    "TC_MAX",
    "WORKERS_MAX",
    "Acl",
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
    "Tc",
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
