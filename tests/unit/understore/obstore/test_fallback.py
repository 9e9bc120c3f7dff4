"""The driver for what obstore cannot do: that there is none is another thing than that it fails."""

from __future__ import annotations

import pytest
from obstore.store import MemoryStore

from luxfuse.errors import StoreRejected
from luxfuse.understore.factory import open_driver
from luxfuse.understore.obstore.driver import ObstoreDriver


@pytest.mark.parametrize("is_there", [False, True])
def test_an_azure_directory_is_missing_only_if_nobody_fails_to_say_so(monkeypatch, is_there):
    driver = open_driver("az://c/p", storage_options={"account_name": "a", "account_key": "a2V5"}, driver="obstore")
    now = driver._now.driver  # type: ignore[attr-defined]
    assert isinstance(now, ObstoreDriver)
    now._store = MemoryStore()

    class Rejecting:
        def has_prefix(self, prefix: str) -> bool:
            raise StoreRejected("409 Conflict")

        def close(self) -> None:
            pass

    def fallback() -> object:
        if not is_there:
            raise StoreRejected("adlfs is not installed")
        return Rejecting()

    monkeypatch.setattr(now, "_open_fallback", fallback)
    if is_there:
        with pytest.raises(StoreRejected, match="409"):
            driver.has_prefix("d/")
    else:
        assert driver.has_prefix("d/") is False
    driver.close()
