"""The table of settings: each is said here, once.

From it come the fields' defaults in `luxfuse.config.Settings`, what is read from flags, ``-o``, variables and files, the
commands' options and their help, and the table in docs/SETTINGS.md. So a new setting is a row here and a field there,
and ``python -m tests.support.reference`` for the table.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from luxfuse.core import values
from luxfuse.core.addresses import DEFAULT_PORT
from luxfuse.core.cache_directory import parse_cache_dirs
from luxfuse.core.rule_tables import parse_rules
from luxfuse.core.values import ValueKind

MOST_REPLICAS = 7
ACLS = ("keep", "private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read",
        "bucket-owner-read", "bucket-owner-full-control")  # fmt: skip
OF_OBJECTS = ("storage_class", "server_side_encryption", "sse_kms_key_id", "sse_customer_key_file", "acl",
              "checksum_algorithm", "requester_pays", "expected_bucket_owner")  # fmt: skip
"""The settings that say how objects are stored; drivers get them as options of the same names."""
SECRET_OPTIONS = frozenset({"sse_customer_key", "sse_customer_key_base64"})
"""Storage options that must not stand on a command line."""
Place = Literal["argument", "flag", "option", "variable", "file"]
EVERYWHERE: frozenset[Place] = frozenset(("flag", "option", "variable", "file"))
_ARGUMENT: frozenset[Place] = frozenset(("argument", "variable", "file"))


class Setting(NamedTuple):
    """One setting.

    ``name``: as in a TOML file; flags have dashes instead, variables LUXFUSE_ in front and capitals. ``help``: for
    --help and docs/SETTINGS.md, with single words in backquotes. ``default``: as it is written, None if there is none;
    ``shown_default``: a text that says more of it. ``attachable``: an attached under-store can have one of
    its own. ``live``: it can change while mounted. ``places``: where it can stand. ``item``: what flag and ``-o`` are
    called, if they give one of several. ``field``: of `Settings`; else the name with the kind's unit.
    """

    name: str
    kind: ValueKind
    help: str
    default: Any = None
    shown_default: str = ""
    attachable: bool = False
    live: bool = False
    places: frozenset[Place] = EVERYWHERE
    item: str = ""
    field: str = ""

    @property
    def field_name(self) -> str:
        """The field of `luxfuse.config.Settings` that it becomes."""
        return self.field or self.name + self.kind.unit

    @property
    def option(self) -> str:
        """Its name in ``-o``."""
        return self.item or self.name

    @property
    def flag(self) -> str:
        """Its flag."""
        return f"--{self.option.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"LUXFUSE_{self.name.upper()}"

    @property
    def told_default(self) -> str:
        """Its default, as people are told of it; empty if there is nothing to tell."""
        return self.shown_default or ("" if self.default is None else str(self.default))


SETTINGS = (
    Setting("source", values.SOURCE, "What to mount: `s3://bucket/prefix` or any fsspec URL.", places=_ARGUMENT),
    Setting("mountpoint", values.MOUNTPOINT, "An empty directory.", places=_ARGUMENT),
    Setting(
        "cache_dir", ValueKind("DIR[,size=SIZE][,tier=TIER]", parse_cache_dirs, "many"),
        "Where cached data goes; `tier`: `mem`, `ssd` or `hdd`. May be repeated, see Tiers in luxfuse/docs/USING.md.",
        shown_default="/var/cache/luxfuse, ~/.cache/luxfuse", live=True, field="cache_dirs",
    ),
    Setting(
        "cache_size", values.size("1MiB"), "Most bytes to cache, such as `50GiB`, where there is one cache directory.",
        shown_default="no limit", attachable=True, live=True, field="cache_dirs",
    ),
    Setting(
        "eviction_policy", values.choice("tinylfu", "lru", "lrfu"),
        "What goes when the cache is full. `tinylfu` keeps what is used most often, and so a part of a data set that is "
        "larger than the cache; `lru` and `lrfu` are as in Alluxio.", "tinylfu",
    ),
    Setting("free_space_ratio", values.RATIO, "Part of the cache's disk to leave free.", "0.1", live=True),
    Setting(
        "memory_limit", values.size("32MiB"), "Bound on the daemon's memory.",
        shown_default="a quarter of the machine's or container's, at most 2GiB",
    ),
    Setting(
        "metadata_ttl", values.DURATION, "How long names and attributes are believed; `never`: always.", "60s",
        attachable=True, live=True,
    ),
    Setting(
        "negative_ttl", values.DURATION, "How long a missing name stays missing.", "5s", attachable=True, live=True,
    ),
    Setting(
        "manifest", values.FILE,
        "A manifest of the source, made by `luxfuse index export`: its names need not be listed; they are as old as it is.",
    ),
    Setting(
        "whole_file_threshold", values.size(), "Files up to this size are fetched whole.", "16MiB", attachable=True,
    ),
    Setting("readahead", values.size(), "Most read-ahead of one file.", "64MiB"),
    Setting(
        "read_mode", values.choice("cache", "cache-promote", "no-cache"),
        "`cache-promote` brings what is read up to the highest tier, `no-cache` keeps nothing on disk.", "cache",
        attachable=True,
    ),
    Setting(
        "endpoint_url", values.text("URL"), "The store's address: another server with the same protocol.",
        shown_default="the store's own", attachable=True,
    ),
    Setting(
        "driver", values.choice("auto", "obstore", "fsspec"),
        "`obstore` (Rust; S3, Azure, GCS) or `fsspec`; `auto` takes obstore where it understands the options, and for GCS "
        "only where gcsfs is not installed.", "auto",
        attachable=True,
    ),
    Setting(
        "storage_options", values.OPTIONS, "Options of the store's driver.", attachable=True, item="storage_option",
    ),
    Setting(
        "storage_class", values.text("CLASS"),
        "S3 and Azure: the storage class, or access tier, of new objects; those that exist keep theirs.",
        shown_default="the bucket's", attachable=True,
    ),
    Setting(
        "server_side_encryption", values.choice("AES256", "aws:kms", "aws:kms:dsse"),
        "S3: how what is written is encrypted.", shown_default="as before, or the bucket's", attachable=True,
    ),
    Setting("sse_kms_key_id", values.text("KEY"), "The key for `aws:kms` and `aws:kms:dsse`.", attachable=True),
    Setting(
        "sse_customer_key_file", values.FILE,
        "S3: a private file with a key of 32 bytes, plain or in base64, with which everything here is encrypted (SSE-C).",
        attachable=True,
    ),
    Setting(
        "acl", values.choice(*ACLS),
        "S3: the ACL of what is written; `keep`: objects that exist keep theirs, new ones get the bucket's.", "keep",
        attachable=True,
    ),
    Setting(
        "checksum_algorithm", values.choice("CRC64NVME", "CRC32C", "CRC32", "none"),
        "S3: the checksum that goes with what is written.", shown_default="CRC64NVME, where the server takes it",
        attachable=True,
    ),
    Setting("requester_pays", values.SWITCH, "S3: the account that asks pays.", "off", attachable=True),
    Setting(
        "expected_bucket_owner", values.text("ACCOUNT"),
        "S3: the account of 12 digits that has to own the bucket, or requests fail; makes `auto` take the slower fsspec.",
        attachable=True,
    ),
    Setting(
        "request_timeout", values.TIME_OUT, "Deadline of one request with its retries.", "30s", attachable=True,
    ),
    Setting("max_requests", values.whole(1, 1024), "Requests to the store at once.", "64", attachable=True),
    Setting("allow_other", values.SWITCH, "Let other users in.", "off"),
    Setting(
        "bandwidth_limit", values.RATE, "Most bytes a second to receive from the store, such as `100MiB`.",
        shown_default="no limit", live=True,
    ),
    Setting(
        "upload_bandwidth_limit", values.RATE, "Most bytes a second to send to the store.", shown_default="no limit",
        live=True,
    ),
    Setting(
        "prices", values.PRICES,
        "What `get`, `put`, `list`, `head` and `delete` cost for 1,000 requests, `get_gb` and `put_gb` for 10^9 bytes, in "
        "`currency` (USD): `luxfuse status` then estimates the cost since the mount.", live=True, item="price",
    ),
    Setting(
        "attributes", values.choice("auto", "exact", "listing"),
        "When mode, owner and times are asked for, which listings do not tell. `exact`: of each object, before anything is "
        "shown of it; `auto`: so where objects are found to carry them; `listing`: not for their own sake.", "auto",
        attachable=True,
    ),
    Setting("uid", values.IDENTITY, "Owner of all files whose owner is not known.", shown_default="the mounting user's"),
    Setting("gid", values.IDENTITY, "Group of all files whose group is not known.", shown_default="the mounting user's"),
    Setting("umask", values.UMASK, "What the mode of files lacks if it is not known; in the file in quotes.", "022"),
    Setting("read_only", values.SWITCH, "Refuse every change; also `-o ro`.", "off", attachable=True),
    Setting(
        "write_mode", values.choice("cache-through", "async-through", "through", "must-cache"),
        "What close and fsync wait for: the store (`cache-through`, and `through`, which keeps no copy) or the local disk "
        "(`async-through`); `must-cache` is never uploaded.", "cache-through", attachable=True, live=True,
    ),
    Setting(
        "path", ValueKind("TABLES", parse_rules, "rules"),
        "Tables `[[path]]` in the file: what holds for paths that match `pattern`, see Rules in luxfuse/docs/SETTINGS.md.",
        live=True, places=frozenset(("file",)), field="path_rules",
    ),
    Setting(
        "on_conflict", values.choice("overwrite", "fail"),
        "If somebody else changed the object meanwhile: `overwrite` keeps theirs aside, `fail` gives ESTALE.", "overwrite",
        attachable=True, live=True,
    ),
    Setting(
        "hardlinks", values.choice("refuse", "copy"),
        "What link(2) does: EPERM, or a copy, made inside the store where it can be; it is another file from then on.",
        "refuse", attachable=True, live=True,
    ),
    Setting("max_uploads", values.whole(1, 256), "Files, or parts of large ones, uploaded at once.", "16", attachable=True),
    Setting(
        "room_timeout", values.DURATION,
        "How long writers wait for room in the cache directory before they get ENOSPC.", "30s", live=True,
    ),
    Setting(
        "cluster_key_file", values.FILE,
        "Makes the mount a node of a cluster: the key that `luxfuse cluster init` wrote, the same on all nodes.",
    ),
    Setting(
        "join", values.SEEDS,
        "Other nodes: an address, a name with many addresses, or a file with one address a line. May be repeated.",
    ),
    Setting("listen", values.LISTEN, "Where other nodes are listened to, by UDP and TCP.", f"0.0.0.0:{DEFAULT_PORT}"),
    Setting(
        "advertise", values.ADVERTISE, "Where other nodes reach this one, if it cannot tell itself.",
        shown_default="the network interface's",
    ),
    Setting(
        "cooperative", values.SWITCH, "`off`: read from nodes that have something, but let none get it for all.", "on",
    ),
    Setting("peer_tls", values.SWITCH, "`off`: what nodes say is signed, but not encrypted, which is faster.", "on"),
    Setting("rack", values.short_text("NAME", 64), "Nodes of the same rack are asked first.", ""),
    Setting(
        "durable_replicas", values.whole(0, MOST_REPLICAS),
        "With `async-through`: so many other nodes have what was written before close and fsync return.", "0",
    ),
    Setting("passthrough", values.SWITCH, "`off`: read through the daemon even where the kernel could.", "on"),
    Setting(
        "dataplane", values.SWITCH,
        "`off`: let Python answer all reads, writes and look-ups that come to it, and obstore fetch.", "on",
    ),
    Setting(
        "foreground", values.SWITCH, "Serve in this process until unmounted.", "off",
        places=frozenset(("flag", "variable", "file")),
    ),
    Setting(
        "keeper", values.SWITCH,
        "If the daemon dies another one goes on; for a plain user, or before Linux 6.9, the mount is taken away.", "on",
    ),
    Setting(
        "http", values.PAGE,
        "Where the daemon has a web page, `/metrics` for Prometheus and the status as JSON, such as `127.0.0.1:9180`.",
        shown_default="nowhere",
    ),
    Setting(
        "http_token_file", values.FILE,
        "A private file with a token of 16 characters or more, which requests to `http` then have to give. Without it, "
        "all users of the machine may look, and other machines must not be able to.",
    ),
    Setting(
        "otlp", values.text("URL"),
        "Send the metrics every 15 s by OTLP/HTTP to the collector there, such as `http://127.0.0.1:4318`; it needs "
        "`pip install 'luxfuse[otlp]'`.",
        shown_default="nowhere",
    ),
    Setting("log_file", values.FILE, "Where the daemon's log goes.", shown_default="in the state directory"),
    Setting(
        "slow_request", values.TIME_OUT,
        "Log each request of a program that takes so long, with its file, the program, and what it waited for.",
        shown_default="none",
    ),
    Setting(
        "log_format", values.choice("text", "json"),
        "What a line of the log is: `name=value` pairs, or an object of JSON; systemd's journal is told its severity.",
        "text",
    ),
    Setting("log_level", values.choice("debug", "info", "warning", "error"), "The messages to log.", "info", live=True),
)  # fmt: skip
BY_NAME = {setting.name: setting for setting in SETTINGS}


def default(name: str) -> Any:
    """Return the default of a setting as `luxfuse.config.Settings` has it."""
    setting = BY_NAME[name]
    return None if setting.default is None else setting.kind.parse(setting.default)


def names(place: Place) -> frozenset[str]:
    """Return the names of the settings that can stand somewhere."""
    return frozenset(setting.name for setting in SETTINGS if place in setting.places)
