"""One answer of the store for all that ask while it is on its way."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from luxfuse.errors import LuxError, StoreError, Unforeseen
from luxfuse.vfs.errors import NotRecorded

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class SharedAnswer(Generic[T]):
    """A question that is under way; after ``done`` the answer, or the error that all callers get."""

    began_s: float
    done: trio.Event = field(default_factory=trio.Event)
    answer: T | None = None
    error: Exception | None = None

    async def wait(self) -> T | None:
        """Wait for the answer. Raises the error."""
        await self.done.wait()
        if self.error is not None:
            raise self.error
        return self.answer

    async def get(self, ask: Callable[[], Awaitable[T]], doing: str, subject: str, asked: str) -> None:
        """Ask, in a task of its own. An error is not raised here.

        ``doing`` the ``subject``, and ``asked``, which says that this was done: for messages.
        """
        self.error = StoreError("the daemon is stopping")
        try:
            self.answer = await ask()
            self.error = None
        except LuxError as exc:
            self.error = exc
        except OSError as exc:
            self.error = NotRecorded(f"{asked}, but cannot be recorded: {exc}")
        except Exception as exc:
            log.exception("%s %s failed in an unexpected way", doing, subject)
            self.error = Unforeseen(f"internal error while {doing}: {type(exc).__name__}")
        finally:
            self.done.set()
