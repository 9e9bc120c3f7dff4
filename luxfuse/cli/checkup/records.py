"""Whether the records of mounts that do not run can be used, and whether they hold what the store has not got."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from luxfuse.cli.checkup.findings import Finding, fail, ok, warn


def check_records(state_dir: str) -> Generator[Finding, None, None]:
    """Look at the indexes and journals in a state directory, but for those that a daemon uses."""
    from luxfuse.index import leftovers, survey

    sound = True
    try:
        for found in survey.survey(Path(state_dir)):
            sound = False
            how = fail if found.holds_changes else warn
            yield how("records", f"{found.path}: {found.text}", found.advice)
    except OSError as exc:
        yield fail("records", f"{state_dir} cannot be read: {exc.strerror}", "run it as the user that mounts")
        return
    for left in leftovers.find(Path(state_dir, "journal")):
        if left.any:
            sound = False
            yield warn(
                "records", f"not in the under-store: {left.text}, of {left.origin.source}",
                f"mount it with --cache-dir {Path(left.origin.cache).parent}, which brings them there",
            )  # fmt: skip
    if sound:
        yield ok("records", f"{state_dir}: what mounts have left can be used, and nothing waits for an upload")
