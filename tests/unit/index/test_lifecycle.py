from __future__ import annotations

from pathlib import Path

import pytest

from luxfuse.index import lifecycle
from luxfuse.index.store import IndexStore


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(lifecycle, "BOOT_ID", path)
    return path


async def begin(path: Path, identity: str = "cache") -> tuple[IndexStore, lifecycle.Beginning]:
    store = IndexStore(path / "i")
    return store, await lifecycle.begin(store, identity)


async def end(store: IndexStore, *, clean: bool = True) -> None:
    if clean:
        await lifecycle.end(store)
    store.close()


async def test_the_first_run_has_nothing_to_verify_and_no_cache_of_ours(tmp_path: Path, boot: Path) -> None:
    store, beginning = await begin(tmp_path)
    assert beginning == lifecycle.Beginning(epoch=1, clean=True, same_cache=False)
    await end(store)


async def test_the_epoch_rises_after_unclean_stops_only(tmp_path: Path, boot: Path) -> None:
    epochs = []
    for clean in (True, True, False, True, False, False, True):
        store, beginning = await begin(tmp_path)
        epochs.append((beginning.epoch, beginning.clean))
        assert beginning.same_cache == (len(epochs) > 1)
        await end(store, clean=clean)
    assert epochs == [(1, True), (1, True), (1, True), (2, False), (2, True), (3, False), (4, False)]


async def test_a_restart_of_the_machine_counts_as_unclean(tmp_path: Path, boot: Path) -> None:
    store, first = await begin(tmp_path)
    await end(store)
    boot.write_text("second\n")
    store, second = await begin(tmp_path)
    assert (second.epoch, second.clean) == (first.epoch + 1, False)
    await end(store)


async def test_another_cache_directory_is_noticed(tmp_path: Path, boot: Path) -> None:
    store, _ = await begin(tmp_path, "one")
    await end(store)
    store, other = await begin(tmp_path, "two")
    assert not other.same_cache
    await end(store)
    store, again = await begin(tmp_path, "two")
    assert again.same_cache
    await end(store)
