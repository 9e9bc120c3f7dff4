"""pyfuse3 with our extension in front of it: import pyfuse3 from nowhere else, the order of loading matters."""

from __future__ import annotations

import os
import sys

_before = sys.getdlopenflags()
sys.setdlopenflags(_before | os.RTLD_GLOBAL)
try:
    from luxfuse.fuse import _passthrough as passthrough
finally:
    sys.setdlopenflags(_before)

import pyfuse3  # noqa: E402

__all__ = ["passthrough", "pyfuse3"]
