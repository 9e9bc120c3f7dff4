"""Which mount has a file of an under-store, and where. Looks at records and the kernel's table, never into a mount."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luxfuse.configuration.roots import state_root
from luxfuse.control import registry
from luxfuse.control.registry import MountRecord
from luxfuse.errors import LuxError
from luxfuse.fuse import mountpoint as mounts

LOOK_S = 2.0
"""For so long the mounts that were found count."""
PLACES = ("account_name", "base_url", "endpoint", "endpoint_url", "host", "port")
"""Storage options that say where the objects are: a mount of another place is another bucket."""
_OF_CONNECTIONS = {"AccountName": "account_name", "BlobEndpoint": "endpoint_url"}
"""The same in a connection string of Azure."""
_SAME = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "azure": "az", "adl": "az", "local": "file"}
_ATTACHED = "attached.json"
_WITH_LOGIN = frozenset({"dav", "davs", "ftp", "ftps", "hdfs", "http", "https", "sftp", "smb", "ssh", "webdav", "webhdfs"})
"""Protocols in whose URLs ``user@`` stands before the host. Elsewhere it says which data is meant, as the repository
of github://ORG:REPOSITORY@BRANCH does."""
_ODD = frozenset({"", ".", ".."})


def place_of(url: str) -> tuple[str, str]:
    """Return protocol and place of a URL or local path, as two that mean the same have them, without slashes around it."""
    protocol, separator, rest = url.partition("://")
    if not separator:
        return "file", os.path.normpath(url).strip("/")
    protocol = _SAME.get(protocol.lower(), protocol.lower())
    host, slash, path = rest.partition("/")
    if protocol == "az":
        host = host.partition("@")[0]  # container@account, see `account_of`
    elif protocol in _WITH_LOGIN:
        host = host.rpartition("@")[2]
    return protocol, f"{host}{slash}{path}".strip("/")


def account_of(url: str) -> str:
    """Return the account that a URL of Azure names, as in abfs://container@account.dfs.core.windows.net; else ""."""
    protocol, _, rest = url.partition("://")
    named = rest.partition("/")[0].partition("@")[2].partition(".")[0]
    return named if _SAME.get(protocol.lower(), protocol.lower()) == "az" else ""


