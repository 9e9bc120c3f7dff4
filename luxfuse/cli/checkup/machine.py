"""Whether this machine, and this user on it, can mount: kernel, FUSE, privileges, limits, what was built."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import resource
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from luxfuse import __version__
from luxfuse.cli.checkup.findings import Finding, fail, ok, warn
from luxfuse.core.kernels import can_pass_through, can_resend, why_no_keeper
from luxfuse.errors import MountError

FEW_FILES, ENOUGH_FILES = 1024, 65_536
"""Limits of open files: below the first little works; with the second a few thousand files can be open and not uploaded."""
CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 21, 24
DEVICE, FUSE_CONF = Path("/dev/fuse"), Path("/etc/fuse.conf")
_SYSTEMD = Path("/run/systemd/system")
_UNITS = tuple(Path(directory, "luxfuse@.service") for directory in ("/etc/systemd/system", "/usr/lib/systemd/system"))


def check_machine(*, allow_other: bool, want_passthrough: bool, want_keeper: bool) -> Iterator[Finding]:
    """Look at everything but disks and stores. ``allow_other``: other users are to see the mount."""
    yield ok("luxfuse", f"version {__version__}, Python {platform.python_version()}")
    release = os.uname().release
    if can_resend(release):
        yield ok("kernel", f"{os.uname().sysname} {release}")
    else:
        yield warn(
            "kernel", f"{os.uname().sysname} {release}: no passthrough, and a mount ends with its daemon",
            "everything works, only slower; Linux 6.9 or newer has both",
        )  # fmt: skip
    built = list(check_extensions())
    yield from built
    yield from check_device(DEVICE)
    yield from check_privileges(allow_other=allow_other)
    if not any(finding.state == "FAIL" for finding in built):
        yield from check_fuse(allow_other=allow_other, want_passthrough=want_passthrough)
    yield check_files(*resource.getrlimit(resource.RLIMIT_NOFILE), _has(CAP_SYS_RESOURCE))
    yield check_keeping(release, wanted=want_keeper)


def check_extensions() -> Iterator[Finding]:
    """Look whether the parts in C are there: one is needed, the others save processor time."""
    try:
        importlib.import_module("luxfuse.fuse.lowlevel")
    except ImportError as exc:
        yield fail(
            "extension", f"the part in C cannot be loaded: {exc}",
            "install gcc, pkg-config, libfuse3-dev and python3-dev, and install luxfuse again",
        )  # fmt: skip
    if importlib.util.find_spec("luxfuse.understore.gets._gets") is None:
        yield warn(
            "extension", "built without libcurl: small files take several times the processor time",
            "install libcurl4-openssl-dev, libssl-dev and libxxhash-dev, and install luxfuse again",
        )  # fmt: skip
        return
    try:
        importlib.import_module("luxfuse.understore.gets._gets")
    except ImportError as exc:
        yield warn("extension", f"requests in C cannot be used: {exc}", "install libcurl4, or install luxfuse again")
    else:
        yield ok("extension", "built with libcurl")


def check_device(device: Path) -> Iterator[Finding]:
    """Look whether the device can be opened; and, for a plain user, whether fusermount3 can mount."""
    in_container = " (in a container: --device /dev/fuse)"
    if not device.exists():
        yield fail("fuse device", f"{device} is missing", f"run: modprobe fuse{in_container}")
    elif not os.access(device, os.R_OK | os.W_OK):
        yield fail(
            "fuse device", f"{device} cannot be opened by this user", f"run as root: chmod 666 {device}{in_container}"
        )
    else:
        yield ok("fuse device", f"{device} can be opened")
    program = shutil.which("fusermount3")
    if os.geteuid() == 0:
        yield ok("fusermount3", program or "missing, which root does not need")
    elif program is None:
        yield fail("fusermount3", "missing, and a plain user mounts by it", "install the package fuse3")
    elif not (mode := Path(program).stat()).st_mode & stat.S_ISUID or mode.st_uid != 0:
        yield fail("fusermount3", f"{program} is not set-user-ID root", f"run as root: chmod u+s {program}")
    else:
        yield ok("fusermount3", program)


def check_privileges(*, allow_other: bool) -> Iterator[Finding]:
    """Look what this user may do."""
    if os.geteuid() == 0:
        if _has(CAP_SYS_ADMIN):
            yield ok("privileges", "root: may mount, for other users as well")
        else:
            yield fail(
                "privileges", "root without CAP_SYS_ADMIN: may not mount",
                "give the container --cap-add SYS_ADMIN --device /dev/fuse",
            )  # fmt: skip
        return
    allowed = user_allow_other(FUSE_CONF.read_text(errors="replace") if FUSE_CONF.exists() else "")
    if allowed or not allow_other:
        others = (
            "other users can be let in" if allowed else f"other users cannot be let in (no user_allow_other in {FUSE_CONF})"
        )
        yield ok("privileges", f"a plain user: may mount by fusermount3; {others}")
    else:
        yield fail(
            "privileges", f"--allow-other is for root only: {FUSE_CONF} has no line user_allow_other",
            f"add that line to {FUSE_CONF}, or leave --allow-other out",
        )  # fmt: skip


def user_allow_other(text: str) -> bool:
    """Whether fuse.conf lets plain users use ``allow_other``."""
    return any(line.partition("#")[0].strip() == "user_allow_other" for line in text.splitlines())


def _has(capability: int) -> bool:
    return bool(_effective_capabilities(Path("/proc/self/status").read_text()) >> capability & 1)


def _effective_capabilities(status: str) -> int:
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)


def check_fuse(*, allow_other: bool, want_passthrough: bool) -> Iterator[Finding]:
    """Mount for a moment, and look what the kernel offers."""
    from luxfuse.fuse.trial import try_mount

    try:
        version, offered = try_mount(allow_other=allow_other)
    except MountError as exc:
        yield fail("mounting", str(exc), "see the lines above; in a container: --cap-add SYS_ADMIN --device /dev/fuse")
        return
    except OSError as exc:
        yield fail("mounting", f"a temporary directory cannot be used: {exc.strerror}", "set TMPDIR to one that can")
        return
    yield ok("mounting", f"tried: it works; FUSE {version}")
    if not want_passthrough:
        yield ok("passthrough", "switched off by the settings")
    elif offered and os.geteuid() == 0:
        yield ok("passthrough", "the kernel reads cached files itself")
    elif offered:
        yield warn(
            "passthrough", "the kernel has it for root only: threads in C copy what is read",
            "mount as root with --allow-other, if reads of cached files are too slow",
        )  # fmt: skip
    elif can_pass_through(os.uname().release):
        yield warn("passthrough", "this kernel was built without it", "use a kernel with CONFIG_FUSE_PASSTHROUGH=y")
    else:
        yield warn("passthrough", "this kernel is too old for it", "use Linux 6.9 or newer")


def check_files(soft: int, hard: int, may_exceed: bool) -> Finding:
    """Judge the limits of open files: the daemon raises its own as far as it may; root ``may_exceed`` the hard one."""
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    if may_exceed or hard == resource.RLIM_INFINITY or hard >= ENOUGH_FILES:
        return ok("open files", f"limit {soft}, which the daemon raises" + ("" if may_exceed else f" to at most {most}"))
    judge = fail if hard < FEW_FILES else warn
    return judge(
        "open files", f"at most {most}: files in passthrough, and those that wait for their upload, stay open",
        "raise it: LimitNOFILE= in the unit, nofile in /etc/security/limits.conf, --ulimit nofile= of a container; 1048576",
    )  # fmt: skip


def check_keeping(release: str, *, wanted: bool) -> Finding:
    """Say what becomes of a mount when its daemon dies, or the machine starts."""
    unit = next((path for path in _UNITS if path.exists()), None) if _SYSTEMD.is_dir() else None
    at_boot = f"systemd mounts at boot ({unit})" if unit else "no unit of systemd is installed"
    why = why_no_keeper(wanted=wanted, root=os.geteuid() == 0, release=release)
    if why is None:
        return ok("keeper", f"a daemon that dies has a successor, and programs go on; {at_boot}")
    return ok("keeper", f"none, so that a daemon that dies takes the mount with it: {why}; {at_boot}")
