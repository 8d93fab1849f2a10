"""`tunlb setup` and `tunlb teardown` in a network namespace of their own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import as_user
from tests.e2e.as_user import libc
from tests.e2e.conftest import demand
from tests.e2e.kit import eventually, in_child
from tunlb.cli import main
from tunlb.conf import Config, loads
from tunlb.device import open_device
from tunlb.lab.topology import NO_BRIDGE_NETFILTER
from tunlb.links import (
    change,
    check_loops,
    configure_port,
    find_link,
    install_tun_routes,
    prepare,
    tun_addresses,
)
from tunlb.links.record import MadeDevice, Store, record_path
from tunlb.privileges import mapped

pytestmark = pytest.mark.e2e

CLONE_NEWNET = 0x40000000
NOBODY = 65534
SOMEBODY = 65533


def sh(*commands: str) -> str:
    return "".join(
        subprocess.run(
            command.split(), check=True, capture_output=True, text=True, timeout=10
        ).stdout
        for command in commands
    )


def setns(path: str) -> None:
    with open(path) as handle:
        libc("setns", handle.fileno(), CLONE_NEWNET)


# ---- what is set up

SERVICE = (
    '{"kind":"service","name":"web","proto":"tcp","vaddr":"%s","vport":80,"laddrs":["%s"]}\n'
    '{"kind":"dest","service":"web","daddr":"%s"}\n'
)
ON_BRIDGE = (
    '{"kind":"port","name":"lb0","bridge":"br0","mtu":1400,"addresses":["10.7.0.254/24"]}\n'
    + SERVICE % ("10.7.0.100", "10.7.0.200", "10.7.0.11")
)
TWO_ARMS = (
    '{"kind":"port","name":"lb-out","addresses":["10.7.1.254/24","fd71::fe/64"],'
    '"host_addresses":["10.7.1.1/24","fd71::1/64"]}\n'
    '{"kind":"port","name":"lb-in","addresses":["10.7.2.254/24"],'
    '"host_addresses":["10.7.2.1/24"]}\n'
    '{"kind":"route","dst":"0.0.0.0/0","via":"10.7.1.1","port":"lb-out"}\n'
    + SERVICE
    % ("10.7.1.100", "10.7.2.200", "10.7.2.11")
)
A_TUN = (
    '{"kind":"port","name":"lb0","type":"tun","addresses":["10.7.3.254/24"]}\n'
    '{"kind":"route","dst":"0.0.0.0/0","port":"lb0"}\n'
    + SERVICE
    % ("10.7.3.100", "10.7.3.200-10.7.3.209", "10.8.0.11")
    + '{"kind":"service","name":"six","proto":"tcp","vaddr":"fd73::100","vport":80,'
    '"fwdmode":"nat"}\n'
)
A_HOST = (
    '{"kind":"port","name":"lb0","bridge":"br0","mtu":1400,"host":"lb0-host",'
    '"addresses":["10.7.0.254/24","fd70::fe/64"],"host_addresses":["10.7.0.77/32"]}\n'
    + SERVICE % ("10.7.0.100", "10.7.0.200", "10.7.0.11")
    + '{"kind":"dest","service":"web","daddr":"10.7.0.100","fwdmode":"local"}\n'
)
CASES = {"on a bridge": ON_BRIDGE, "two arms": TWO_ARMS, "a tun": A_TUN, "a host": A_HOST}
each_case = pytest.mark.parametrize("text", CASES.values(), ids=CASES)


@dataclass
class Place:
    """A namespace that the test is in, and a directory for a configuration and the record."""

    dir: Path
    user: int

    @property
    def control(self) -> str:
        return str(self.dir / "run" / "tunlb" / "control.sock")

    @property
    def record(self) -> Path:
        return record_path(self.control)

    def write(self, text: str, **keys: object) -> Config:
        line = {"kind": "tunlb", "control": self.control, "user": str(self.user), **keys}
        whole = f"{json.dumps(line)}\n{text}"
        (self.dir / "lb.jsonl").write_text(whole)
        return loads(whole)

    def tunlb(self, verb: str) -> int:
        return main([verb, "-c", str(self.dir / "lb.jsonl")])


@pytest.fixture
def place(privileged: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.delenv("TUNLB_CONTROL", raising=False)
    name = f"tunlb-setup-{os.getpid()}"
    directory = Path(tempfile.mkdtemp(prefix="tunlb-"))
    directory.chmod(0o755)
    with open("/proc/thread-self/ns/net") as before:
        sh(f"ip netns add {name}")
        try:
            setns(f"/run/netns/{name}")
            for path, value in NO_BRIDGE_NETFILTER:
                if Path("/proc/sys", path).exists():
                    Path("/proc/sys", path).write_text(value)
            world()
            yield Place(directory, NOBODY if mapped(NOBODY) else 0)
        finally:
            setns(f"/proc/self/fd/{before.fileno()}")
            sh(f"ip netns del {name}")
            shutil.rmtree(directory)


def world() -> None:
    """A machine with a bridge and a way out, and with sysctls that are not all of one mind."""
    sysctls("ipv6.conf.all.accept_dad=0", "ipv6.conf.default.accept_dad=0")
    # A bridge takes its address from its members, and its carrier.
    sh("ip link add br0 address 02:00:00:00:00:b0 type bridge")
    sh("ip link add out type veth peer name far", "ip link add in type veth peer name near")
    sh("ip link set in master br0")
    for name in ("lo", "br0", "out", "far", "in", "near"):
        sh(f"ip link set {name} up")
    sh("ip addr add 10.8.0.9/24 dev out", "ip route add default via 10.8.0.1")
    sysctls("ipv4.ip_forward=0", "ipv4.conf.all.accept_redirects=0", "ipv4.conf.all.rp_filter=1")
    sysctls("ipv4.conf.out.forwarding=1", "ipv6.conf.far.forwarding=1")
    # Addresses that the kernel gives itself come a little later.
    eventually(lambda: sh("ip -6 -o addr show scope link").count("fe80::") == 5)
    eventually(lambda: "tentative" not in sh("ip -6 addr"))


def sysctls(*settings: str) -> None:
    sh(*(f"sysctl -qw net.{setting}" for setting in settings))


def snapshot() -> dict[str, object]:
    """Links, addresses, routes, rules and sysctls; without clocks, without a link's carrier, which
    the kernel notices when it has time, and without the queueing discipline, which it attaches when
    a link comes up for the first time.
    """
    found: dict[str, object] = {}
    for link in json.loads(sh("ip -d -j link")):
        del link["qdisc"], link["operstate"]
        link["flags"] = set(link["flags"]) - {"NO-CARRIER", "LOWER_UP"}
        for part in ("info_data", "info_slave_data"):
            data = link.get("linkinfo", {}).get(part, {})
            for key in [key for key in data if key.endswith(("timer", "state"))]:
                del data[key]
        found[f"link {link['ifname']}"] = link
    shown = ("addr", "-4 route show table all", "-6 route show table all", "-4 rule", "-6 rule")
    for words in shown:
        rows = sh(f"ip -o {words}").replace(" linkdown", "").splitlines()
        found[words] = sorted(row.rstrip() for row in rows)
    sysctls = Path("/proc/sys/net")
    for path in (sysctls / "ipv4/ip_forward", *sysctls.glob("ipv[46]/conf/*/*")):
        with contextlib.suppress(OSError):
            found[str(path)] = path.read_text()
    return found


def tun_routes() -> list[str]:
    """What is routed into a TUN by us."""
    shown = sh("ip -4 route show table all proto 116", "ip -6 route show table all proto 116")
    return [row.split()[0] for row in shown.splitlines()]


def become(uid: int) -> None:
    """A user without a capability, on a machine where all may open /dev/net/tun."""
    libc("unshare", as_user.CLONE_NEWNS)
    libc("mount", None, b"/", None, as_user.MS_REC | as_user.MS_PRIVATE, None)
    as_user.open_node()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    assert "CapEff:\t0000000000000000" in Path("/proc/self/status").read_text()


# ---- there and back


@each_case
def test_it_is_taken_back_exactly(
    place: Place, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot()
    config = place.write(text)
    assert place.tunlb("setup") == 0
    done = capsys.readouterr().out
    for port in config.ports:
        assert f"dev {port.name} mode {port.type} multi_queue vnet_hdr user {place.user}" in done
        link = find_link(port.name)
        assert link is not None
        assert (link.up, link.mtu, link.txqueuelen) == (True, port.mtu, 4096)
        assert link.device == (port.type, place.user, True, True, False)
    assert snapshot() != before
    assert place.tunlb("teardown") == 0
    assert snapshot() == before
    assert not place.record.exists()
    assert [path.name for path in place.dir.iterdir()] == ["lb.jsonl"]
    assert "nothing to do" not in capsys.readouterr().out
    assert place.tunlb("teardown") == 0
    assert "nothing to do: there is no" in capsys.readouterr().out


@each_case
def test_a_second_setup_changes_nothing(
    place: Place, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write(text)
    assert place.tunlb("setup") == 0
    once, record, inode = snapshot(), place.record.read_bytes(), place.record.stat().st_ino
    capsys.readouterr()
    assert place.tunlb("setup") == 0
    assert capsys.readouterr().out == "nothing to do: all is set up already\n"
    assert snapshot() == once
    assert (place.record.read_bytes(), place.record.stat().st_ino) == (record, inode)


def test_only_the_rest_is_set_up_and_taken_back(place: Place) -> None:
    """What an administrator did before stays: a device, its bridge, forwarding."""
    sh(f"ip tuntap add dev lb0 mode tap multi_queue user {place.user}")
    sh("ip link add br1 type bridge", "ip link set lb0 master br1")
    before = snapshot()
    place.write(ON_BRIDGE)
    assert place.tunlb("setup") == 0
    link, bridge = find_link("lb0"), find_link("br0")
    assert link is not None
    assert bridge is not None
    assert (link.up, link.mtu, link.txqueuelen, link.master) == (True, 1400, 4096, bridge.index)
    assert place.tunlb("teardown") == 0
    assert snapshot() == before


def test_nothing_to_set_up_leaves_no_record(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    sh(f"ip tuntap add dev lb0 mode tap user {place.user}")
    sh("ip link set lb0 mtu 1400 txqueuelen 4096 master br0 up")
    place.write(ON_BRIDGE)
    assert place.tunlb("setup") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert not place.record.parent.exists()


@pytest.mark.parametrize(
    ("command", "keys", "message"),
    [
        ("ip link add lb0 type veth", {}, "lb0 exists, and is not a tap but a veth"),
        ("ip tuntap add dev lb0 mode tun", {}, "lb0 exists, and is not a tap but a tun"),
        ("ip tuntap add dev lb0 mode tap user {}", {"workers": 2}, "lb0 has one queue, not 2"),
        ("ip tuntap add dev lb0 mode tap user {} multi_queue", {"user": "0"}, "belongs to user "),
    ],
    ids=["a veth", "a tun", "one queue", "somebody else's"],
)
def test_an_existing_device_that_will_not_do(
    place: Place,
    command: str,
    keys: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "user" in keys and place.user == 0:
        demand(["this user namespace has one user"])
    sh(command.format(place.user))
    before = snapshot()
    place.write(ON_BRIDGE, **keys)
    assert place.tunlb("setup") == 71
    assert message in capsys.readouterr().err
    assert snapshot() == before
    assert not place.record.exists()


def test_a_device_without_owner_is_warned_of(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    sh("ip tuntap add dev lb0 mode tap multi_queue")
    place.write(ON_BRIDGE)
    assert place.tunlb("setup") == 0
    assert "lb0 has no owner: any user may attach to it" in capsys.readouterr().err


NAMESAKE = """
import sys
from tunlb.device import open_device
open_device("lb0", multi_queue=True)
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def namesake() -> Iterator[None]:
    """A process with a device of the same name in a namespace of its own."""
    words = ["unshare", "--net", sys.executable, "-c", NAMESAKE]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield
        process.stdin.close()


