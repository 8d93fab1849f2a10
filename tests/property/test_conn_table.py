"""The connection table is a dict, whatever is done to it and however keys collide."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tunlb.ipvs import conn as c
from tunlb.ipvs.conn import ConnTable, hash_secret

Key = tuple[int, int, int, int, int, int]  # saddr_hi, saddr, daddr_hi, daddr, ports, proto

CONN_MAX = 12
MAPPED = 0xFFFF_0000_0000

# One key, and its neighbours that differ from it in one word: often taken, easily mistaken.
BASE: Key = (0, MAPPED | 1, 0, MAPPED | 2, 40000 << 16 | 80, 6)
OTHER: Key = (1 << 32, MAPPED | 2, 1, MAPPED | 1, 80 << 16 | 40000, 17)
keys = st.sampled_from(
    [BASE, OTHER, *((*BASE[:i], OTHER[i], *BASE[i + 1 :]) for i in range(len(BASE)))]
)


class TableModel(RuleBasedStateMachine):
    """``linked``: row -> its hashed keys; ``loose``: rows that are allocated and not linked."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ConnTable(CONN_MAX, hash_secret(b"property"))
        # One bucket of two, so that every chain is long; the heads stay larger than that.
        self.table.mask = 1
        self.linked: dict[int, list[Key]] = {}
        self.loose: dict[int, tuple[list[Key], bool]] = {}
        self.generations: dict[int, int] = {}

    @rule(inbound=keys, outbound=keys, oneway=st.booleans())
    def alloc(self, inbound: Key, outbound: Key, oneway: bool) -> None:
        row = self.table.alloc()
        if len(self.linked) + len(self.loose) == CONN_MAX:
            assert row == -1
            return
        assert 0 <= row < CONN_MAX
        assert row not in self.linked
        assert row not in self.loose
        mem = self.table.mem
        q, d, h, b = mem.cast("Q"), mem.cast("I"), mem.cast("H"), mem.cast("B")
        generation = h[row * 64 + c.H_GENERATION]
        assert generation == (self.generations.get(row, 0) + 1) & 0xFFFF
        self.generations[row] = generation
        h[row * 64 + c.H_GENERATION] = 0
        assert not any(b[row * c.ROW_SIZE : (row + 1) * c.ROW_SIZE])
        h[row * 64 + c.H_GENERATION] = generation
        outbound = (*outbound[:5], inbound[5])
        for direction, key in enumerate((inbound, outbound)):
            q[row * 16 + direction * 4 : row * 16 + direction * 4 + 4] = memoryview(
                b"".join(word.to_bytes(8, "little") for word in key[:4])
            ).cast("Q")
            d[row * 32 + c.D_PORTS + direction] = key[4]
        b[row * 128 + c.B_PROTO] = inbound[5]
        h[row * 64 + c.H_FLAGS] = c.ONEWAY if oneway else 0
        self.loose[row] = ([inbound] if oneway else [inbound, outbound], oneway)

    @precondition(lambda self: self.loose)
    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.loose)))
        found, oneway = self.loose[row]
        taken = {key for other in self.linked.values() for key in other}
        linked = self.table.link(row)
        assert linked == (not taken & set(found))
        assert self.table.valid(row) == linked
        flags = self.table.mem.cast("H")[row * 64 + c.H_FLAGS]
        assert flags == (c.ONEWAY if oneway else 0) | (c.VALID if linked else 0)
        if linked:
            del self.loose[row]
            self.linked[row] = found

    @precondition(lambda self: self.linked)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.linked)))
        self.table.unlink(row)
        for key in self.linked.pop(row):
            assert self.table.find(*key) == -1
        self.table.free(row)
        assert not self.table.valid(row)

    @precondition(lambda self: self.loose)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """A row that link() refused is freed without having been hashed."""
        row = data.draw(st.sampled_from(sorted(self.loose)))
        del self.loose[row]
        self.table.free(row)

    @rule(key=keys)
    def find(self, key: Key) -> None:
        expected = [
            row * 2 + direction
            for row, found in self.linked.items()
            for direction, own in enumerate(found)
            if own == key
        ]
        got = self.table.find(*key)
        assert got in expected if expected else got == -1

    @invariant()
    def every_key_is_found(self) -> None:
        for row, found in self.linked.items():
            for direction, key in enumerate(found):
                entry = self.table.find(*key)
                # A conn whose two keys are one and the same is found by either.
                assert entry == row * 2 + direction or (entry >> 1 == row and len(set(found)) == 1)

    @invariant()
    def the_books_agree(self) -> None:
        assert self.table.count == len(self.linked) + len(self.loose)
        assert list(self.table.rows()) == sorted(self.linked)


TableModel.TestCase.settings = settings(deadline=None)
test_table_is_a_dict = TableModel.TestCase
