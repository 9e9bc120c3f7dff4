"""``luxfuse pin``, ``unpin``, ``ttl`` and ``replicate``: files that stay in the cache, go by themselves, or have copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import UsageError, say
from luxfuse.cli.targets import by_mount, failed
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.core.replication import MOST_COPIES
from luxfuse.core.units import parse_duration

DEADLINE_S = 600.0
"""All that is cached is gone through, and the directories are listed."""
Paths = Annotated[list[str], typer.Argument(help="Files and directories in a mount.")]


def pin(paths: Paths) -> int:
    """Keep what is cached of the paths, now or later."""
    return _order("pin", paths, lambda client, inside: client.pin(inside))


def unpin(paths: Paths) -> int:
    """Let what was pinned at and below the paths be evicted again."""
    return _order("unpin", paths, lambda client, inside: client.unpin(inside))


def ttl(
    path: Annotated[str, typer.Argument(help="A file or directory in a mount.")],
    duration: Annotated[str, typer.Argument(help="Such as 7d or 12h; never: no limit any more.")],
    action: Annotated[
        str, typer.Option(metavar="free|delete", help="free: from the cache; delete: in the under-store, too.")
    ] = "free",
    yes: Annotated[bool, typer.Option("--yes", help="Really let files be deleted.")] = False,
) -> int:
    """Drop what is cached of a path, or delete files, after some time. Counts from when it came, or they last changed."""
    if action not in ("free", "delete"):
        raise UsageError(f"--action {action}: write free or delete")
    try:
        seconds = parse_duration(duration)
    except ValueError as exc:
        raise UsageError(f"DURATION: {exc}") from None
    limit = None if math.isinf(seconds) else seconds
    if action == "delete" and limit is not None and not yes:
        raise UsageError(
            f"{path}: files would be deleted in the under-store, {duration} after their last change; add --yes if so wanted"
        )
    return _order("ttl", [path], lambda client, inside: client.limit(inside, limit, action))


def replicate(
    paths: Paths,
    least: Annotated[
        int | None, typer.Option("--min", min=0, max=MOST_COPIES, metavar="N", help="At least; 0 ends the rule.")
    ] = None,
    most: Annotated[int | None, typer.Option("--max", min=1, max=MOST_COPIES, metavar="N", help="At most.")] = None,
    off: Annotated[bool, typer.Option("--off", help="End the rules of the paths.")] = False,
) -> int:
    """Have so many nodes hold what is cached of paths, now and later.

    Nothing is loaded for it: copies are made of what some node has cached. To begin with all of it, run luxfuse load first.
    """
    if off and (least is not None or most is not None):
        raise UsageError("--off: leave out --min and --max")
    least = 0 if off else least
    if least is None:
        raise UsageError("say how many nodes are to hold it: --min N, and --max N if there is a limit; or --off")
    if most is not None and (least == 0 or most < least):
        raise UsageError(f"--max {most}: is of no use with --min {least}")
    return _order("replicate", paths, lambda client, inside: client.replicate(inside, least, most))


def _order(name: str, paths: list[str], order: Callable[[ControlClient, list[str]], dict[str, Any]]) -> int:
    any_failed = False
    for record, inside in by_mount(paths):
        try:
            answer = order(ControlClient(record.socket_path, DEADLINE_S), inside)
        except (DaemonUnreachable, DaemonRefused) as exc:
            raise failed(record, exc) from None
        for line in [*answer.get("notes", []), *answer.get("failures", [])]:
            say(f"{name}: {record.mountpoint}: {line}")
        any_failed = any_failed or bool(answer.get("failures"))
    return 1 if any_failed else 0
