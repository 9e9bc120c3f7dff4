"""Names for the steps of changes that take several, so that tests can stop the daemon between any two of them.

A step is named where it has just been made. Outside of tests naming one costs a call and does nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

DIE_AT = "LUXFUSE_DIE_AT"
"""The environment variable with the name of the step at which the process kills itself; "": the file says it."""


DIE_ONCE = "LUXFUSE_DIE_ONCE"
"""That with a file that is removed when it does; without the file it does not."""


def _die(step: str) -> None:
    at, once = os.environ.get(DIE_AT), os.environ.get(DIE_ONCE)
    try:
        if not at and once is not None:
            with open(once) as file:  # noqa: PTH123 (nothing is imported here that is not needed)
                at = file.read()
        if step != at:
            return
        if once is not None:
            os.unlink(once)  # noqa: PTH108 (as above)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


_hook: Callable[[str], None] | None = None


def reached(step: str) -> None:
    """Tell that a step was just made. May not return in a test."""
    if _hook is not None:
        _hook(step)


def install(hook: Callable[[str], None] | None) -> None:
    """Call ``hook`` with the name of each step from now on; None: nobody."""
    global _hook  # noqa: PLW0603 (one for the process, as the environment)
    _hook = hook


def heed_environment() -> None:
    """Die where the environment says; without a word of it nothing changes. Done here when this is imported."""
    if DIE_AT in os.environ:
        install(_die)


heed_environment()
