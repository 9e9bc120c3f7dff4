"""One attached under-store, as its mount knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import trio

from luxfuse.config import Settings
from luxfuse.control.attached_file import Record
from luxfuse.vfs.volumes import Volume
from luxfuse.volume.parts import VolumeParts

State = Literal["attaching", "serving", "unreachable", "detaching"]


@dataclass(eq=False)
class Attached:
    """``hung``: whether the attach point is in the tree; ``refused``: why a detach has failed at its end."""

    record: Record
    settings: Settings
    volume: Volume
    state: State = "attaching"
    error: str | None = None
    hung: bool = False
    on_record: bool = True
    refused: str | None = None
    parts: VolumeParts | None = None
    notes: list[str] = field(default_factory=list)
    leave: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    trying: trio.Lock = field(default_factory=trio.Lock)

    @property
    def path(self) -> str:
        return self.record.path
