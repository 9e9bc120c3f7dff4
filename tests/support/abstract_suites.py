"""fsspec's own suites for file systems, for ``lux://`` at any place: ``class TestX(Suites)`` with a fixture ``fs_path``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fsspec.tests import abstract

from luxfuse.lux import LuxFileSystem


class Suites(
    abstract.AbstractCopyTests,
    abstract.AbstractGetTests,
    abstract.AbstractPutTests,
    abstract.AbstractOpenTests,
    abstract.AbstractPipeTests,
    abstract.AbstractFixtures,
):
    """All of them."""

    @pytest.fixture
    def fs(self) -> LuxFileSystem:
        """The file system."""
        return LuxFileSystem(skip_instance_cache=True)

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        """How paths are joined."""
        return lambda *parts: "/".join(str(part).rstrip("/") for part in parts[:-1]) + f"/{parts[-1]}"
