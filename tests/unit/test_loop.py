"""A worker's life, spoken to over its channel, on sockets in place of devices."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import pytest

import tunlb
from tunlb.boot import Applied, Boot, encode, encode_pieces
from tunlb.channel import Channel, ChannelClosed, close_all, pair, put_blob
from tunlb.conf import Hook as HookLine
from tunlb.conf import loads
from tunlb.conf.values import HookCall
from tunlb.counters import Counters, DropReason, Event, Gauge
from tunlb.destids import DestIds
from tunlb.hook import Hook, Point
from tunlb.lab import TOPOLOGIES
from tunlb.log import Logger
from tunlb.loop import EXIT_UNPREPARED, HookError, HookErrors, Worker, WorkerLife, load_hook
from tunlb.mailbox import open_mailbox
from tunlb.outbox import PLAIN_VNET
from tunlb.pace import Pace
from tunlb.packet import Packet
from tunlb.shared import Shared
from tunlb.tap import Port, monotonic_ms
from tunlb.testing.flow import Rig as FlowRig

TEXT = TOPOLOGIES["one-arm"].config_text
MAC = 0x02AABBCCDDEE
ARP_FOR_US = bytes.fromhex(
    "ffffffffffff 020000000001 0806 0001 0800 06 04 0001020000000001 0a000001 000000000000 0a0000fe"
)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A worker takes them over for good; this process wants them back."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGHUP)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    gc.unfreeze()


class Good(Hook):
    """A user's hook."""

    def run(self, pkt: Packet, now: int) -> int:
        return 1


class Fails(Good):
    def __init__(self) -> None:
        raise RuntimeError("no luck")


class Cancels(Good):
    def __init__(self) -> None:
        raise asyncio.CancelledError("not now")


class Idle(Hook):
    pass


class Slow(Hook):
    async def run(self, pkt: Packet, now: int) -> int:  # type: ignore[override]
        return 1


class Fixed(Hook):
    @property
    def priority(self) -> int:  # type: ignore[override]
        return 1

    def run(self, pkt: Packet, now: int) -> int:
        return 1


def made() -> Hook:
    raise AssertionError("called, and is no class")


def line(call: str) -> HookLine:
    return HookLine(point="forward", call=HookCall(call), priority=7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("no_such_module:Hook", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("json:NoSuchClass", "AttributeError: module 'json' has no attribute 'NoSuchClass'"),
        ("json:JSONDecoder", "JSONDecoder is not a subclass of tunlb.hook.Hook"),
        (f"{__name__}:Fails", "RuntimeError: no luck (the class is made without"),
        (f"{__name__}:Cancels", "CancelledError: not now"),
        (f"{__name__}:Idle", "Idle needs a method run(self, pkt, now)"),
        (f"{__name__}:Slow", "Slow needs a method run(self, pkt, now), which is no coroutine"),
        (f"{__name__}:Fixed", "AttributeError: "),
        (f"{__name__}:made", "made is not a subclass of tunlb.hook.Hook"),
    ],
)
def test_a_hook_that_cannot_be_had(call: str, message: str) -> None:
    with pytest.raises(HookError) as caught:
        load_hook(line(call))
    assert str(caught.value).startswith(f"hook {call}: ")
    assert message in str(caught.value)


def test_a_hook_is_where_its_line_puts_it() -> None:
    hook = load_hook(line(f"{__name__}:Good"))
    assert (hook.point, hook.priority) == (Point.FORWARD, 7)


def test_a_hook_that_raises_is_logged_once_a_second() -> None:
    logged: list[dict[str, Any]] = []

    class Log:
        def error(self, event: str, **fields: Any) -> None:
            logged.append(fields)

    log: Any = Log()
    made: Logger = log
    errors = HookErrors(made)
    first, second = Good(), Good()
    for hook in (first, first, second, first):
        errors(hook, ValueError("x"))
    assert len(logged) == 2


