"""``luxfuse doctor``: what is wrong with this machine, a store or a mount, and what to do about it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import typer

from luxfuse.cli.checkup.bucket import check_permissions
from luxfuse.cli.checkup.disks import check_disks
from luxfuse.cli.checkup.findings import Finding, fail, ok, warn
from luxfuse.cli.checkup.machine import check_machine
from luxfuse.cli.checkup.mounted import check_mount
from luxfuse.cli.checkup.network import check_network
from luxfuse.cli.checkup.patience import patiently
from luxfuse.cli.checkup.records import check_records
from luxfuse.cli.flags import ConfigFile, MountOptions, with_settings
from luxfuse.cli.options import parse_options
from luxfuse.cli.report import AsJson, print_json
from luxfuse.cli.targets import mount_or_source
from luxfuse.config import Settings
from luxfuse.configuration import building
from luxfuse.control import registry
from luxfuse.control.registry import MountRecord
from luxfuse.core.printing import printable
from luxfuse.core.units import format_age
from luxfuse.errors import LuxError
from luxfuse.understore.endpoints import credentials_of, endpoint_of
from luxfuse.understore.factory import open_driver
from luxfuse.understore.failures import CREDENTIAL_PLACES
from luxfuse.understore.locations import family_of

NO_PLACE = "/luxfuse-doctor"
"""Stands for the mountpoint: nothing is mounted."""
NO_SOURCE = "none://none"
TIMEOUT_S = 10.0
SOON_S = 900.0
"""Temporary credentials that end sooner are about to be renewed, or forgotten."""


@with_settings()
def doctor(
    target: Annotated[
        str | None, typer.Argument(metavar="[SOURCE|MOUNTPOINT]", help="A store, or a mount; this machine if left out.")
    ] = None,
    options: MountOptions = None,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
    *,
    settings: Mapping[str, Any],
) -> int:
    """Check this machine, a store or a mount. Say what to do about what is wrong.

    The store is asked as a mount with these flags would ask it; what may be done in the bucket is tried under a name
    of its own, .luxfuse-doctor-..., and removed again, unless --read-only. Exit status 1: something does not work.
    """
    record = None if target is None else mount_or_source(target)
    given = {"source": None if record is not None else target, "mountpoint": NO_PLACE, **settings}
    parsed = parse_options(options or [])
    if given["source"] is None and config_file is None:
        given["source"] = record.source if record is not None else NO_SOURCE
    chosen = building.build(given, file=config_file, options=parsed)
    known = record is None or bool(config_file or parsed or settings)
    findings: list[Finding] = []
    for finding in _check(chosen, record, store_known=known and chosen.source != NO_SOURCE):
        findings.append(finding)
        if not as_json:
            print(line(finding), flush=True)
    failures, warnings = (sum(finding.state == state for finding in findings) for state in ("FAIL", "warn"))
    if as_json:
        checks = [dataclasses.asdict(finding) for finding in findings]
        print_json({"checks": checks, "failures": failures, "warnings": warnings})
    else:
        print(f"{len(findings)} checks, {failures} failed, {warnings} to look at")
    return 1 if failures else 0


def line(finding: Finding) -> str:
    """Return a finding as it is printed; its advice comes below."""
    text = printable(" ".join(finding.text.split()))
    said = f"{finding.state:<4}  {finding.name:<15}  {text}"
    return f"{said}\n{'':23}-> {printable(' '.join(finding.advice.split()))}" if finding.advice else said


def _check(settings: Settings, record: MountRecord | None, *, store_known: bool) -> Iterator[Finding]:
    yield from check_machine(
        allow_other=settings.allow_other, want_passthrough=settings.passthrough, want_keeper=settings.keeper
    )
    if record is None:
        yield from patiently(check_disks(settings), "disk", "look at the disk and its mount: dmesg, findmnt, iostat -x 1")
        yield from patiently(check_records(settings.state_dir), "records", "look at the disk: dmesg, iostat -x 1")
    if store_known:
        yield from check_store(settings)
    elif record is not None:
        yield ok(
            "source", f"{record.source}: asked by the daemon alone, as only it knows the mount's options",
            "to try the store itself, give SOURCE, or MOUNTPOINT with the options or --config of the mount",
        )  # fmt: skip
    if record is not None:
        yield from check_mount(record)
    elif not store_known:
        for each in registry.list_mounts(settings.state_dir):
            yield from check_mount(each)


def check_store(settings: Settings) -> Iterator[Finding]:
    """Look at the way to a store, the credentials, and what they allow."""
    options = settings.driver_options
    try:
        endpoint = endpoint_of(settings.source, settings.endpoint_url, options)
    except LuxError as exc:
        yield fail("endpoint", str(exc), "correct the options of the mount")
        return
    reached: Iterable[Finding] = list(check_network(endpoint)) if endpoint is not None else ()
    yield from reached
    found = check_credentials(settings)
    yield found
    if found.state == "FAIL" or any(finding.state == "FAIL" and finding.name != "clock" for finding in reached):
        yield warn("bucket", "not asked, as it cannot be reached", "mend what failed above first")
        return
    yield from _check_bucket(settings)


def check_credentials(settings: Settings) -> Finding:
    """Say where the credentials were found, and until when they hold; never what they are."""
    places = CREDENTIAL_PLACES.get(family_of(settings.source) or "")
    try:
        found = credentials_of(settings.source, settings.endpoint_url, settings.driver_options)
    except LuxError as exc:
        named = places is not None and places in str(exc)
        return fail("credentials", str(exc), "give some in one of these places" if named else f"give some: {places}")
    if found.origin is None:
        if places is None:
            return ok("credentials", "none given, for this kind of store")
        return warn("credentials", "none named: the machine's own identity is asked for", f"or give some: {places}")
    origin = found.origin.removesuffix(", as they were at the start of the mount")
    if found.expires_s is None:
        return ok("credentials", f"from {origin}")
    left_s = found.expires_s - time.time()
    if left_s <= 0:
        return fail("credentials", f"from {origin}: they have expired", "renew them there")
    text = f"from {origin}: good for {format_age(left_s)}"
    return warn("credentials", text, "see that they are renewed in time") if left_s < SOON_S else ok("credentials", text)


def _check_bucket(settings: Settings) -> Iterator[Finding]:
    try:
        store = open_driver(
            settings.source, endpoint_url=settings.endpoint_url, storage_options=settings.driver_options,
            driver=settings.driver, request_timeout_s=min(TIMEOUT_S, settings.request_timeout_s),
        )  # fmt: skip
    except LuxError as exc:
        yield fail("bucket", str(exc), "correct the source or the options of the mount")
        return
    try:
        yield from check_permissions(store, settings.source, read_only=settings.read_only)
    finally:
        store.close()
