"""A reload is all or nothing."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from luxfuse.configuration.building import build
from luxfuse.daemon import reload
from luxfuse.errors import ConfigError

FLAGS = {"source": "s3://b", "mountpoint": "/m", "cache_dir": ["/c"]}


class Store:
    renewable = True

    def __init__(self) -> None:
        self.renewed: list[Any] = []

    async def renew(self, options: Any) -> bool:
        self.renewed.append(options)
        return True


async def test_secrets_stay_if_a_cache_directory_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    old = build({**FLAGS, "storage_options": {"key": "a", "secret": "b"}}, {})
    new = build({**FLAGS, "cache_dir": ["/c", "/new"], "storage_options": {"key": "other", "secret": "b"}}, {})
    old, new = (structs.replace(each, config_file="/f.toml", given={}) for each in (old, new))
    monkeypatch.setattr(reload.building, "read_again", lambda _old: new)
    monkeypatch.setattr(reload, "_check_places", lambda _new: None)

    @asynccontextmanager
    async def changed_to(_wanted: Any) -> Any:
        raise ConfigError("--cache-dir /new: Read-only file system")
        yield

    async def apply(_wanted: Any) -> None:
        raise ConfigError("--cache-dir /new: Read-only file system")

    store = Store()
    parts: Any = SimpleNamespace(store=store, directories=SimpleNamespace(changed_to=changed_to, apply=apply))
    running: Any = SimpleNamespace(settings=old, parts=parts, stores=lambda: [store], succession=None)
    with pytest.raises(ConfigError, match="Read-only"):
        await reload.Reloader(running).reload()
    assert store.renewed == []
    assert running.settings is old
