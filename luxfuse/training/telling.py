"""The forms without torch: an iterator that tells as it goes, and a context in which any code may read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TypeVar

from luxfuse.core.units import shown
from luxfuse.training.teller import Path, Teller

S = TypeVar("S")
TELL_S = 0.05
"""How often a schedule that nobody goes through by us is brought up to date."""

PathsOf = Sequence[Path] | Callable[[int], Path | Sequence[Path]]
"""The path of each sample by its number, in the mount; or what returns it, or several where a sample has several files."""


def in_order(paths: Iterable[Path], *, window_bytes: int | None = None) -> Generator[Path, None, None]:
    """Yield ``paths`` one by one; those that follow are fetched meanwhile, and kept in the cache until they are opened.

    ``window_bytes`` bounds how much is fetched ahead; without it, a quarter of the cache, at most 1 GiB.
    """
    _refuse_one(paths)
    return hand_out(Teller(iter(paths), lambda path: (path,), window_bytes))


def _refuse_one(paths: object) -> None:
    """Raise TypeError if ``paths`` is a single one, whose letters would pass for paths."""
    if isinstance(paths, str | bytes | os.PathLike):
        raise TypeError(f"paths: {shown(paths)} is one path; give a list of them")


def hand_out(teller: Teller[S]) -> Generator[S, None, None]:
    """Yield the samples of a teller, which is closed at the end."""
    with closing(teller):
        while True:
            try:
                sample = teller.take()
            except StopIteration:
                return
            yield sample


@contextmanager
def told(paths: PathsOf, order: Iterable[int] | None = None, *, window_bytes: int | None = None) -> Iterator[None]:
    """Inside the block, ``paths`` will be opened in ``order``: numbers, of ``range`` or an array, say.

    Without it they are as they stand. Who opens them, and whether side by side, does not matter: the mount sees it. A
    thread tells the names a few thousand ahead, so an order may be as long as it likes. ``window_bytes``: see `in_order`.
    """
    files = files_of(paths)
    if order is None:
        if callable(paths):
            raise TypeError("order: is needed where paths is a function")
        order = range(len(paths))
    over = threading.Event()
    with closing(Teller(iter(order), files, window_bytes, handed=False)) as teller:
        teller.pump()
        thread = threading.Thread(target=_keep_telling, args=(teller, over), name="luxfuse-told", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _keep_telling(teller: Teller[int], over: threading.Event) -> None:
    try:
        while not over.wait(TELL_S) and not teller.done:
            teller.pump()
    except Exception:  # noqa: BLE001 (of what gives the paths, say: it is logged, and the block itself goes on)
        teller.failed()


def files_of(paths: PathsOf) -> Callable[[int], Sequence[Path]]:
    """Return what gives the files of a sample. Raises TypeError if ``paths`` cannot."""
    _refuse_one(paths)
    if not callable(paths):
        known = paths
        if not hasattr(known, "__getitem__") or not hasattr(known, "__len__"):
            raise TypeError(
                f"paths: of a {type(known).__name__} no path can be asked by its number; give a list, or a function"
            )

        def numbered(number: int) -> Sequence[Path]:
            try:
                return (known[number],)
            except (IndexError, KeyError) as exc:
                raise IndexError(f"paths: there are {len(known)}, none of them for sample {shown(number)}") from exc
            except TypeError as exc:
                raise TypeError(f"paths: {shown(number)} is no number of a sample") from exc

        return numbered
    given = paths

    def called(number: int) -> Sequence[Path]:
        found = given(number)
        return (found,) if isinstance(found, str) or not isinstance(found, Sequence) else found

    return called
