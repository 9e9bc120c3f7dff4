"""The environment variables of this process, which one library takes its settings from and others must not see changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_turn = threading.Lock()


def variables() -> dict[str, str]:
    """Return the variables as they are outside of `changed`."""
    with _turn:
        return dict(os.environ)


@contextmanager
def changed(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Give variables other values (None: take them away) while the block builds something that reads them."""
    with _turn:
        before = {name: os.environ.get(name) for name in changes}
        wanted = {name: value for name, value in changes.items() if before[name] != value}
        _set(wanted)
        try:
            yield
        finally:
            _set({name: before[name] for name in wanted})


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
