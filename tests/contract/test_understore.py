"""The under-store contract: one suite, run on the fake and on every driver against a real server. Reads."""

from __future__ import annotations

import contextlib
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from luxfuse.errors import AccessDenied, BucketMissing, NotFound, StoreError, StoreUnavailable, VersionChanged
from luxfuse.types import ListPage, ObjectInfo
from luxfuse.understore.base import ListsFromKeys, UnderStore
from luxfuse.understore.factory import open_driver
from tests.support.ports import free_port
from tests.support.servers_files import file_servers  # noqa: F401
from tests.support.servers_store import (  # noqa: F401
    AZURITE_ACCOUNT,
    AZURITE_KEY,
    MOTO_PAGE,
    azurite_url,
    ceph_rgw,
    hadoop,
    moto_url,
    nginx_files,
    strict_moto_url,
    swift,
)
from tests.support.store_targets import (  # noqa: F401
    ON_REQUEST,
    SECRET,
    TARGETS,
    Target,
    fast_server,
    names_for,
    open_target,
    s3_target,
)

PAGES = 3
"""Pages of the long listing: a first, one in the middle, a last."""

ODD_KEYS = ["e//f", "w/../q", "w/./r", "/lead", "trailing//"]
FILE_KEYS = ["sp ace/a b", "a%b", "p%20q", "a#b", "a?b", "plus+plus", "é ü/ñ", "日本", "quo'\"", "~", "a&b=c", "a;b"]


