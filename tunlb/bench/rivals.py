"""What people use instead: how the kernel, HAProxy and nginx are told to balance the same ports.

Each is set up as its documentation begins, not tuned: all of HAProxy's threads and nginx's
processes that the machine has cores for, splicing where HAProxy finds it worth it, nginx's buffers.
Only limits that a load would otherwise run into are raised: open connections, and the queue of new
ones. So against one worker of tunlb they may use more cores, and the ratio is on their side.

Each conn goes to the next dest in turn, or, with nftables, to one by a hash of address and port.
"""

from __future__ import annotations

import os
import shlex
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tunlb.bench import tools
from tunlb.bench.network import INSIDE_NET, TCP_PORTS, UDP_PORTS, VIP, dests
from tunlb.bench.samples import BenchError
from tunlb.lab import rootless
from tunlb.lab.host import Host

HELD_MAX: Final = 131_072  # connections; what is held at once is less
_BACKLOG: Final = 4096
_TABLE: Final = "tunlb_bench"
_ASK_S: Final = 10.0

_NETLINK_NETFILTER: Final = 12
_CONNTRACK_DELETE: Final = (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_REQUEST_ACK: Final = 1 | 4
_NLMSG: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ERROR: Final = struct.Struct("=i")


# -- nftables


def nft_rules(*, snat: bool) -> str:
    """DNAT to a dest by hash. With `snat` the dest answers the director, as with fnat."""

    def rule(proto: str, ports: Sequence[int], addresses: Sequence[str]) -> str:
        match = f"ip daddr {VIP} {proto} dport {{ {', '.join(map(str, ports))} }}"
        if len(addresses) == 1:
            return f"{match} dnat to {addresses[0]}"
        choices = ", ".join(f"{number} : {address}" for number, address in enumerate(addresses))
        key = f"jhash ip saddr . {proto} sport mod {len(addresses)}"
        return f"{match} dnat to {key} map {{ {choices} }}"

    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for proto, ports in (("tcp", TCP_PORTS), ("udp", UDP_PORTS)):
        for port in ports:
            groups.setdefault((proto, dests(proto, port)), []).append(port)
    lines = [f"table ip {_TABLE} {{", "chain prerouting {"]
    lines.append("type nat hook prerouting priority dstnat;")
    lines += [rule(proto, ports, addresses) for (proto, addresses), ports in groups.items()]
    lines.append("}")
    if snat:
        lines += ["chain postrouting {", "type nat hook postrouting priority srcnat;"]
        lines += [f"ip daddr {INSIDE_NET} masquerade", "}"]
    return "\n".join([*lines, "}", ""])


def nft_missing() -> str | None:
    """Tries the rules in a namespace of its own: the kernel may lack what they need."""
    problem = tools.missing("nft")
    if problem is not None:
        return problem
    argv = [str(tools.which("nft")), "-f", "-"]
    argv = rootless.command(argv) if os.geteuid() else ["unshare", "--net", *argv]
    try:
        done = subprocess.run(
            argv,
            input=nft_rules(snat=True),
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nft cannot be tried: {error}"
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0]
        return f"the kernel refuses NAT by nft ({said}): it needs nf_tables, nft_nat, nft_hash"
    return None


def nft_load(director: Host, *, snat: bool) -> None:
    director.run([str(tools.which("nft")), "-f", "-"], stdin=nft_rules(snat=snat))


def nft_unload(director: Host) -> None:
    """The rules go, and all that they tracked: TIME_WAIT's two minutes would fill the table."""
    director.run([str(tools.which("nft")), "delete", "table", "ip", _TABLE], check=False)
    header = _NLMSG.pack(_NLMSG.size + 4, _CONNTRACK_DELETE, _REQUEST_ACK, 1, 0)
    family = socket.AddressFamily(socket.AF_NETLINK)
    with director.socket(family, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
        kernel.settimeout(_ASK_S)
        kernel.send(header + bytes(4))
        (code,) = _ERROR.unpack_from(kernel.recv(4096), _NLMSG.size)
    if code:
        raise BenchError(f"the kernel does not forget what nftables tracked: error {-code}")


def tracked_max() -> int:
    """How many connections the kernel keeps track of, in all namespaces together."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())


# -- HAProxy


def haproxy_config() -> str:
    lines = [
        "global",
        f"    maxconn {HELD_MAX}",
        # Without root the limit of open files is what it is: fewer connections, not none.
        "    no strict-limits",
        "defaults",
        "    mode tcp",
        "    balance roundrobin",
        "    option splice-auto",
        "    timeout connect 5s",
        "    timeout client 5m",
        "    timeout server 5m",
    ]
    for port in TCP_PORTS:
        lines += [f"listen tcp-{port}", f"    bind {VIP}:{port}"]
        lines += [
            f"    server s{number} {address}:{port}"
            for number, address in enumerate(dests("tcp", port), 1)
        ]
    return "\n".join([*lines, ""])


def haproxy_missing() -> str | None:
    return tools.missing("haproxy")


def haproxy_argv(config: Path) -> list[str]:
    return [str(tools.which("haproxy")), "-db", "-f", str(config)]


# -- nginx


def nginx_config(module: str | None, scratch: Path) -> str:
    """`module` is the path of the stream module, None where it is built in."""
    lines = [f"load_module {module};"] if module else []
    lines += [
        "daemon off;",
        f"pid {scratch}/nginx.pid;",
        # It has the harness's privileges: whom it could become is unknown where there is no root.
        "user root root;",
        "worker_processes auto;",
        f"worker_rlimit_nofile {4 * HELD_MAX};",
        f"events {{ worker_connections {2 * HELD_MAX}; }}",
        "stream {",
    ]
    for proto, ports in (("tcp", TCP_PORTS), ("udp", UDP_PORTS)):
        # Without `reuseport` one flow's datagrams would belong to several of nginx's processes.
        options = f" backlog={_BACKLOG}" if proto == "tcp" else " udp reuseport"
        for port in ports:
            servers = " ".join(f"server {address}:{port};" for address in dests(proto, port))
            lines.append(f"upstream {proto}_{port} {{ {servers} }}")
            lines.append(f"server {{ listen {VIP}:{port}{options}; proxy_pass {proto}_{port}; }}")
    return "\n".join([*lines, "}", ""])


def _nginx_options() -> dict[str, str]:
    """The options that this nginx was built with: name -> value."""
    argv = [str(tools.which("nginx")), "-V"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_ASK_S, check=False)
    _, _, listed = done.stderr.partition("configure arguments:")
    words = (word.partition("=") for word in shlex.split(listed))
    return {name.removeprefix("--"): value for name, _, value in words}


def nginx_module() -> str | None:
    """The path of the stream module; None where it is built in. Raises BenchError without it."""
    options = _nginx_options()
    if "with-stream" not in options:
        raise BenchError("this nginx was built without its stream module")
    if options["with-stream"] != "dynamic":
        return None
    prefix = options.get("prefix", "/usr/local/nginx")
    module = Path(options.get("modules-path", f"{prefix}/modules")) / "ngx_stream_module.so"
    if not module.exists():
        raise BenchError(f"{module} is not there: install the package libnginx-mod-stream")
    return str(module)


def nginx_missing() -> str | None:
    problem = tools.missing("nginx")
    if problem is not None:
        return problem
    try:
        nginx_module()
    except (BenchError, OSError, ValueError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None


def nginx_argv(config: Path, log: Path) -> list[str]:
    return [str(tools.which("nginx")), "-p", str(config.parent), "-c", str(config), "-e", str(log)]
