"""``luxfuse mount``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer

from luxfuse.cli import launch
from luxfuse.cli.flags import ConfigFile, MountOptions, with_settings
from luxfuse.cli.options import parse_options
from luxfuse.configuration import building
from luxfuse.fuse import mountpoint as mounts
from luxfuse.fuse.places import check_places


@with_settings()
def mount(
    source: Annotated[str | None, typer.Argument(help="What to mount: s3://bucket/prefix or any fsspec URL.")] = None,
    mountpoint: Annotated[str | None, typer.Argument(help="An empty directory.")] = None,
    options: MountOptions = None,
    config_file: ConfigFile = None,
    *,
    settings: Mapping[str, Any],
) -> int:
    """Mount SOURCE on MOUNTPOINT; returns once the tree answers."""
    return start({"source": source, "mountpoint": mountpoint, **settings}, parse_options(options or []), config_file)


def start(flags: Mapping[str, Any], options: Mapping[str, Any], config_file: str | None = None) -> int:
    """Merge flags over ``-o`` options over the environment and the file, and start the daemon. Raises LuxError."""
    launch.go_on()
    settings = building.build(flags, file=config_file, options=options)
    settings = msgspec.structs.replace(settings, mountpoint=mounts.resolve(settings.mountpoint))
    check_places(settings)
    launch.clear_dead_mount(settings)
    if settings.foreground:
        return launch.in_foreground(settings)
    launch.in_background(settings)
    return 0
