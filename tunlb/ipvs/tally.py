"""What all workers of a director count together: each has its own part, in a row of its memory that
the others read.

A part has one writer, so nothing is locked and nothing is lost. Two workers that look at the same
moment do not see what the other one is about to add, so a limit may be passed by one for each
worker but the first, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import cython


class Others:
    """The rows of the other workers. They are theirs: here they are only read."""

    def __init__(self, rows: Sequence[memoryview]) -> None:
        self.rows = [row.cast("Q") for row in rows]
        self.workers = len(rows)
        if cython.compiled:
            view: cython.ulonglong[::1]
            for i, row in enumerate(self.rows):
                view = row
                self.v[i] = cython.address(view[0])
        else:
            self.v = self.rows

    def sum(self, word: cython.longlong) -> cython.longlong:
        """Of one word of each worker's memory."""
        total: cython.ulonglong = 0
        i: cython.int
        for i in range(self.workers):
            total += self.v[i][word]
        return total


class Tally:
    """A number of a service. ``count`` is our part, ``word`` where it lies in each worker's rows,
    ``part`` that word in ours; without ``others`` it is nobody else's.

    A change of ``count`` alone is not seen by the others before :meth:`publish`: a worker that does
    not forward yet must not write what its predecessor still uses.
    """

    def __init__(
        self, part: memoryview | None = None, word: int = 0, others: Others | None = None
    ) -> None:
        self.count = 0
        self.word = word
        self.others = others
        self._place(memoryview(bytearray(8)) if part is None else part)

    def _place(self, part: memoryview) -> None:
        self.part = part.cast("Q")
        if cython.compiled:
            view: cython.ulonglong[::1] = self.part
            self.v = cython.address(view[0])
        else:
            self.v = self.part

    def add(self, n: cython.int) -> None:
        self.count += n
        self.publish()

    def publish(self) -> None:
        self.v[0] = self.count if self.count > 0 else 0

    def retire(self) -> None:
        """Another tally has the place from now on."""
        self._place(memoryview(bytearray(8)))

    def total(self) -> cython.longlong:
        """Of all workers."""
        others = self.others
        return self.count if others is None else self.count + others.sum(self.word)
