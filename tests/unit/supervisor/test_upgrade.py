"""What the next program is asked before it takes over, and what is told of one that cannot."""

from __future__ import annotations

import sys

import pytest

from tunlb.supervisor import upgrade


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("pass", None),
        ("import sys; sys.exit('tunlb: no')", "tunlb: no"),
        ("import os; os._exit(3)", "the new program ended (exit status 3) and said nothing"),
        (
            "import os; print('trying hook a:B\\ntrying scheduler c:D', flush=True); os.abort()",
            "the new program ended (SIGABRT) while trying scheduler c:D",
        ),
    ],
)
def test_what_is_told_of_it(
    monkeypatch: pytest.MonkeyPatch, program: str, told: str | None
) -> None:
    monkeypatch.setattr(upgrade, "next_argv", lambda: [sys.executable, "-c", program])
    assert upgrade.try_next([]) == told
