"""Two beginnings: of nothing, or of what a former supervisor left."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from tunlb.boot import Applied, calls_of
from tunlb.channel import get_blob
from tunlb.conf import Config, Diff, diff, live
from tunlb.destids import DestIds
from tunlb.ipvs import sched
from tunlb.keeper.client import Busy, Keeper, KeeperError
from tunlb.log import Logger
from tunlb.loop import HookError, attempts
from tunlb.mailbox import open_mailbox
from tunlb.privileges import UnknownUser, lookup_user
from tunlb.shared import LayoutError, Shared
from tunlb.supervisor import snapshot
from tunlb.supervisor.errors import StartError
from tunlb.supervisor.fleet import Slot, stored_mailbox, stored_memory
from tunlb.supervisor.keeping import Keeping
from tunlb.supervisor.ports import Ports, device_names, queue_name
from tunlb.supervisor.process import comm
from tunlb.supervisor.state import State, StateError, read_state
from tunlb.supervisor.trial import try_calls
from tunlb.tap import monotonic_ms
from tunlb.wiring import laddrs_of

SECRET_LEN = 32


class Options(NamedTuple):
    """What `tunlb run` was told."""

    path: Path
    config: Config
    control: str
    environ: Mapping[str, str]
    force: bool


class Former(NamedTuple):
    """What a former supervisor left: its keeper, its living workers by pid, its version, and how
    our configuration file differs from what it ran.
    """

    keeper: Keeper
    pids: Mapping[int, int]
    version: str
    difference: Diff


class Start(NamedTuple):
    """What a supervisor begins with. ``user``: the uid and gid of workers. ``former`` is None when
    there was none.
    """

    state: State
    keeping: Keeping
    ports: Ports
    slots: list[Slot]
    user: tuple[int, int]
    former: Former | None


def find_keeper(control: str) -> Keeper | None:
    """The keeper that a former supervisor left. Raises StartError when that one lives."""
    try:
        found = Keeper.connect(control)
    except KeeperError as error:
        raise StartError(str(error)) from error
    if isinstance(found, Busy):
        raise StartError(
            f"tunlb already runs (pid {found.pid}) with this control path: {control}; "
            "set another `control` for a second one, or replace the program with `tunlb upgrade`"
        )
    return found


def begin(options: Options, keeping: Keeping, log: Logger) -> Start:
    """The first supervisor: everything is made (blocks). Raises StartError, DeviceError."""
    config = options.config
    user = _user(config)
    try_calls(calls_of(config), keeping, user)
    ids = DestIds()
    try:
        numbers = ids.assign(config)
    except ValueError as error:
        raise StartError(str(error)) from error
    first = Applied(at_ms=monotonic_ms(), config=config, ids=tuple(numbers.items()))
    state = State(
        workers=config.tunlb.worker_count(len(os.sched_getaffinity(0))),
        secret=secrets.token_bytes(SECRET_LEN),
        seed=_seed(config),
        history=(first,),
        numbers=tuple(ids.taken.items()),
    )
    ports = Ports(state, keeping, log, force=options.force)
    try:
        ports.open()
        ports.install_routes(config)
        ports.refuse_loops(config)
        slots = []
        for number in range(state.workers):
            slot = Slot(number, Shared.create(number, config.tunlb.conn_max), open_mailbox())
            keeping.own({**stored_memory(slot), **stored_mailbox(slot)})
            slots.append(slot)
        _restore(state, slots, log)
    except BaseException:
        keeping.close()
        ports.close()
        raise
    return Start(state, keeping, ports, slots, user, None)


def _restore(state: State, slots: Sequence[Slot], log: Logger) -> None:
    """Begin with the conns of the snapshot file, if there is one that fits."""
    path = state.config.tunlb.snapshot
    if path is None:
        return
    tables = [slot.shared for slot in slots]
    numbers, laddrs = dict(state.numbers), laddrs_of(state.config.services)
    now_ms = monotonic_ms()
    try:
        restored, state.secret = snapshot.restore(Path(path), tables, numbers, laddrs, now_ms)
    except FileNotFoundError:
        log.info("snapshot_missing", snapshot=path)
    except (snapshot.SnapshotError, OSError) as error:
        log.warning("snapshot_refused", snapshot=path, error=str(error))
    else:
        log.info(
            "snapshot_restored",
            snapshot=path,
            conns=restored.placed,
            left_out=restored.left_out,
            expired=restored.expired,
            age_s=round(restored.age_s, 1),
        )


def take_over(options: Options, keeping: Keeping, keeper: Keeper, log: Logger) -> Start:
    """The successor of a supervisor that ended (blocks). Raises StartError, DeviceError, with
    everything left as it was.
    """
    fetched = keeper.fetch()
    keeping.own(fetched.descriptors)
    stored = keeping.stored
    try:
        state = read_state(get_blob(stored["state"]))
        slots = [
            Slot(i, _attach(stored, i), (stored[f"mailbox/{i}/read"], stored[f"mailbox/{i}/write"]))
            for i in range(state.workers)
        ]
        for name in device_names(state.config):
            for worker in range(state.workers):
                stored[queue_name(name, worker)]
    except (StateError, LayoutError, KeyError) as error:
        found = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise StartError(
            f"cannot take over from the former tunlb (its keeper is pid {keeper.pid}): {found}; "
            f"its workers go on without a supervisor until `kill {keeper.pid}` ends them"
        ) from error
    state.quiescent = False  # it was stopping, and we are not
    user = _user(state.config)
    config = live(state.config, options.config)
    difference = diff(state.config, options.config)
    ports = Ports(state, keeping, log, force=options.force)
    ports.look_over()
    ports.admit(config)
    if difference:
        try_calls(calls_of(config).without(calls_of(state.config)), keeping, user)
        ports.keep_routes(state.config, config)
        apply(state, config, slots)
    pids = worker_pids({*state.pids.values(), *fetched.workers})
    former = Former(keeper, pids, fetched.version, difference)
    return Start(state, keeping, ports, slots, user, former)


def apply(state: State, config: Config, slots: Sequence[Slot]) -> Applied:
    """``config`` runs from now on. Raises ValueError when it has too many dests."""
    ids = DestIds(dict(state.numbers))
    known = {key for applied in state.history for key, _ in applied.ids}
    for key, number in state.numbers:
        # As long as a conn somewhere bears its number, no other dest may have it.
        if key not in known and not any(slot.carries(number) for slot in slots):
            ids.forget(key)
    numbers = ids.assign(config)
    applied = Applied(at_ms=monotonic_ms(), config=config, ids=tuple(numbers.items()))
    state.numbers = tuple(ids.taken.items())
    state.applied(applied)
    return applied


def fits(config: Config, state_fd: int, conns_fd: int, stats_fd: int) -> None:
    """Whether this program could take over now. Raises StartError when not."""
    try:
        state = read_state(get_blob(state_fd))
        Shared.attach(conns_fd, stats_fd)
        config = live(state.config, config)
        apply(state, config, ())
        for what in attempts(calls_of(config)):
            print(f"trying {what}", flush=True)  # for who asks, should it end this process
    except (StateError, LayoutError, HookError, sched.SchedulerError, ValueError) as error:
        raise StartError(str(error)) from error


def release(start: Start, control: str) -> None:
    """Whatever the former keeper had is the new one's: now that can be found, the other can end
    (blocks). Whenever we end, somebody can go on.
    """
    former = start.former
    if former is None:
        start.keeping.listen(control)
        return
    with contextlib.suppress(KeeperError):
        start.keeping.listen(control)  # refused, and remembered should we end before the next one
    with contextlib.suppress(KeeperError):
        former.keeper.exit()
    start.keeping.listen(control)


def give_up(start: Start) -> None:
    """A start failed: nothing is left behind, or a former supervisor's workers go on (blocks)."""
    if start.former is None:
        start.keeping.close()
        start.ports.close()


def worker_pids(pids: Iterable[int]) -> dict[int, int]:
    """Which of these processes are workers, and which: a number may be another's by now."""
    found = {}
    for pid in pids:
        name, _, number = comm(pid).rpartition("-")
        if name == "tunlb-worker" and number.isdecimal():
            found[pid] = int(number)
    return found


def _attach(stored: Mapping[str, int], worker: int) -> Shared:
    return Shared.attach(stored[f"conns/{worker}"], stored[f"stats/{worker}"])


def _user(config: Config) -> tuple[int, int]:
    try:
        return lookup_user(str(config.tunlb.user))
    except UnknownUser as error:
        raise StartError(str(error)) from error


def _seed(config: Config) -> int:
    """64 bits for consistent hashing: of the configured seed, which nodes share, or random."""
    text = config.tunlb.seed
    material = (
        secrets.token_bytes(8)
        if text is None
        else bytes.fromhex(text.zfill(len(text) + len(text) % 2))
    )
    return int.from_bytes(blake2b(material, digest_size=8, person=b"tunlb").digest(), "big")
