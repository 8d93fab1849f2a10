from __future__ import annotations

import sys

from tunlb.keeper.server import serve

if __name__ == "__main__":
    serve(int(sys.argv[1]))
