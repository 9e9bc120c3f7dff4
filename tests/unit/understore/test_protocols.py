"""Plain HTTP to a port of HTTPS, and the reverse: what the mount says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from luxfuse.configuration.building import build
from luxfuse.errors import AccessDenied, MountError, StoreUnavailable
from luxfuse.understore.factory import open_driver
from luxfuse.understore.protocols import scheme_fault
from luxfuse.understore.retrying import Store
from luxfuse.volume import store_opening
from tests.support.front import Answer, certificate_authority, front

KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "s3-obstore": ("s3://bucket", "obstore", {"key": "k", "secret": "s"}),
    "s3-fsspec": ("s3://bucket", "fsspec", {"key": "k", "secret": "s"}),
    "gs-fsspec": ("gs://bucket", "fsspec", {"token": "anon"}),
    "az-obstore": ("az://bucket", "obstore", {"account_name": "a", "account_key": "a2V5"}),
    "az-fsspec": ("az://bucket", "fsspec", {"account_name": "a", "account_key": "a2V5"}),
    "webdav": ("webdav://x", "fsspec", {}),
}
SAID = {
    "http": "the server speaks HTTPS: write https:// in the endpoint URL",
    "https": "the server speaks no HTTPS: write http:// in the endpoint URL",
}


@pytest.fixture(params=["http", "https"])
def wrong(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a server that speaks the other one."""
    certificate = certificate_authority(tmp_path, "right").server if request.param == "http" else None
    with front("http://127.0.0.1:9", lambda _request: Answer(200), certificate) as url:
        yield f"{request.param}://{url.partition('://')[2]}"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_mount_says_which_one_is_spoken(kind: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_opening, "PROBE_DEADLINE_S", 1.5)
    source, driver, options = KINDS[kind]
    opened = open_driver(source, endpoint_url=wrong, driver=driver, request_timeout_s=5.0, storage_options=options)
    store = Store(opened, request_timeout_s=30, max_requests=4, rng=random.Random(1))
    settings = build({"source": source, "mountpoint": "/mnt", "endpoint_url": wrong}, environ={})
    try:
        failed = await store_opening.prove(store, settings)
    except MountError as exc:
        failed = exc
    assert SAID[wrong.partition(":")[0]] in str(failed)
    assert "\n" not in str(failed)
    store.close()


@pytest.mark.parametrize("kind", ["gs-fsspec", "az-fsspec", "s3-fsspec"])
def test_a_failing_handshake_is_no_refusal(kind: str, wrong: str) -> None:
    source, driver, options = KINDS[kind]
    store = open_driver(source, endpoint_url=wrong, driver=driver, request_timeout_s=5.0, storage_options=options)
    with pytest.raises(StoreUnavailable) as caught:
        store.probe()
    assert not isinstance(caught.value, AccessDenied)
    store.close()


def test_nothing_is_said_where_all_is_right_or_nobody_answers(tmp_path: Path) -> None:
    for certificate in (None, certificate_authority(tmp_path, "right").server):
        with front("http://127.0.0.1:9", lambda _request: Answer(200), certificate) as url:
            assert scheme_fault(url) is None
    assert scheme_fault(url) is None
    assert scheme_fault("http://127.0.0.1:9") is None
