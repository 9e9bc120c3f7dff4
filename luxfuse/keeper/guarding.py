"""Where a daemon cannot have a successor: takes its mount away when it dies."""

from __future__ import annotations

import os

from luxfuse.keeper.device import take_away
from luxfuse.keeper.process import status_text
from luxfuse.keeper.starting import Starter, exit_code


class Guard(Starter):
    """One mount of a plain user, or on a kernel that does not send requests again."""

    def run(self) -> int:
        """Wait for the mount's end; returns the exit code."""
        self.listen()
        self.start()
        status = self.await_end()
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return 0
        if self.link.mounted:
            died = f"the daemon died ({status_text(status)}), and its mount"
            try:
                if take_away(self.mountpoint, self.link.mounted):
                    self.log.say(f"{died} is taken away: mount again")
            except OSError as exc:
                self.log.say(f"{died} is left behind: {exc}")
        return exit_code(status)
