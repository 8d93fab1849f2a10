"""The timer wheel: one level of slots, intrusive lists, lazy entries (Varghese and Lauck 1987).

An entry is an index that its owner chose, such as a row of the conn table; it costs 8 bytes. The
wheel does not know deadlines: a packet only stores when it was last seen, and when the entry comes
due its owner looks again and says how long to wait still. So a conn costs one link operation per
timeout, not one per packet.

Every operation is O(1). Time moves in ticks. When it has moved, the slots that passed are appended
whole to one list of due entries (:meth:`Wheel.collect`), at most one revolution of them however
long the stall was, and :meth:`Wheel.advance` fires from the head of that list. The wheel itself is
therefore never behind ``now``, and a delay shorter than the horizon is always kept in full, also
while a long list of due entries is worked off.
"""

from __future__ import annotations

import mmap

import cython

# Ticks are counted from this far before zero, so that they are positive wherever the clock starts:
# C and Python divide negative numbers differently.
_BIAS = cython.declare(cython.longlong, 1 << 62)


class Wheel:
    """Timers for the indices 0 .. ``capacity`` - 1; a subclass overrides :meth:`fire`.

    ``slots`` x ``tick_ms`` is the horizon. ``count`` is the number of scheduled entries, ``fired``
    counts calls of :meth:`fire`. Times are integer milliseconds of one monotonic clock, which may
    start anywhere in +-2**61.
    """

    def __init__(self, capacity: int, slots: int = 1024, tick_ms: int = 250) -> None:
        if capacity < 1 or slots < 2 or tick_ms < 1:
            raise ValueError("a wheel needs capacity >= 1, slots >= 2 and tick_ms >= 1")
        self.capacity = capacity
        self.slots = slots
        self.tick_ms = tick_ms
        self.count = 0
        self.fired = 0
        # Nodes: 0 is nobody, 1 .. slots are the heads of the slots' circular lists, then the head
        # of the due list, then the entries. Node n has its successor at 2n and its predecessor at
        # 2n + 1; 0 = not linked.
        self.due = slots + 1
        self.base = slots + 2
        # Private, so that a fork does not share it, and mapped, so that only the pages in use cost
        # memory.
        size = 8 * (self.base + capacity)
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.mem = memoryview(pages).cast("I")
        if cython.compiled:
            view: cython.uint[::1] = self.mem
            self.p = cython.address(view[0])
        else:
            self.p = self.mem
        for head in range(1, self.base):
            self.mem[2 * head] = head
            self.mem[2 * head + 1] = head
        self.tick = 0
        self.started = False

    def schedule(self, index: cython.int, now: cython.longlong, delay_ms: cython.longlong) -> None:
        """Let ``index`` come due ``delay_ms`` after ``now``, rounded up to a tick; or move it.

        Beyond the horizon it goes to the farthest slot and comes due early; :meth:`fire` says how
        long it still has.
        """
        self.collect(self.ticks(now))
        self.cancel(index)
        if delay_ms > self.tick_ms * self.slots:
            delay_ms = self.tick_ms * self.slots
        tick: cython.longlong = self.ticks(now + delay_ms + self.tick_ms - 1)
        if tick <= self.tick:
            tick = self.tick + 1
        elif tick > self.tick + self.slots:
            tick = self.tick + self.slots
        self.link(self.base + index, 1 + tick % self.slots)
        self.count += 1

    def cancel(self, index: cython.int) -> None:
        """Forget ``index``; nothing happens when it is not scheduled."""
        p = self.p
        if p[2 * (self.base + index)] != 0:
            self.unlink(self.base + index)
            self.count -= 1

    def scheduled(self, index: cython.int) -> cython.bint:
        """Is it waiting, or due and not fired yet?"""
        p = self.p
        return p[2 * (self.base + index)] != 0

    def advance(self, now: cython.longlong, budget: cython.int) -> cython.int:
        """Fire at most ``budget`` entries that are due, oldest tick first; how many were fired.

        As many as ``budget`` means that more may be due: call again soon. What :meth:`fire` raises
        passes through.
        """
        fired: cython.int = 0
        node: cython.uint
        again: cython.longlong
        self.collect(self.ticks(now))
        while fired < budget:
            node = self.p[2 * self.due]
            if node == self.due:
                break
            self.unlink(node)
            self.count -= 1
            self.fired += 1
            fired += 1
            again = self.fire(node - self.base, now)
            if again != 0:
                self.schedule(node - self.base, now, again)
        return fired

    def fire(self, index: cython.int, now: cython.longlong) -> cython.longlong:
        """``index`` is due and now unscheduled: 0 when done with, else the ms until the next look.

        May schedule and cancel any index, its own too; nothing that it schedules fires within the
        same tick.
        """
        raise NotImplementedError

    def ticks(self, time: cython.longlong) -> cython.longlong:
        """The tick that ``time`` is in."""
        return (time + _BIAS) // self.tick_ms

    def collect(self, tick: cython.longlong) -> None:
        """Move to ``tick``: append the slots that passed to the due list."""
        if not self.started:
            self.started = True
            self.tick = tick
        # After a stall of more than a revolution every slot has passed exactly once.
        last: cython.longlong = min(tick, self.tick + self.slots)
        passed: cython.longlong = self.tick + 1
        while passed <= last:
            self.splice(1 + passed % self.slots)
            passed += 1
        if tick > self.tick:
            self.tick = tick

    def splice(self, slot: cython.uint) -> None:
        """Append the whole list of ``slot`` to the due list and leave the slot empty."""
        p = self.p
        first: cython.uint = p[2 * slot]
        if first == slot:
            return
        final: cython.uint = p[2 * slot + 1]
        tail: cython.uint = p[2 * self.due + 1]
        p[2 * tail] = first
        p[2 * first + 1] = tail
        p[2 * final] = self.due
        p[2 * self.due + 1] = final
        p[2 * slot] = slot
        p[2 * slot + 1] = slot

    def link(self, node: cython.uint, head: cython.uint) -> None:
        """Append ``node`` to the list of ``head``."""
        p = self.p
        tail: cython.uint = p[2 * head + 1]
        p[2 * node] = head
        p[2 * node + 1] = tail
        p[2 * tail] = node
        p[2 * head + 1] = node

    def unlink(self, node: cython.uint) -> None:
        p = self.p
        after: cython.uint = p[2 * node]
        before: cython.uint = p[2 * node + 1]
        p[2 * before] = after
        p[2 * after + 1] = before
        p[2 * node] = 0
        p[2 * node + 1] = 0