@pytest.fixture(params=[*TARGETS, *ON_REQUEST])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every store in turn, each test with a bucket or directory of its own."""
    yield from open_target(request, request.param)


@pytest.fixture
def store(target: Target) -> Iterator[UnderStore]:
    driver = target.open()
    yield driver
    driver.close()


def listing(store: UnderStore, prefix: str) -> tuple[list[str], list[str]] | None:
    """Return sorted keys and prefixes, or None where no page came."""
    return shown(store, list(store.list_directory(prefix)))


def shown(store: UnderStore, pages: list[ListPage]) -> tuple[list[str], list[str]] | None:
    if not pages:
        return None
    assert all(info.metadata is None for page in pages for info in page.objects) or store.driver == "http"
    return sorted(i.key for p in pages for i in p.objects), sorted(x for p in pages for x in p.prefixes)


def test_listing_shows_one_level(target: Target, store: UnderStore):
    for key in ["top", "d/x", "d/y/z", "d/y/w", "dd/v"]:
        target.put(key, key.encode())
    store.probe()
    assert listing(store, "") == (["top"], ["d/", "dd/"])
    assert listing(store, "d/") == (["d/x"], ["d/y/"])
    assert listing(store, "d/y/") == (["d/y/w", "d/y/z"], [])


def test_a_listing_from_any_key_on_agrees_with_the_whole_one(target: Target, store: UnderStore):
    with contextlib.suppress(StoreError):
        store.head("none/")  # obstore leaves this to the driver that lists from keys
    if not store.abilities.start_after:
        pytest.skip("the store is listed from the start only")
    odd = ODD_KEYS if "odd keys" in target.features else []
    odd = [key for key in odd if "no dots" not in target.features or "./" not in key]
    for key in [*FILE_KEYS, *odd, "d/x", "d/y/z", "d/y/w", "d/y-", "d/y0", "d/"]:
        target.put(key, key.encode())
    paged = cast(ListsFromKeys, store)
    for prefix in ("", "d/", "e/", "none/"):
        whole = listing(store, prefix)
        part = paged.list_page(prefix)
        assert not part.token
        assert part.exists or whole is None or not prefix
        found = sorted(info.key for info in part.page.objects), sorted(part.page.prefixes)
        assert found == (whole or ([], []))
        versions = {info.key: info for page in store.list_directory(prefix) for info in page.objects}
        assert {info.key: info for info in part.page.objects} == versions
        for name in found[0] + found[1]:
            after = prefix + name[len(prefix) :].rstrip("/")
            later = paged.list_page(prefix, after).page
            assert sorted(info.key for info in later.objects) == [key for key in found[0] if key > after]
            assert sorted(later.prefixes) == [other for other in found[1] if other > after]


def test_head_read_and_listing_agree(target: Target, store: UnderStore):
    target.put("d/x", b"0123456789")
    (page,) = [page for page in store.list_directory("d/") if page.objects]
    (listed,) = page.objects
    info = store.head("d/x")
    assert (listed.key, listed.size, listed.version) == (info.key, info.size, info.version) == ("d/x", 10, info.version)
    assert abs(listed.mtime_ns - info.mtime_ns) < 10**9
    assert info.mtime_ns > 10**18
    assert bytes(store.read("d/x", 0, 10, listed.version)) == b"0123456789"
    if "metadata" in target.features:
        assert info.metadata is not None
        assert info.metadata["mode"] == "33188"
        assert not any(name.lower() == "content-type" for name in info.metadata)


def test_a_read_describes_the_object_as_head_does(target: Target, store: UnderStore):
    target.put("x", b"0123456789")
    info = store.head("x")
    for start, end in ((0, 10), (3, 7)):
        told: list[ObjectInfo] = []
        store.read("x", start, end, info.version, on_described=told.append)
        if "metadata" in target.features and target.name != "fsspec-gs":  # whose client hides them
            assert told == [info]
        else:
            assert told in ([], [info])


def test_ranges_are_exact(target: Target, store: UnderStore):
    target.put("x", b"0123456789")
    version = store.head("x").version
    for start, end in ((0, 1), (0, 10), (9, 10), (3, 7), (0, 0), (10, 10)):
        assert (start, end, bytes(store.read("x", start, end, version))) == (start, end, b"0123456789"[start:end])


def test_empty_object(target: Target, store: UnderStore):
    target.put("d/empty", b"")
    info = store.head("d/empty")
    assert info.size == 0
    assert bytes(store.read("d/empty", 0, 0, info.version)) == b""
    assert listing(store, "d/") == (["d/empty"], [])


def test_range_past_the_end_is_no_success(target: Target, store: UnderStore):
    target.put("x", b"0123456789")
    version = store.head("x").version
    with pytest.raises((StoreUnavailable, VersionChanged)):
        store.read("x", 5, 20, version)
    with pytest.raises((StoreUnavailable, VersionChanged)):
        store.read("x", 20, 25, version)


def test_changed_version(target: Target, store: UnderStore):
    target.put("x", b"old content")
    version = store.head("x").version
    target.put("x", b"new content, longer")
    with pytest.raises(VersionChanged):
        store.read("x", 0, 4, version)
    new = store.head("x").version
    assert new != version
    assert bytes(store.read("x", 0, 3, new)) == b"new"


def test_gone_object(target: Target, store: UnderStore):
    target.put("d/x", b"data")
    target.put("d/stays", b"data")
    version = store.head("d/x").version
    target.delete("d/x")
    with pytest.raises(NotFound):
        store.head("d/x")
    with pytest.raises(NotFound):
        store.read("d/x", 0, 4, version)
    assert listing(store, "d/") == (["d/stays"], [])


def test_missing_names(target: Target, store: UnderStore):
    target.put("d/x", b"data")
    for key in ["nope", "d/nope", "d", "nope/deeper"]:
        with pytest.raises(NotFound) as caught:
            store.head(key)
        assert not isinstance(caught.value, BucketMissing)
    assert listing(store, "nope/") is None
    assert listing(store, "d/x/") is None
    assert not store.has_prefix("nope/")
    assert not store.has_prefix("d/x/")
    assert store.has_prefix("d/")


def test_empty_root(store: UnderStore):
    assert listing(store, "") == ([], [])
    store.probe()


def test_empty_directory_is_not_a_missing_one(target: Target, store: UnderStore):
    target.put("empty/", b"")
    target.put("full/", b"")
    target.put("full/x", b"data")
    assert listing(store, "") == ([], ["empty/", "full/"])
    assert listing(store, "empty/") == ([], [])
    assert listing(store, "full/") == (["full/x"], [])
    assert store.has_prefix("empty/")


def test_keys_that_look_like_syntax(target: Target, store: UnderStore):
    keys = names_for(target, FILE_KEYS)
    for key in keys:
        target.put(key, key.encode())
    plain = sorted(key for key in keys if "/" not in key)
    assert listing(store, "") == (plain, sorted({key.partition("/")[0] + "/" for key in keys if "/" in key}))
    assert listing(store, "é ü/") == (["é ü/ñ"], [])
    for key in keys:
        info = store.head(key)
        assert bytes(store.read(key, 0, info.size, info.version)) == key.encode()


def test_keys_that_no_file_can_have(target: Target, store: UnderStore):
    if "odd keys" not in target.features:
        pytest.skip("a file system has no such names")
    keys = [key for key in ODD_KEYS if "no dots" not in target.features or "./" not in key]
    if "newlines" in target.features or target.name == "fake":
        keys.append("new\nline")
    for key in [*keys, "plain", "e/x"]:
        target.put(key, key.encode())
    found = listing(store, "")
    assert found is not None
    assert "plain" in found[0]
    assert {"e/", "/"} <= set(found[1])
    assert listing(store, "e/") == (["e/x"], ["e//"])
    assert listing(store, "e//") == (["e//f"], [])
    assert listing(store, "/") == (["/lead"], [])
    assert store.has_prefix("e/")
    assert store.has_prefix("e//")
    for key in keys:
        info = store.head(key)
        assert bytes(store.read(key, 0, info.size, info.version)) == key.encode()


def test_slashes_are_not_stripped_off_keys(target: Target, store: UnderStore):
    target.put("x", b"the one without")
    version = store.head("x").version
    for key in ("/x", "x/"):
        with pytest.raises(NotFound):
            store.head(key)
        with pytest.raises((NotFound, VersionChanged)):
            store.read(key, 0, 3, version)


@pytest.fixture(scope="module")
def filled() -> dict[str, str]:
    """Sources that already hold the long directory, by server: filling one takes seconds."""
    return {}


def test_long_listing_is_complete_and_without_repeats(target: Target, filled: dict[str, str]):
    slow = dict.fromkeys(("http", "sftp", "ftp"), 200) | dict.fromkeys(("webdav", "hdfs", "webhdfs"), 40)
    slow |= dict.fromkeys(("fsspec-gs", "obstore-gs"), 40)
    slow |= dict.fromkeys(("obstore-swift", "fsspec-swift"), 100)
    page = {**slow, "obstore-s3": MOTO_PAGE, "fsspec-s3": MOTO_PAGE}.get(target.name, 1000)
    pages = 2 if target.name.endswith("-az") else PAGES  # it is slow to fill
    many = (pages - 1) * page + 10
    names = [f"many/{number:05d}" for number in range(many - 3)]
    names += ["many/sub1/x", "many/sub2/x", "many/sub3/x"]
    server = target.endpoint or target.source.partition("://")[0]
    if server not in filled or target.name in ("fake", "http"):
        with ThreadPoolExecutor(8 if target.endpoint else 1) as pool:
            list(pool.map(lambda key: target.put(key, b"x"), names))
        filled[server] = target.source
    store = target.open(source=filled[server])
    pages = patiently_listed(store, "many/")
    assert shown(store, pages) == (names[:-3], ["many/sub1/", "many/sub2/", "many/sub3/"])
    assert max(len(page.objects) + len(page.prefixes) for page in pages) <= 1000
    store.close()


def patiently_listed(store: UnderStore, prefix: str) -> list[ListPage]:
    """List as luxfuse does, which asks again: a server may be silent for longer than a driver waits, on a busy machine."""
    for _ in range(20):
        with contextlib.suppress(StoreUnavailable):
            return list(store.list_directory(prefix))
    return list(store.list_directory(prefix))


def test_marker_of_the_root_itself(request: pytest.FixtureRequest):
    for driver in ("obstore", "fsspec"):
        target = s3_target(request, driver, "pre/fix/")
        target.put("", b"")
        target.put("x", b"data")
        store = target.open()
        assert listing(store, "") == (["x"], [])
        store.close()


def test_many_threads_at_once(target: Target, store: UnderStore):
    for number in range(8):
        target.put(f"t/{number}", bytes([number]) * 1000)
    versions = {info.key: info.version for page in store.list_directory("t/") for info in page.objects}

    def check(number: int) -> None:
        key = f"t/{number % 8}"
        assert bytes(store.read(key, 10, 20, versions[key])) == bytes([number % 8]) * 10

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(40)))


def read_by_threads(store: UnderStore, key: str, version: str, data: bytes) -> None:
    """Read all of an object by eight threads at once, a MiB each time."""
    mib = 1 << 20

    def check(start: int) -> None:
        assert store.read(key, start, min(start + mib, len(data)), version) == data[start : start + mib]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(0, len(data), mib)))


def test_large_object_by_many_threads(target: Target, store: UnderStore):
    data = random.Random(1).randbytes((4 << 20) + 5 if target.name.endswith("-s3") else (12 << 20) + 5)
    target.put("d/large", data)
    version = store.head("d/large").version
    read_by_threads(store, "d/large", version, data)
    if target.restart is not None:  # all connections are dead then
        target.restart()
        read_by_threads(store, "d/large", version, data)
        target.restart()
        assert listing(store, "") == ([], ["d/"])
        target.restart()
        assert store.head("d/large").version == version


def assert_clean(error: StoreError) -> None:
    """One line, and no secret in it or in what a traceback would show."""
    assert "\n" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__
    text = str(error).replace("SignatureDoesNotMatch", "")  # S3's word for a wrong secret
    for secret in (SECRET, AZURITE_KEY, "Signature", "sig=", "<Error>"):
        assert secret not in text


def test_missing_bucket(target: Target):
    if "buckets" in target.features:
        scheme = target.source.partition("://")[0]
        source = f"{scheme}://no-such-{uuid.uuid4().hex[:8]}"
    elif target.name in ("local", "http", "memory", "sftp", "webdav", "hdfs", "webhdfs"):
        source = f"{target.source}/missing"
    else:
        pytest.skip("has no bucket")
    driver = target.open(source=source)
    for request in (driver.probe, lambda: list(driver.list_directory(""))):
        with pytest.raises(BucketMissing) as caught:
            request()
        assert_clean(caught.value)
    with pytest.raises(NotFound):
        driver.head("x")
    driver.close()


def test_bad_credentials(target: Target):
    if "credentials" not in target.features:
        pytest.skip("checks no credentials")
    target.put("x", b"data")
    for option in ("account_key",) if target.name.endswith("az") else ("key", "secret"):
        right = target.options[option]
        wrong = right[:10] + "Z" + right[11:]
        driver = target.open(storage_options={**target.options, option: wrong})
        requests = (driver.probe, lambda d=driver: list(d.list_directory("")), lambda d=driver: d.head("x"),
                    lambda d=driver: d.read("x", 0, 1, '"v"'))  # fmt: skip
        for request in requests:
            with pytest.raises(AccessDenied) as caught:
                request()
            assert_clean(caught.value)
            assert right not in str(caught.value)
            assert wrong not in str(caught.value)
            assert option in str(caught.value)
        driver.close()


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_unknown_s3_key(strict_moto_url: str, driver: str):  # noqa: F811
    store = open_driver("s3://bucket", endpoint_url=strict_moto_url, driver=driver,
                        storage_options={"key": "AKIAUNKNOWN", "secret": SECRET})  # fmt: skip
    requests = (store.probe, lambda: list(store.list_directory("")), lambda: store.head("x"),
                lambda: store.read("x", 0, 1, '"v"'))  # fmt: skip
    for request in requests:
        with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID") as caught:
            request()
        assert_clean(caught.value)
    store.close()


def test_sas_token_is_not_shown(target: Target):
    if not target.name.endswith("az"):
        pytest.skip("has no such tokens")
    token = "sv=2022-11-02&ss=b&srt=sco&sp=rl&se=2030-01-01T00:00:00Z&sig=c2lnbmF0dXJl"
    driver = target.open(storage_options={"account_name": AZURITE_ACCOUNT, "sas_token": token})
    with pytest.raises(AccessDenied) as caught:
        driver.probe()
    assert_clean(caught.value)
    assert "c2lnbmF0dXJl" not in str(caught.value)
    driver.close()


def test_unreachable(target: Target):
    port = free_port()
    if "endpoint" in target.features:
        account = f"/{AZURITE_ACCOUNT}" if target.name.endswith("az") else ""
        driver = target.open(endpoint_url=f"http://127.0.0.1:{port}{account}")
    elif target.name == "http":
        driver = target.open(source=f"http://user:pa55word@127.0.0.1:{port}/files")
    else:
        pytest.skip("has no network")
    requests = (driver.probe, lambda: list(driver.list_directory("d/")), lambda: driver.head("x"),
                lambda: driver.read("x", 0, 1, '"v"'))  # fmt: skip
    for request in requests:
        with pytest.raises(StoreUnavailable) as caught:
            request()
        assert_clean(caught.value)
        assert "pa55word" not in str(caught.value)
    driver.close()