class Rig:
    """The supervisor's side: the channel, the kernel's end of the port, the shared memory."""

    def __init__(self, channel: Channel, life: asyncio.Task[int], device: socket.socket) -> None:
        self.channel = channel
        self.life = life
        self.device = device

    async def said(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                try:
                    return self.channel.receive()[0]
                except BlockingIOError:
                    await asyncio.sleep(0.001)

    async def ask(self, kind: str, fds: tuple[int, ...] = (), **fields: object) -> dict[str, Any]:
        self.channel.send({"kind": kind, **fields}, fds)
        return await self.said()

    async def go(self) -> dict[str, Any]:
        return await self.ask("go", name="pytest", cpu=None)

    async def answered(self, frame: bytes) -> bytes:
        return await answered(self.device, frame)


async def answered(device: socket.socket, frame: bytes) -> bytes:
    """The first frame that comes back to the sender of ``frame``."""
    device.send(PLAIN_VNET + frame)
    async with asyncio.timeout(20):
        while True:
            try:
                found = device.recv(65536)[len(PLAIN_VNET) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if found[:6] == frame[6:12]:
                return found


def boot(text: str = TEXT) -> Boot:
    config = loads(text)
    numbers = tuple(DestIds().assign(config).items())
    return Boot(
        worker=0,
        workers=1,
        secret=bytes(32),
        seed=1,
        macs={"lb0": MAC},
        history=(Applied(at_ms=monotonic_ms(), config=config, ids=numbers),),
        generations=(3,),
        quiescent=False,
        environ={"TUNLB_LOG_FORMAT": "json"},
    )


@contextmanager
def port() -> Iterator[tuple[socket.socket, int]]:
    """(the kernel's end, a descriptor of ours) of what stands for a queue."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs.fileno()


def live(test: Callable[[Rig, Shared], Awaitable[None]], what: Boot | None = None) -> int:
    """The exit status of a worker that is booted and then tested."""

    async def main() -> int:
        with ExitStack() as stack:
            ours, theirs = pair()
            ours.settimeout(0)
            shared = Shared.create(0, 1024)
            stack.callback(shared.close_fds)
            mailbox = open_mailbox()
            stack.callback(close_all, mailbox)
            device, queue = stack.enter_context(port())
            life = asyncio.ensure_future(WorkerLife(theirs).run())
            payload = put_blob(encode(what or boot()))
            stats = shared.stats_fd
            fds = (payload, shared.conns_fd, stats, *mailbox, stats, queue)
            ours.send({"kind": "boot"}, fds)
            os.close(payload)
            rig = Rig(ours, life, device)
            await test(rig, shared)
            ours.close()
            async with asyncio.timeout(20):
                return await life

    return asyncio.run(main())


async def stop(rig: Rig) -> None:
    rig.channel.send({"kind": "stop"})
    await rig.life


def test_it_forwards_once_it_goes() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        assert await rig.said() == {"kind": "prepared"}
        counters = Counters(shared.counters)
        assert counters.gauge(Gauge.HEARTBEAT) == 0
        ready = await rig.go()
        assert ready == {"kind": "ready", "kept": 0, "dropped": 0}
        reply = await rig.answered(ARP_FOR_US)
        assert reply[6:12] == MAC.to_bytes(6, "big")
        assert counters.gauge(Gauge.HEARTBEAT) > 0
        assert counters.event(Event.NEIGH_REPLIES) == 1
        await stop(rig)

    assert live(test) == 0


def test_without_its_supervisor_it_goes_on() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        await rig.go()
        rig.channel.close()
        await rig.answered(ARP_FOR_US)
        await rig.answered(ARP_FOR_US)
        assert not rig.life.done()
        os.kill(os.getpid(), signal.SIGTERM)

    assert live(test) == 0


def test_with_its_supervisor_it_hears_no_signal() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        await rig.go()
        os.kill(os.getpid(), signal.SIGTERM)
        await rig.answered(ARP_FOR_US)
        assert not rig.life.done()
        await stop(rig)

    assert live(test) == 0


def test_before_it_goes_it_ends_with_its_supervisor() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        rig.channel.close()

    assert live(test) == 0


def test_a_hook_that_cannot_be_had_is_told() -> None:
    text = TEXT + '{"kind":"hook","point":"forward","call":"json:JSONDecoder"}\n'

    async def test(rig: Rig, shared: Shared) -> None:
        said = await rig.said()
        assert said["kind"] == "failed"
        assert said["error"].startswith("hook json:JSONDecoder: ")

    assert live(test, boot(text)) == EXIT_UNPREPARED


def test_a_configuration_and_the_end_of_new_conns() -> None:
    fresh = boot(TEXT.replace("10.0.0.254/24", "10.0.0.253/24"))

    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        await rig.go()
        payload = put_blob(encode_pieces(fresh.history[0]))
        assert await rig.ask("config", (payload,), serial=2) == {"kind": "applied", "serial": 2}
        os.close(payload)
        reply = await rig.answered(ARP_FOR_US[:-4] + bytes([10, 0, 0, 253]))
        assert reply[28:32] == bytes([10, 0, 0, 253])
        assert await rig.ask("quiesce") == {"kind": "quiesced"}
        await stop(rig)

    assert live(test) == 0


def test_a_spare_leaves_the_counters_alone() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        counters = Counters(shared.counters)
        counters.set(Gauge.CONNS, 50)
        assert await rig.ask("quiesce") == {"kind": "quiesced"}
        assert counters.gauge(Gauge.CONNS) == 50
        await stop(rig)

    assert live(test) == 0


# Uncompiled, a table of the usual size takes a third of a second on a slow machine.
MH_SLOTS = 65537 if tunlb.build() == "compiled" else 4093


def many(weight: int) -> Boot:
    """A configuration that takes many turns to apply."""
    lines = [TEXT]
    for i in range(300):
        line: dict[str, object]
        line = {"kind": "service", "name": f"many-{i}", "proto": "tcp", "vaddr": "10.0.0.100"}
        line |= {"vport": 1000 + i, "fwdmode": "nat", "scheduler": "mh"}
        lines.append(json.dumps(line | {"mh_table_size": MH_SLOTS}))
        lines += [
            json.dumps({"kind": "dest", "service": f"many-{i}", "daddr": f"10.0.0.{n}", **more})
            for n, more in ((11, {"weight": weight}), (12, {}))
        ]
    return boot("\n".join(lines))


def send_config(rig: Rig, what: Boot, serial: int) -> None:
    payload = put_blob(encode_pieces(what.history[0]))
    rig.channel.send({"kind": "config", "serial": serial}, (payload,))
    os.close(payload)


def test_it_forwards_while_it_applies() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        await rig.go()
        send_config(rig, many(2), 2)
        answered = 0
        while True:
            try:
                said = rig.channel.receive()[0]
                break
            except BlockingIOError:
                await rig.answered(ARP_FOR_US)
                answered += 1
        assert said == {"kind": "applied", "serial": 2}
        assert answered > 10
        await stop(rig)

    assert live(test) == 0


def test_one_configuration_after_the_other() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        await rig.go()
        for serial, what in enumerate((many(2), many(3), boot())):
            send_config(rig, what, serial)
        assert [await rig.said() for _ in range(3)] == [
            {"kind": "applied", "serial": serial} for serial in range(3)
        ]
        await stop(rig)

    assert live(test) == 0


def test_it_goes_when_all_is_applied() -> None:
    """Conns of its predecessor may be to dests that only the new configuration has."""

    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        send_config(rig, many(2), 2)
        assert await rig.go() == {"kind": "applied", "serial": 2}
        assert (await rig.said())["kind"] == "ready"
        await stop(rig)

    assert live(test) == 0


def test_it_stops_while_it_applies() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        await rig.go()
        send_config(rig, many(2), 2)
        await stop(rig)
        with pytest.raises((BlockingIOError, ChannelClosed)):
            rig.channel.receive()

    assert live(test) == 0


def test_half_of_a_configuration_ends_it() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        payload = put_blob(encode_pieces(boot().history[0])[:-20])
        rig.channel.send({"kind": "config", "serial": 2}, (payload,))
        os.close(payload)
        await asyncio.wait([rig.life])

    with pytest.raises(msgspec.DecodeError):
        live(test)


def test_a_device_that_is_made_anew() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        await rig.go()
        with port() as (device, queue):
            rig.channel.send({"kind": "port", "index": 0, "generation": 4}, (queue,))
            rig.device = device
            await rig.answered(ARP_FOR_US)
            await stop(rig)

    assert live(test) == 0


def test_a_device_is_missed_without_being_told() -> None:
    """A pipe's writing end stands for it: no event ever comes, and a read fails."""

    async def main() -> list[int]:
        director = FlowRig(TEXT).director
        lost: list[int] = []
        reading, writing = os.pipe2(os.O_NONBLOCK)
        worker = Worker(
            director,
            [Port(director.netifs[0], writing, director.counters)],
            lost.append,
            Pace(lambda error: None),
        )
        worker.start()
        async with asyncio.timeout(20):
            while not lost:
                await asyncio.sleep(0.001)
        worker.stop()
        os.close(reading)
        return lost

    assert asyncio.run(main()) == [0]


def test_the_other_device_of_a_bond_takes_over() -> None:
    """The one that stands by is read and forgotten, also what waits there when its time comes."""
    text = TEXT + '{"kind": "port", "name": "lb1", "backup_of": "lb0"}\n'

    async def main() -> None:
        director = FlowRig(text).director
        dropped = director.counters.dropped

        async def forgotten(count: int) -> None:
            async with asyncio.timeout(5):
                while dropped(DropReason.STANDBY) < count:
                    await asyncio.sleep(0.001)

        with port() as (first, one), port() as (second, two):
            ports = [
                Port(netif, fd, director.counters)
                for netif, fd in zip(director.carried, (one, two), strict=True)
            ]
            worker = Worker(director, ports, lambda _: None, Pace(lambda _: None), standby=[1])
            worker.start()
            second.send(PLAIN_VNET + ARP_FOR_US)
            await forgotten(1)
            await answered(first, ARP_FOR_US)
            second.send(PLAIN_VNET + ARP_FOR_US)
            worker.activate(1)
            assert dropped(DropReason.STANDBY) == 2
            await answered(second, ARP_FOR_US)
            first.send(PLAIN_VNET + ARP_FOR_US)
            await forgotten(3)
            worker.activate(0)
            await answered(first, ARP_FOR_US)
            assert dropped(DropReason.STANDBY) == 3
            worker.stop()

    asyncio.run(main())


def test_half_of_a_message_ends_it() -> None:
    async def test(rig: Rig, shared: Shared) -> None:
        await rig.said()
        rig.channel.send({"kind": "nonsense"})

    with pytest.raises(KeyError, match="nonsense"):
        live(test)
