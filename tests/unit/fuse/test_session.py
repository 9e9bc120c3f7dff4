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


async def asked_of_the_kernel(session: Session, monkeypatch: pytest.MonkeyPatch, *said: int) -> tuple[int, ...]:
    """What the kernel is answered to INIT where libfuse says so."""
    device, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, libfuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with device, kernel, ours, libfuse:
        kernel.send(bytes(40) + INIT_IN.pack(7, 40, 0, FUSE_INIT_EXT, FUSE_PASSTHROUGH_2))
        reply = bytes(16) + INIT_OUT.pack(*said)
        monkeypatch.setattr(passthrough, "push", lambda _init: libfuse.send(reply))
        assert await session._relay_init(device.fileno(), ours)
        return INIT_OUT.unpack_from(os.read(kernel.fileno(), 4096), 16)


def session_on(directory: Path) -> Session:
    return Session(
        cast("Operations", None), KernelSide(), mountpoint="/m", source="s3://b", allow_other=False, want_passthrough=True,
        want_data_plane=True, cache_directories=[directory],
    )  # fmt: skip


@pytest.mark.parametrize("privileged", [True, False])
async def test_only_root_asks_for_passthrough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, privileged: bool) -> None:
    session = session_on(tmp_path)
    session.privileged = privileged
    out = await asked_of_the_kernel(session, monkeypatch, 7, 38, *[0] * 10)
    assert bool(out[10] & FUSE_PASSTHROUGH_2) == bool(out[3] & FUSE_INIT_EXT) == bool(out[11]) == privileged


@pytest.mark.parametrize(("max_write", "max_pages"), [(4 << 20, 1024), (1 << 20, 256), (128 << 10, 32)])
async def test_no_request_is_larger_than_the_lanes_have_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_write: int, max_pages: int
) -> None:
    """Some libfuse asks for as much as the administrator has allowed."""
    said = (7, 38, 0, 0, 0, 0, max_write, 1, max_pages, 0, 0, 0)
    out = await asked_of_the_kernel(session_on(tmp_path), monkeypatch, *said)
    most_pages = (1 << 20) // os.sysconf("SC_PAGESIZE")
    assert (out[6], out[8]) == (min(max_write, 1 << 20), min(max_pages, most_pages))
