"""What releases of Linux can do, and what that means for a mount."""

from __future__ import annotations

import re

RESENDS_SINCE = (6, 9)
"""The first release that sends requests again which a dead daemon had taken (FUSE_NOTIFY_RESEND)."""

PASSTHROUGH_SINCE = (6, 9)
"""The first release that reads and writes cached files itself (FUSE_PASSTHROUGH), if it was built so."""


def can_resend(release: str) -> bool:
    """Whether a release, as uname(2) has it, can."""
    return _number(release) >= RESENDS_SINCE


def can_pass_through(release: str) -> bool:
    """Whether a release, as uname(2) has it, can."""
    return _number(release) >= PASSTHROUGH_SINCE


def _number(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found is not None else (0, 0)


def why_no_keeper(*, wanted: bool, root: bool, release: str) -> str | None:
    """Return why the daemon of a mount has no successor, None if it has."""
    if not wanted:
        return "switched off by the settings"
    if not root:
        return "only mounts of root have one"
    if not can_resend(release):
        return f"Linux {release} does not send requests again; 6.9 and later do"
    return None
