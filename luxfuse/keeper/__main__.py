"""Runs the keeper; started as a file, with nothing to import from but Python's own modules."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.append(__file__.rsplit("/", 3)[0])
    from luxfuse.keeper.keeping import main

    sys.exit(main())
