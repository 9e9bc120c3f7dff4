"""``luxfuse free`` and ``locate``: content of the cache is shown, or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from luxfuse.cli.errors import say
from luxfuse.cli.report import AsJson, print_json
from luxfuse.cli.targets import by_mount, failed
from luxfuse.control.client import ControlClient, DaemonRefused, DaemonUnreachable
from luxfuse.core.printing import printable
from luxfuse.core.units import format_count, format_size

LOCATE_DEADLINE_S = 60.0
_REASONS = {
    "is open, or being loaded": "open, or being loaded",
    "is open for writing": "open for writing",
    "is not in the under-store yet": "not in the under-store yet",
}


def free(
    paths: Annotated[
        list[str], typer.Argument(help="Files and directories in a mount; quoted patterns are matched there.")
    ],
    as_json: AsJson = False,
) -> int:
    """Drop what is cached of the paths. Files that are open or not in the under-store yet stay."""
    documents = []
    any_failed = False
    for record, inside in by_mount(paths):
        try:
            *_, step = ControlClient(record.socket_path).free(inside)
        except (DaemonUnreachable, DaemonRefused) as exc:
            raise failed(record, exc) from None
        documents.append({"mountpoint": record.mountpoint, **{k: v for k, v in step.items() if k != "done"}})
        any_failed = any_failed or bool(step["failures"])
        if not as_json:
            print(f"{record.mountpoint}: {_freed(step)}")
        for failure in step["failures"]:
            say(f"free: {record.mountpoint}: {failure}")
    if as_json:
        print_json(documents)
    return 1 if any_failed else 0


def _freed(step: Mapping[str, Any]) -> str:
    text = f"{format_count(step['freed_files'], 'file')} freed ({format_size(step['freed_bytes'])})"
    kept = [f"{count} {_REASONS.get(why, why)}" for why, count in step["kept"].items()]
    return f"{text}, {sum(step['kept'].values())} stay: {', '.join(kept)}" if kept else text


def locate(
    paths: Annotated[list[str], typer.Argument(help="Files and directories in a mount.")], as_json: AsJson = False
) -> int:
    """Show what is cached where. Of a file its pages, of a directory sums."""
    found = []
    for record, inside in by_mount(paths):
        try:
            answers = ControlClient(record.socket_path, LOCATE_DEADLINE_S).locate(inside)
        except (DaemonUnreachable, DaemonRefused) as exc:
            raise failed(record, exc) from None
        for answer in answers:
            answer["path"] = f"{record.mountpoint}/{answer['path']}".rstrip("/")
        found += answers
    if as_json:
        print_json(found)
    for answer in found:
        if "error" in answer:
            say(f"locate: {answer['path']}: {answer['error']}")
        elif not as_json:
            print("\n".join(_file(answer) if answer["kind"] == "file" else _directory(answer)))
    return 1 if any("error" in answer for answer in found) else 0


def _file(answer: Mapping[str, Any]) -> list[str]:
    state = "" if answer["state"] == "clean" else f", {answer['state']}"
    lines = [f"{printable(answer['path'])}: {format_size(answer['size'])}{state}"]
    for place in answer["places"]:
        pages = f"pages {place['pages']}" if place["pages"] else "in parts"
        lines.append(f"  {place['tier']}: {pages} ({format_size(place['bytes'])}) in {place['file']}")
    if answer["missing_pages"]:
        elsewhere = "not here" if answer["nodes"] else "under-store only"
        lines.append(f"  {elsewhere}: pages {answer['missing_pages']}")
    for node in answer["nodes"]:
        part = "" if node["ranges"] == node["of"] else f" ({node['ranges']} of {node['of']} ranges)"
        lines.append(f"  node {node['label']}{part}")
    return lines


def _directory(answer: Mapping[str, Any]) -> list[str]:
    counts = [format_count(answer["whole_files"], "whole file")]
    if answer["partial_files"]:
        counts.append(f"{answer['partial_files']} in part")
    if answer["dirty_files"]:
        counts.append(f"{answer['dirty_files']} not in the under-store yet")
    lines = [f"{printable(answer['path'])}: {', '.join(counts)} cached"]
    for tier in answer["tiers"]:
        files = format_count(tier["files"], "file")
        lines.append(f"  {tier['tier']}: {files} ({format_size(tier['bytes'])}) in {tier['directory']}")
    return lines
