"""The keeper of a mount: holds the FUSE device, and starts the daemon again when it dies. A program of its own.

It imports nothing else of luxfuse and little else, so that it stays small and has nothing that can fail: a connection lives
as long as somebody has the device open. What the next daemon must know of the last one is in the estate (`luxfuse.estate`),
memory in a file without a name, which the keeper makes and does not look into but for two words.

    python -I -S __main__.py READY_FD STATE_FILE MOST MOUNTPOINT LOG COMMAND...   settings on stdin

COMMAND is the daemon's, to which ``--ready-fd``, ``--device-fd``, ``--estate-fd``, ``--keeper-fd`` and, for each that
is held for it, ``--held FD=NAME`` are added; it finds the settings on its stdin each time. By ``--keeper-fd``, a
socket, it says what is to be held for the next one (`luxfuse.lasting`): ``hold NAME`` with a descriptor, until ``drop
NAME``. stdout and stderr go to the file LOG, which is opened anew for each line and each daemon: the one before may
have been moved away. Where there is nothing to keep (MOST is 0, there is no device, or another keeper of this
mountpoint) it is a *guard*: it takes the mount of a daemon that died away.

A daemon that dies before it served ends the keeper with its exit code; one that ends with 0 has unmounted. Any other end is
a death, and the next daemon is started: at once, but after pauses that double, up to `PAUSE_MOST_S`, where the last one has
not served for `STEADY_S`. After MOST of these in a row the keeper gives up: it answers every request with EIO, so that
nobody hangs, until the mount is taken away, and says so in STATE_FILE.

SIGTERM, SIGINT and SIGHUP are passed on. A daemon that dies when it was told to end has a successor, too, which is told
in its turn, so that the mount ends in good order; if that one dies as well, or does not serve within `TOLD_PATIENCE_S`, the
keeper takes the mount away and ends. A successor begins with these signals blocked, and sees to them once it serves.
If the keeper dies, the daemon serves on, and has no successor.

A daemon that says by ``--keeper-fd`` that it is stuck is killed, unless others were just before (`luxfuse.keeper.ending`).

A daemon that was killed cannot end while it waits for a lock of the kernel whose holder waits for an answer to a request:
that comes from its successor, which is started though the process is still there, if it waits for nothing but FUSE. Where
it waits for a disk, its writes might come behind those of a successor.

In the foreground, where LOG is empty, systemd keeps what the keeper holds as well (`luxfuse.keeper.systemd`): so another
keeper goes on where this one dies, and nobody takes locks and ports in between.

A daemon that says by ``--keeper-fd`` which commands are to go on, those of another luxfuse, and then ends with
`HANDED_OVER`, did not die. This process becomes the keeper of that luxfuse, with all that it holds
(`luxfuse.keeper.handing`), and that starts its daemon; where this one dies before it serves, or twice in a row within
`STEADY_S`, the daemon's command of before is run again. With ``--try`` as the only argument a keeper does nothing. Keepers
of other versions give these arguments, so they must go on to be understood.
"""

from __future__ import annotations

import struct

REQUEST_BYTES = (1 << 20) + (64 << 10)
RESEND = struct.pack("=IiQ", 16, 7, 0)
"""struct fuse_out_header with FUSE_NOTIFY_RESEND: the kernel sends again what a dead daemon has taken."""
HANDED_OVER = 75
"""The exit code of a daemon that has left for one of another luxfuse."""
