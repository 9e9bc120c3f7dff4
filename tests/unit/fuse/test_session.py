"""What a mount asks of the kernel, with a socket in place of libfuse."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import cast

import pytest

from luxfuse.fuse.kernel import KernelSide
from luxfuse.fuse.lowlevel import passthrough
from luxfuse.fuse.operations import Operations
from luxfuse.fuse.session import FUSE_INIT_EXT, FUSE_PASSTHROUGH_2, INIT_IN, INIT_OUT, Session


@pytest.mark.parametrize("privileged", [True, False])
async def test_only_root_asks_for_passthrough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, privileged: bool) -> None:
    session = Session(
        cast("Operations", None), KernelSide(), mountpoint="/m", source="s3://b", allow_other=False, want_passthrough=True,
        want_data_plane=True, cache_directories=[tmp_path],
    )  # fmt: skip
    session.privileged = privileged
    device, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, libfuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with device, kernel, ours, libfuse:
        kernel.send(bytes(40) + INIT_IN.pack(7, 40, 0, FUSE_INIT_EXT, FUSE_PASSTHROUGH_2))
        reply = bytes(16) + INIT_OUT.pack(7, 38, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        monkeypatch.setattr(passthrough, "push", lambda _init: libfuse.send(reply))
        assert await session._relay_init(device.fileno(), ours)
        out = INIT_OUT.unpack_from(os.read(kernel.fileno(), 4096), 16)
    assert bool(out[10] & FUSE_PASSTHROUGH_2) == bool(out[3] & FUSE_INIT_EXT) == bool(out[11]) == privileged
