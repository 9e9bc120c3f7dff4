"""Files of a test, as bytes that are made when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tests.support.mounted import content


class Contents(Mapping[str, bytes]):
    """By name, of a seed and a size each. A module may hold megabytes in this form only: all processes import it."""

    def __init__(self, files: Mapping[str, tuple[object, int]]) -> None:
        self._files = dict(files)

    def __getitem__(self, name: str) -> bytes:
        return content(*self._files[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def size(self) -> int:
        """Bytes of all together."""
        return sum(size for _, size in self._files.values())
