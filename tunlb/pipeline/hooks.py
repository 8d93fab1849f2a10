"""Hook chains: one per point, in order of priority."""

from __future__ import annotations

from collections.abc import Callable

import cython

from tunlb.counters import Counters, DropReason, Event
from tunlb.hook import Hook, Verdict
from tunlb.packet import Packet

REPEAT_MAX = 8  #: times that one hook may ask to be called again for one packet

ErrorHandler = Callable[[object, Exception], None]

_DROP = cython.declare(cython.int, Verdict.DROP)
_ACCEPT = cython.declare(cython.int, Verdict.ACCEPT)
_STOLEN = cython.declare(cython.int, Verdict.STOLEN)
_REPEAT = cython.declare(cython.int, Verdict.REPEAT)
_STOP = cython.declare(cython.int, Verdict.STOP)
_REPEAT_MAX = cython.declare(cython.int, REPEAT_MAX)
_HOOK_ERROR = cython.declare(cython.int, DropReason.HOOK_ERROR)
_HOOK_REPEAT = cython.declare(cython.int, DropReason.HOOK_REPEAT)
_HOOK_ERRORS = cython.declare(cython.int, Event.HOOK_ERRORS)


class Link:
    """A hook's place in a chain; a typed list, which costs the packet path no check of types."""

    def __init__(self, hook: Hook, then: Link | None) -> None:
        self.hook = hook
        self.then = then


class Chain:
    """The hooks of one point, lower priority first, in order of registration among equals.

    ``on_error`` is called with a hook that raised and its exception; it may raise on (tests do).
    """

    def __init__(self, counters: Counters, on_error: ErrorHandler) -> None:
        self.counters = counters
        self.on_error = on_error
        self.hooks: list[Hook] = []
        self.first: Link | None = None
        self.before: Hook | None = None  # whom `rest` is behind
        self.rest: Chain | None = None

    def register(self, hook: Hook) -> None:
        at = 0
        while at < len(self.hooks) and self.hooks[at].priority <= hook.priority:
            at += 1
        self.hooks.insert(at, hook)
        self._link()

    def remove(self, hook: Hook) -> None:
        """Not while the chain runs; a hook that is not in it raises ValueError."""
        self.hooks.remove(hook)
        self._link()

    def behind(self, hook: Hook) -> Chain | None:
        """The hooks that come after ``hook``, as a chain of their own, until this one changes; None
        when it is the last. Each segment of a frame that is cut asks, so the last answer is kept.
        """
        if self.before is not hook:
            self.rest = self._behind(hook)
            self.before = hook
        return self.rest

    def _behind(self, hook: Hook) -> Chain | None:
        link: Link | None = self.first
        while link is not None and link.hook is not hook:
            link = link.then
        if link is None or link.then is None:
            return None
        rest = Chain(self.counters, self.on_error)
        rest.first = link.then
        return rest

    def _link(self) -> None:
        self.before = None
        self.first = None
        for each in reversed(self.hooks):
            self.first = Link(each, self.first)

    def run(self, pkt: Packet, now: cython.longlong) -> cython.int:
        """DROP or STOLEN, or ACCEPT: go on with the okfn."""
        link: Link | None = self.first
        if link is None:
            return _ACCEPT
        verdict: cython.int = _ACCEPT
        repeats: cython.int = 0
        # One try for the whole chain: entering one costs more than a compiled hook.
        try:
            while link is not None:
                verdict = link.hook.run(pkt, now)
                if verdict == _ACCEPT:
                    link = link.then
                    repeats = 0
                elif verdict == _REPEAT and repeats < _REPEAT_MAX:
                    repeats += 1
                else:
                    break
        except Exception as exc:
            self.counters.add(_HOOK_ERRORS, 1)
            assert link is not None
            self.on_error(link.hook, exc)
            return pkt.drop(_HOOK_ERROR)
        if verdict == _STOP:
            return _ACCEPT
        if verdict == _REPEAT:
            return pkt.drop(_HOOK_REPEAT)
        if verdict == _ACCEPT or verdict == _STOLEN or verdict == _DROP:
            return verdict
        self.counters.add(_HOOK_ERRORS, 1)
        assert link is not None
        self.on_error(link.hook, ValueError(f"{verdict} is not a verdict"))
        return pkt.drop(_HOOK_ERROR)
