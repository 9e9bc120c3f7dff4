"""The sampler for PyTorch. It is one by its behaviour: torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from luxfuse.training.teller import Path, Teller, window_of
from luxfuse.training.telling import PathsOf, files_of, hand_out


class Sampler(Protocol):
    """A sampler of PyTorch, or a batch sampler, or anything like them."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the numbers of samples, or lists of such."""

    def __len__(self) -> int:
        """How many those are."""


class ScheduledSampler:
    """Yields what another sampler does, and tells the mount some thousand files ahead.

    Wrap any sampler (``DataLoader(..., sampler=)``), a ``DistributedSampler`` too: each process tells the mount of its own
    node its own share. Or a batch sampler (``batch_sampler=``). It works with worker processes, also persistent ones, and
    with several epochs; ``set_epoch`` and all else is passed on to the sampler inside. Samples are handed out ahead of
    the workers, so what they have not opened yet is kept too, as much again as is fetched ahead.
    """

    def __init__(self, sampler: Sampler, paths: PathsOf, *, window_bytes: int | None = None) -> None:
        """``paths``: of sample ``i``, the file ``paths[i]``, or those that ``paths(i)`` returns.

        ``window_bytes`` bounds how much is fetched ahead; without it, a quarter of the cache, at most 1 GiB, shared by all
        that tell it something. Raises TypeError, ValueError.
        """
        self.sampler = sampler
        self._files = files_of(paths)
        self._window_bytes = window_of(window_bytes)

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch."""
        return hand_out(Teller(iter(self.sampler), self._files_of, self._window_bytes))

    def _files_of(self, sample: Any) -> Sequence[Path]:
        if isinstance(sample, list | tuple):
            return list(chain.from_iterable(self._files(number) for number in sample))
        return self._files(sample)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        """Pass on ``set_epoch``, ``batch_size`` and the like."""
        if name == "sampler":  # not set yet, as in a copy that is being made
            raise AttributeError(name)
        return getattr(self.sampler, name)
