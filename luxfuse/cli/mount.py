"""``luxfuse mount``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer

from luxfuse import config
from luxfuse.cli import launch
from luxfuse.cli.options import parse_options, parse_storage_options
from luxfuse.core.addresses import DEFAULT_PORT
from luxfuse.fuse import mountpoint as mounts

_KEY = "key=value"


def mount(
    source: Annotated[str | None, typer.Argument(help="What to mount: s3://bucket/prefix or any fsspec URL.")] = None,
    mountpoint: Annotated[str | None, typer.Argument(help="An empty directory.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="NAME=VALUE,...", help="Settings as in /etc/fstab; the other flags win."),
    ] = None,
    config_file: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Settings as TOML; flags and LUXFUSE_* win.")
    ] = None,
    cache_dir: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR[,size=SIZE][,tier=TIER]", help="Where cached data goes; tier: mem, ssd or hdd."),
    ] = None,
    cache_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Most bytes to cache, such as 50GiB.")] = None,
    free_space_ratio: Annotated[
        float | None, typer.Option(metavar="RATIO", help="Part of the cache's disk to leave free. Default 0.1.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Bound on the daemon's buffers. Default 256MiB.")
    ] = None,
    read_only: Annotated[bool | None, typer.Option("--read-only", help="Refuse every change.")] = None,
    allow_other: Annotated[bool | None, typer.Option("--allow-other", help="Let other users in.")] = None,
    read_mode: Annotated[
        str | None,
        typer.Option(metavar="cache|cache-promote|no-cache", help="cache-promote: up to the highest tier. Default cache."),
    ] = None,
    eviction_policy: Annotated[
        str | None, typer.Option(metavar="tinylfu|lru|lrfu", help="What goes when the cache is full. Default tinylfu.")
    ] = None,
    write_mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="What close and fsync wait for: the store (cache-through; through, which keeps no copy), the local disk"
            " (async-through); must-cache: never uploaded. Default cache-through.",
        ),
    ] = None,
    on_conflict: Annotated[
        str | None,
        typer.Option(
            metavar="overwrite|fail", help="If somebody else changed the object meanwhile. Default overwrite."
        ),
    ] = None,
    metadata_ttl: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long names and attributes hold. Default 60s.")
    ] = None,
    negative_ttl: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long a missing name stays missing. Default 5s.")
    ] = None,
    whole_file_threshold: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Files up to this size are fetched whole. Default 16MiB.")
    ] = None,
    bandwidth_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes a second to receive, such as 100MiB. Default: no limit.")
    ] = None,
    upload_bandwidth_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes a second to send. Default: no limit.")
    ] = None,
    endpoint_url: Annotated[str | None, typer.Option(metavar="URL", help="The store's address, if not AWS.")] = None,
    storage_option: Annotated[
        list[str] | None, typer.Option(metavar=_KEY, help="An option of the store's driver; may be repeated.")
    ] = None,
    driver: Annotated[str | None, typer.Option(metavar="auto|obstore|fsspec", help="Default auto.")] = None,
    cluster_key_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Share the cache with all nodes that have this key; see: luxfuse cluster init"),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help=f"For other nodes, UDP and TCP. Default 0.0.0.0:{DEFAULT_PORT}.")
    ] = None,
    advertise: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="Where other nodes reach this one, if it cannot tell itself.")
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT|file:PATH", help="Some other nodes; a name may have many addresses. Repeatable."),
    ] = None,
    cooperative: Annotated[
        str | None, typer.Option(metavar="on|off", help="Read what is not here from other nodes. Default on.")
    ] = None,
    peer_tls: Annotated[
        str | None, typer.Option(metavar="on|off", help="off: signed, not encrypted; faster. Default on.")
    ] = None,
    rack: Annotated[str | None, typer.Option(metavar="NAME", help="Nodes of the same rack are asked first.")] = None,
    durable_replicas: Annotated[
        int | None,
        typer.Option(metavar="N", help="async-through: close and fsync wait until N other nodes have it, too. Default 0."),
    ] = None,
    foreground: Annotated[bool | None, typer.Option("--foreground", help="Serve until unmounted.")] = None,
    log_file: Annotated[str | None, typer.Option(metavar="FILE", help="Default: in the state directory.")] = None,
) -> int:
    """Mount SOURCE on MOUNTPOINT; returns once the tree answers."""
    flags: dict[str, Any] = {
        "source": source,
        "mountpoint": mountpoint,
        "cache_dir": cache_dir or None,
        "cache_size": cache_size,
        "free_space_ratio": free_space_ratio,
        "memory_limit": memory_limit,
        "read_only": read_only,
        "allow_other": allow_other,
        "read_mode": read_mode,
        "eviction_policy": eviction_policy,
        "write_mode": write_mode,
        "on_conflict": on_conflict,
        "metadata_ttl": metadata_ttl,
        "negative_ttl": negative_ttl,
        "whole_file_threshold": whole_file_threshold,
        "bandwidth_limit": bandwidth_limit,
        "upload_bandwidth_limit": upload_bandwidth_limit,
        "endpoint_url": endpoint_url,
        "storage_options": parse_storage_options(storage_option) if storage_option else None,
        "driver": driver,
        "cluster_key_file": cluster_key_file,
        "listen": listen,
        "advertise": advertise,
        "join": join or None,
        "cooperative": cooperative,
        "peer_tls": peer_tls,
        "rack": rack,
        "durable_replicas": durable_replicas,
        "foreground": foreground,
        "log_file": log_file,
    }
    return start(flags, parse_options(options or []), config_file)


def start(flags: Mapping[str, Any], options: Mapping[str, Any], config_file: str | None = None) -> int:
    """Merge flags over ``-o`` options over the environment and the file, and start the daemon. Raises LuxError."""
    given = {name: value for name, value in flags.items() if value is not None}
    settings = config.build({**options, **given}, file=config_file)
    settings = msgspec.structs.replace(settings, mountpoint=mounts.resolve(settings.mountpoint))
    if settings.foreground:
        return launch.in_foreground(settings)
    launch.in_background(settings)
    return 0