def test_a_device_that_ends_with_its_process(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write(ON_BRIDGE)
    fd = open_device("lb0", multi_queue=True).fd
    try:
        with namesake():
            assert place.tunlb("setup") == 71
        error = capsys.readouterr().err
        assert f"lb0 exists only as long as pid {os.getpid()} (" in error
        assert error.count("pid ") == 1
    finally:
        os.close(fd)


def test_a_setup_that_fails_is_taken_back(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The second port's bridge is missing when the first is done."""
    before = snapshot()
    place.write(A_TUN + '{"kind":"port","name":"lb1","bridge":"br9"}\n')
    assert place.tunlb("setup") == 71
    assert "there is no bridge br9" in capsys.readouterr().err
    assert snapshot() == before
    assert not place.record.parent.exists()


def test_a_setup_that_fails_leaves_an_earlier_one(place: Place) -> None:
    before = snapshot()
    place.write(A_TUN)
    assert place.tunlb("setup") == 0
    once, record = snapshot(), place.record.read_bytes()
    more = A_TUN.replace("10.7.3.100", "10.7.3.101")
    place.write(more + '{"kind":"port","name":"lb1","bridge":"br9"}\n')
    assert place.tunlb("setup") == 71
    assert (snapshot(), place.record.read_bytes()) == (once, record)
    assert place.tunlb("teardown") == 0
    assert snapshot() == before


@pytest.mark.parametrize("used", [False, True], ids=["idle", "in use"])
def test_a_changed_configuration(place: Place, used: bool) -> None:
    """The new VIP is routed; the old one is not, unless a tunlb may still be draining it."""
    before = snapshot()
    place.write(A_TUN)
    assert place.tunlb("setup") == 0
    with contextlib.ExitStack() as stack:
        if used:
            fd = open_device("lb0", tun=True, multi_queue=True).fd
            stack.callback(os.close, fd)
        place.write(A_TUN.replace("10.7.3.100", "10.7.3.101"))
        assert place.tunlb("setup") == 0
        assert "10.7.3.101" in tun_routes()
        assert ("10.7.3.100" in tun_routes()) == used
    assert place.tunlb("setup") == 0
    assert "10.7.3.100" not in tun_routes()
    assert place.tunlb("teardown") == 0
    assert snapshot() == before


# ---- teardown


def test_it_is_not_taken_away_from_a_running_tunlb(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot()
    place.write(TWO_ARMS)
    assert place.tunlb("setup") == 0
    fd = open_device("lb-in", multi_queue=True).fd
    try:
        assert place.tunlb("teardown") == 1
        told = capsys.readouterr().err
        assert f"the device lb-in is in use by pid {os.getpid()} (" in told
        assert "stop tunlb first" in told
        assert place.record.exists()
    finally:
        os.close(fd)
    assert place.tunlb("teardown") == 0
    assert snapshot() == before


def test_what_cannot_be_taken_back_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot()
    place.write(A_TUN)
    assert place.tunlb("setup") == 0
    call = change._call
    with monkeypatch.context() as patch:
        patch.setattr(change, "_call", lambda ipr, c: 1 if c.call == "rule" else call(ipr, c))
        assert place.tunlb("teardown") == 1
    told = capsys.readouterr().err
    assert "not taken back, try again later: ip rule del not iif lb0 lookup" in told
    left = Store(place.control).record
    assert [found.call for found in left.undo] == ["rule", "rule"]
    assert left.devices == ()
    assert find_link("lb0") is None
    assert place.tunlb("teardown") == 0
    assert snapshot() == before
    assert not place.record.parent.exists()


def test_what_is_gone_already_is_fine(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot()
    place.write(A_TUN)
    assert place.tunlb("setup") == 0
    sh("ip link del lb0", "ip rule del priority 740", "ip -6 rule del priority 740")
    assert place.tunlb("teardown") == 0
    assert capsys.readouterr().err.count("not taken back") == 0
    assert snapshot() == before


def test_another_device_of_that_name_stays(place: Place) -> None:
    place.write(ON_BRIDGE)
    assert place.tunlb("setup") == 0
    sh("ip link del lb0", "ip tuntap add dev lb0 mode tap multi_queue")
    assert place.tunlb("teardown") == 0
    assert find_link("lb0") is not None


def test_the_device_is_known_by_another_name(place: Place) -> None:
    place.write(ON_BRIDGE)
    assert place.tunlb("setup") == 0
    sh("ip link set lb0 down", "ip link set lb0 name tunlb-x")
    assert place.tunlb("teardown") == 0
    assert find_link("tunlb-x") is None


def test_a_device_that_was_deleted_is_made_again(place: Place) -> None:
    before = snapshot()
    place.write(A_TUN)
    assert place.tunlb("setup") == 0
    once = find_link("lb0")
    sh("ip link del lb0")
    assert place.tunlb("setup") == 0
    again = find_link("lb0")
    assert once is not None
    assert again is not None
    assert once.index != again.index
    assert f"dev {again.name}" in sh("ip route get 10.7.3.100")
    assert place.tunlb("teardown") == 0
    assert snapshot() == before


# ---- killed in the middle


def killed_at(count: int, call: Callable[[], int]) -> int:
    """The status of a process that does `call` and is killed after `count` steps; 0: it ended."""
    left = count

    def stepping(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **keys: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keys)

        return wrapped

    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            for owner, name in (
                (Store, "_write"),
                (Store, "_remove"),
                (change, "_call"),
                (prepare, "open_device"),
                (fcntl, "ioctl"),
            ):
                setattr(owner, name, stepping(getattr(owner, name)))
            os._exit(call())
        os._exit(99)
    return os.waitpid(pid, 0)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "again", "stride"),
    [
        (TWO_ARMS, "teardown", 1),
        (A_TUN, "teardown", 1),
        (ON_BRIDGE, "setup", 1),
        (A_TUN, "setup", 4),
    ],
    ids=["two arms, teardown", "a tun, teardown", "on a bridge, setup", "a tun, setup"],
)
def test_a_setup_that_was_killed(place: Place, text: str, again: str, stride: int) -> None:
    """Wherever it was: teardown takes back what it had done, and setup goes on with it."""
    before = snapshot()
    config = place.write(text)
    for count in range(0, 500, stride):
        status = killed_at(count, lambda: place.tunlb("setup"))
        if again == "setup":
            assert place.tunlb("setup") == 0
            (link,) = filter(None, (find_link(port.name) for port in config.ports))
            assert link.up
            assert link.device == (config.ports[0].type, place.user, True, True, False)
            assert Store(place.control).record.devices == (MadeDevice("lb0", link.index),)
        assert place.tunlb("teardown") == 0
        assert snapshot() == before, f"killed at step {count}"
        if status == 0:
            assert count >= 10
            return
        assert status == signal.SIGKILL
    raise AssertionError("it never came to its end")


@pytest.mark.slow
def test_a_teardown_that_was_killed(place: Place) -> None:
    before = snapshot()
    place.write(A_TUN)
    for count in range(0, 200, 2):
        assert place.tunlb("setup") == 0
        status = killed_at(count, lambda: place.tunlb("teardown"))
        assert place.tunlb("teardown") == 0
        assert snapshot() == before, f"killed at step {count}"
        if status == 0:
            return
    raise AssertionError("it never came to its end")


# ---- a user without privileges


def needs_users(place: Place) -> None:
    demand([] if place.user else ["this user namespace has one user"])


@each_case
def test_its_owner_needs_no_capability(place: Place, text: str) -> None:
    """Everything that `tunlb run` does to devices and links, and nothing is left to be changed."""
    needs_users(place)
    config = place.write(text, workers=2)
    assert place.tunlb("setup") == 0

    def run() -> object:
        become(place.user)
        changed, problems, offloads = [], [], []
        for port in config.ports:
            for _ in range(2):
                device = open_device(port.name, tun=port.type == "tun", multi_queue=True)
                offloads.append(device.offloads[:2])
            changed.append(configure_port(port))
            link = find_link(port.name)
            assert link is not None
            assert link.device is not None
            assert link.device.attached
        tun = tun_addresses(config)
        if tun is not None:
            changed.append(install_tun_routes(tun.name, tun.addresses, ()))
        problems = check_loops(config)
        return set(changed), problems, set(offloads)

    assert in_child(run) == repr(({((), (), ())}, [], {("csum", "tso4")})).replace(
        "((), (), ())", "Setup(changed=(), warnings=(), undo=())"
    )


def test_routes_outlive_the_process_that_used_them(place: Place) -> None:
    """A persistent device without a process has no carrier; its routes stay."""
    place.write(A_TUN)
    assert place.tunlb("setup") == 0
    once = tun_routes()
    assert len(once) == 5
    os.close(open_device("lb0", tun=True, multi_queue=True).fd)
    device = find_link("lb0")
    assert device is not None
    assert device.device is not None
    assert not device.device.attached
    assert tun_routes() == once
    assert "dev lb0" in sh("ip route get 10.7.3.100")
    assert "dev lb0" in sh("ip -6 route get fd73::100")


def test_nobody_else_may_attach(place: Place) -> None:
    needs_users(place)
    place.write(ON_BRIDGE)
    assert place.tunlb("setup") == 0

    def attach() -> object:
        become(SOMEBODY)
        return open_device("lb0", multi_queue=True)

    assert in_child(attach).startswith("DeviceError: no permission to create or attach")


@pytest.mark.parametrize("verb", ["setup", "teardown"])
def test_it_needs_privilege(place: Place, verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    needs_users(place)
    place.write(ON_BRIDGE)
    (place.dir / "lb.jsonl").chmod(0o644)
    before = snapshot()

    def run() -> int:
        become(place.user)
        return place.tunlb(verb)

    assert in_child(run) == "77"
    assert f"tunlb {verb}: needs CAP_NET_ADMIN: run it as root" in capfd.readouterr().err
    assert snapshot() == before


def test_who_may_not_open_the_node_is_told(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_users(place)
    node = place.dir / "node"
    node.touch(mode=0o600)
    monkeypatch.setattr(prepare, "NODE", str(node))
    place.write(ON_BRIDGE)
    assert place.tunlb("setup") == 0
    assert f"user {place.user} may not open {node}" in capsys.readouterr().err
    node.chmod(0o666)
    assert place.tunlb("setup") == 0
    assert capsys.readouterr().err == ""
