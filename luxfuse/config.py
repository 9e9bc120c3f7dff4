"""The settings of one mount, validated and frozen.

The daemon gets them (as JSON on a pipe, so that no secret shows in ``ps``); `configuration.building` makes
them of what a user wrote.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, Literal

import msgspec

from luxfuse.core.cache_directory import CacheSetting
from luxfuse.core.prices import Prices
from luxfuse.core.rules import PathPolicy, PathRule
from luxfuse.core.settings import OF_OBJECTS, default
from luxfuse.types import ReadMode, WriteMode

OnConflict = Literal["overwrite", "fail"]
HardLinks = Literal["refuse", "copy"]
AttributesMode = Literal["auto", "exact", "listing"]
Driver = Literal["auto", "obstore", "fsspec"]
EvictionPolicy = Literal["tinylfu", "lru", "lrfu"]


def mount_id(mountpoint: str) -> str:
    """Return the name of a mount's state directory."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a daemon needs to know. Sizes in bytes, times in seconds.

    ``path_rules``: rules for parts of the mount, see `core.rules`. ``room_timeout_s``: how long a writer
    waits for room in the cache directory before it gets ENOSPC. With a ``cluster_key_file`` the mount is a node of a
    cluster; ``advertise`` None: others reach it under the address of its network interface, at the port of ``listen``.
    """

    source: str
    mountpoint: str
    cache_dirs: tuple[CacheSetting, ...]
    state_dir: str
    free_space_ratio: float = default("free_space_ratio")
    memory_limit_bytes: int | None = None
    read_only: bool = default("read_only")
    allow_other: bool = default("allow_other")
    attributes: AttributesMode = default("attributes")
    uid: int | None = None
    gid: int | None = None
    umask: int = default("umask")
    read_mode: ReadMode = default("read_mode")
    eviction_policy: EvictionPolicy = default("eviction_policy")
    write_mode: WriteMode = WriteMode(default("write_mode"))
    path_rules: tuple[PathRule, ...] = ()
    on_conflict: OnConflict = default("on_conflict")
    hardlinks: HardLinks = default("hardlinks")
    metadata_ttl_s: float = default("metadata_ttl")
    negative_ttl_s: float = default("negative_ttl")
    manifest: str | None = None
    whole_file_threshold_bytes: int = default("whole_file_threshold")
    endpoint_url: str | None = None
    storage_options: dict[str, str] = {}
    storage_class: str | None = None
    server_side_encryption: str | None = None
    sse_kms_key_id: str | None = None
    sse_customer_key_file: str | None = None
    acl: str = default("acl")
    checksum_algorithm: str | None = None
    requester_pays: bool = default("requester_pays")
    expected_bucket_owner: str | None = None
    driver: Driver = default("driver")
    request_timeout_s: float = default("request_timeout")
    max_requests: int = default("max_requests")
    max_uploads: int = default("max_uploads")
    room_timeout_s: float = default("room_timeout")
    readahead_bytes: int = default("readahead")
    prices: Prices | None = None
    bandwidth_limit_bytes_s: int | None = None
    upload_bandwidth_limit_bytes_s: int | None = None
    cluster_key_file: str | None = None
    listen: str = default("listen")
    advertise: str | None = None
    join: tuple[str, ...] = ()
    cooperative: bool = default("cooperative")
    peer_tls: bool = default("peer_tls")
    rack: str = default("rack")
    durable_replicas: int = default("durable_replicas")
    passthrough: bool = default("passthrough")
    dataplane: bool = default("dataplane")
    keeper: bool = default("keeper")
    foreground: bool = default("foreground")
    http: str | None = None
    http_token_file: str | None = None
    otlp: str | None = None
    log_file: str | None = None
    slow_request_s: float | None = None
    log_format: Literal["text", "json"] = default("log_format")
    log_level: Literal["debug", "info", "warning", "error"] = default("log_level")
    directory: str = "/"
    """Where relative paths of the file are looked for."""
    config_file: str | None = None
    """The file that some of these come from."""
    given: dict[str, Any] = {}
    """The settings by flags and variables, as they were written: they win over the file when that is read again."""

    @property
    def mount_id(self) -> str:
        """Names the mount's state directory; depends on the mountpoint alone."""
        return mount_id(self.mountpoint)

    @property
    def places(self) -> dict[str, str]:
        """The settings besides the source that say where the objects are, by name."""
        said = {name: self.storage_options[name] for name in _PLACES if name in self.storage_options}
        return said if self.endpoint_url is None else {**said, "endpoint_url": self.endpoint_url}

    @property
    def source_id(self) -> str:
        """Names the cached content; depends on where the objects come from alone."""
        options = self.storage_options
        places = [f"\0{name}={_without_login(options[name])}" for name in _PLACES if name in options]
        identity = f"{self.source}\0{self.endpoint_url or ''}{''.join(places)}"
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def driver_options(self) -> dict[str, str]:
        """Options of the under-store's driver: the storage options, and the settings that say how objects are stored."""
        chosen = {name: getattr(self, name) for name in OF_OBJECTS}
        said = {name: value for name, value in chosen.items() if value not in (None, default(name))}
        return {**self.storage_options, **{name: "true" if value is True else value for name, value in said.items()}}

    @property
    def path_default(self) -> PathPolicy:
        """The policy of paths that no rule says anything about."""
        return PathPolicy(self.write_mode, self.read_mode)


_PLACES = ("account_name", "base_url", "endpoint", "endpoint_url", "host", "port")
"""Storage options that say where the objects are."""


def _without_login(url: str) -> str:
    """Return a URL without user and password, which may change while the place stays the same."""
    return re.sub(r"//[^/@]*@", "//", url)
