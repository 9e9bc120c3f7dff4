"""What releases of Linux can do."""

from __future__ import annotations

import re

RESENDS_SINCE = (6, 9)
"""The first release that sends requests again which a dead daemon had taken (FUSE_NOTIFY_RESEND)."""


def can_resend(release: str) -> bool:
    """Whether a release, as uname(2) has it, can."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) >= RESENDS_SINCE
