"""What there is of the machine: its memory, or that of the container."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from luxfuse.core.memory import least_of

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def memory_bytes() -> int:
    """Return the bytes of memory that this process may take at most, with all others. Reads /proc and /sys."""
    return least_of(_limits(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _limits() -> list[str]:
    """Return the limits of the control groups that this process is in, up to the root; versions 1 and 2."""
    found = []
    with contextlib.suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            top = CONTROL_GROUPS / "memory" if controllers else CONTROL_GROUPS
            group = top / path.lstrip("/")
            for each in (group, *group.parents):  # in a container the path may be that outside: then the top is its own
                with contextlib.suppress(OSError):
                    found.append((each / name).read_text())
                if each == top:
                    break
    return found
