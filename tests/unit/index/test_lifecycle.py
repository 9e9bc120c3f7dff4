from __future__ import annotations

from pathlib import Path

import pytest

from luxfuse.errors import ConfigError
from luxfuse.index import lifecycle
from luxfuse.index.object_records import DIRECTORIES
from luxfuse.index.store import IndexStore


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(lifecycle, "BOOT_ID", path)
    return path


async def begin(path: Path) -> tuple[IndexStore, lifecycle.Beginning]:
    store = IndexStore(path / "i")
    return store, await lifecycle.begin(store)


async def end(store: IndexStore, *, clean: bool = True) -> None:
    if clean:
        await lifecycle.end(store)
    store.close()


async def test_the_first_run_has_nothing_to_verify(tmp_path: Path, boot: Path) -> None:
    store, beginning = await begin(tmp_path)
    assert beginning == lifecycle.Beginning(epoch=1, clean=True)
    await end(store)


async def test_the_epoch_rises_after_unclean_stops_only(tmp_path: Path, boot: Path) -> None:
    epochs = []
    for clean in (True, True, False, True, False, False, True):
        store, beginning = await begin(tmp_path)
        epochs.append((beginning.epoch, beginning.clean))
        await end(store, clean=clean)
    assert epochs == [(1, True), (1, True), (1, True), (2, False), (2, True), (3, False), (4, False)]


async def test_a_restart_of_the_machine_counts_as_unclean(tmp_path: Path, boot: Path) -> None:
    store, first = await begin(tmp_path)
    await end(store)
    boot.write_text("second\n")
    store, second = await begin(tmp_path)
    assert (second.epoch, second.clean) == (first.epoch + 1, False)
    await end(store)


async def test_directories_keep_their_numbers_while_they_are_away(tmp_path: Path, boot: Path) -> None:
    def numbers(store: IndexStore, *directories: tuple[str, str]) -> list[lifecycle.Known]:
        found: list[lifecycle.Known] = []
        for path, identity in directories:
            found.append(lifecycle.number_of(store, path, identity, {known.number for known in found}))
        return found

    store, _ = await begin(tmp_path)
    one, two = numbers(store, ("/a", "one"), ("/b", "two"))
    assert (one.same, two.same) == (False, False)
    assert one.number != two.number
    await end(store)
    store, _ = await begin(tmp_path)
    assert numbers(store, ("/elsewhere", "two")) == [lifecycle.Known(two.number, same=True)], "it has moved"
    assert numbers(store, ("/b", "two"), ("/c", "three"))[1].number not in (one.number, two.number)
    assert numbers(store, ("/a", "anew")) == [lifecycle.Known(one.number, same=False)], "what was there is lost"
    assert numbers(store, ("/a", "anew")) == [lifecycle.Known(one.number, same=True)]
    for number in range(2 * DIRECTORIES):
        assert not numbers(store, (f"/n{number}", f"n{number}"))[0].same
    with pytest.raises(ConfigError, match="more than"):
        lifecycle.number_of(store, "/x", "x", range(DIRECTORIES))
    await end(store)