@dataclass(frozen=True, slots=True)
class Route:
    """A directory of a mount that shows what is at a place, but for what is at the paths ``hidden`` below it."""

    protocol: str
    place: str
    directory: str
    mountpoint: str
    device: int
    places: Mapping[str, str]
    hidden: tuple[str, ...]

    def local(self, protocol: str, place: str) -> str | None:
        """Return the local path of what is at a place; None if it is not below this, or has a key that no path can have.

        A key may have the parts "..", "." or "": as a path they would lead elsewhere, out of the mount even.
        """
        if protocol != self.protocol:
            return None
        if place == self.place or not self.place:
            inside = "" if place == self.place else place
        elif place.startswith(f"{self.place}/"):
            inside = place[len(self.place) + 1 :]
        else:
            return None
        if inside and not _ODD.isdisjoint(inside.split("/")):
            return None
        if any(inside == each or inside.startswith(f"{each}/") or each.startswith(f"{inside}/") for each in self.hidden):
            return None
        return f"{self.directory}/{inside}" if inside else self.directory

    def hold(self, path: str) -> Held | None:
        """Hold the mount, for a local path in it; None if it is not mounted any more, as far as this process sees.

        By its path, what is done after an unmount would be done to the disk below.
        """
        try:
            fd = os.open(self.mountpoint, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return None
        held = Held(self, path, fd)
        try:
            if os.fstat(fd).st_dev == self.device:
                return held
        except OSError:
            pass
        held.close()
        return None


@dataclass(frozen=True, slots=True)
class Held:
    """A path in a mount that is held by a descriptor of its mountpoint. A context manager, which lets go."""

    route: Route
    path: str
    """As users know it."""
    fd: int

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mount."""
        os.close(self.fd)

    @property
    def _root(self) -> str:
        return f"/proc/self/fd/{self.fd}"

    @property
    def inner(self) -> str:
        """The path by way of the descriptor: it leads into the mount, or nowhere."""
        return self.by_this(self.path)

    def by_this(self, path: str) -> str:
        """Return another path in the mount by way of the descriptor. The mountpoint itself is no symbolic link there."""
        return f"{self._root}{path[len(self.route.mountpoint.rstrip('/')) :] or '/.'}"

    def name(self, error: OSError) -> None:
        """Let an error name files as users know them."""
        mountpoint = self.route.mountpoint.rstrip("/")

        def named(text: Any) -> Any:
            if not isinstance(text, str):
                return text
            return (
                text.replace(f"{self._root}/.", mountpoint) if text.endswith("/.") else text.replace(self._root, mountpoint)
            )

        error.args = tuple(map(named, error.args))
        for name in ("filename", "filename2"):
            if (text := getattr(error, name)) is not None:
                setattr(error, name, named(text))


class Routes:
    """The routes through the mounts of this user."""

    def __init__(self, options: Mapping[str, object]) -> None:
        """``options``: the storage options; those of `PLACES` must be the mount's, if they are given."""
        self._wanted = {name: str(options[name]).rstrip("/") for name in PLACES if options.get(name)}
        inner = options.get("client_kwargs")
        if isinstance(inner, Mapping) and inner.get("endpoint_url"):
            self._wanted.setdefault("endpoint_url", str(inner["endpoint_url"]).rstrip("/"))
        for part in str(options.get("connection_string") or "").split(";"):
            name, _, value = part.strip().partition("=")
            if name in _OF_CONNECTIONS and value:
                self._wanted.setdefault(_OF_CONNECTIONS[name], value.rstrip("/"))
        self._routes: list[Route] = []
        self._looked_s = -LOOK_S

    def forget(self) -> None:
        """Look anew at once."""
        self._looked_s = -LOOK_S

    def hold(self, protocol: str, place: str, account: str = "") -> Held | None:
        """Hold the mount with the longest place above a path; None if there is none.

        ``account``: of Azure, if the path names it: then it has to be the mount's.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._routes = sorted(self._look(), key=lambda route: len(route.place), reverse=True)
        for route in self._routes:
            if account and route.places.get("account_name") != account:
                continue
            local = route.local(protocol, place)
            if local is not None and (held := route.hold(local)) is not None:
                return held
        return None

    def _look(self) -> Iterator[Route]:
        try:
            records = registry.list_mounts(state_root())
        except LuxError:
            return  # the directory is another user's, say
        seen = mounts.read_mounts() if records else []
        for record in records:
            mount = mounts.find_mount(record.mountpoint, seen)
            if not (record.alive or record.kept) or mount is None or mount.fstype != mounts.FSTYPE:
                continue
            major, _, minor = mount.device.partition(":")
            yield from self._of(record, os.makedev(int(major), int(minor)))

    def _of(self, record: MountRecord, device: int) -> Iterator[Route]:
        attached = list(_attached(record))
        for path, source, places in [("", record.source, record.places), *attached]:
            known = {name: value.rstrip("/") for name, value in places.items()}
            if account := account_of(source):
                known.setdefault("account_name", account)
            if any(known.get(name) != value for name, value in self._wanted.items()):
                continue
            inside = f"{path}/" if path else ""
            hidden = tuple(each[len(inside) :] for each, _, _ in attached if each.startswith(inside) and each != path)
            directory = f"{record.mountpoint.rstrip('/')}/{path}".rstrip("/")
            yield Route(*place_of(source), directory, record.mountpoint, device, known, hidden)


def _attached(record: MountRecord) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield path, source and places of what is attached; what hides something of the mount, in any case."""
    try:
        found = json.loads(Path(record.directory, _ATTACHED).read_bytes())["attached"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for each in found:
        options = each.get("options", {})
        given = {**options.get("storage_options", {}), "endpoint_url": options.get("endpoint_url")}
        yield each["path"], each["source"], {name: str(given[name]) for name in PLACES if given.get(name)}
