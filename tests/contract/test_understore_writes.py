"""The under-store contract: one suite, run on the fake and on every driver against a real server. Writes."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from luxfuse.cli.checkup.bucket import check_permissions
from luxfuse.errors import (
    AccessDenied,
    BucketMissing,
    NotFound,
    ReadOnlyStore,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    VersionChanged,
)
from luxfuse.types import ABSENT
from luxfuse.understore.base import MOST_DELETES, UnderStore
from luxfuse.understore.factory import open_driver
from luxfuse.understore.generic.writes import FsspecWrites
from tests.support.ports import free_port
from tests.support.servers_files import file_servers  # noqa: F401
from tests.support.servers_store import (  # noqa: F401
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
)

MIB = 1 << 20
PART = 5 * MIB
META = {"mode": "33188", "mtime": "1700000000.123456789", "uid": "1000"}
KEYS = ["sp ace/a b", "a%b", "p%20q", "a#b", "a?b", "plus+plus/+", "é ü/ñ", "日本", "quo'\"", "~", "a&b=c", "a;b",
        "x" * 255]  # fmt: skip
ODD_KEYS = ["e//f", "w/../q", "w/./r", "/lead"]


@pytest.fixture(params=[*(name for name in TARGETS if name != "http"), *ON_REQUEST])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every store in turn, each test with a bucket or directory of its own."""
    yield from open_target(request, request.param)


@pytest.fixture
def store(target: Target) -> Iterator[UnderStore]:
    driver = target.open()
    if target.name.endswith("-swift"):  # which has no conditions: that is found out by the first write that has one
        driver.put("x", b"", {}, expect=ABSENT)
        driver.delete(["x"])
        assert not driver.abilities.conditional
    yield driver
    driver.close()


def need(store: UnderStore, ability: str) -> None:
    if not getattr(store.abilities, ability):
        pytest.skip(f"the store is not able to: {ability}")


def on_moto(target: Target) -> bool:
    return target.name.endswith("-s3")


def content(store: UnderStore, key: str, version: str | None = None) -> bytes:
    """Read a whole object, of ``version`` if given."""
    info = store.head(key)
    return bytes(store.read(key, 0, info.size, version or info.version))


def everything(store: UnderStore, prefix: str = "") -> list[str]:
    pages = list(store.list_all(prefix))
    assert not any(page.prefixes for page in pages)
    assert all(page.objects for page in pages)
    keys = [info.key for page in pages for info in page.objects]
    assert len(keys) == len(set(keys))
    return sorted(keys)


def files(store: UnderStore, prefix: str = "") -> list[str]:
    return [key for key in everything(store, prefix) if not key.endswith("/")]


def listed_version(store: UnderStore, key: str) -> str:
    directory = key.rpartition("/")[0]
    pages = store.list_directory(f"{directory}/" if directory else "")
    (info,) = [info for page in pages for info in page.objects if info.key == key]
    return info.version


def test_put_is_what_head_list_and_read_see(store: UnderStore):
    for data in (b"", b"content", bytearray(b"array"), memoryview(b"0view!")[1:5], b"big" * MIB):
        key = f"d/{type(data).__name__}-{len(data)}.txt"
        info = store.put(key, data, META)
        assert (info.key, info.size) == (key, len(data))
        assert info.mtime_ns in (0, store.head(key).mtime_ns)
        found = store.head(key)
        assert found.version == info.version == listed_version(store, key)
        assert found.size == len(data)
        assert content(store, key, info.version) == bytes(data)
        if store.abilities.metadata:
            assert found.metadata == info.metadata == META


def test_overwriting_changes_the_version(store: UnderStore):
    first = store.put("x", b"one", {"a": "1"})
    second = store.put("x", b"two", {"b": "2"})
    assert first.version != second.version
    assert content(store, "x", second.version) == b"two"
    with pytest.raises(VersionChanged):
        store.read("x", 0, 3, first.version)
    if store.abilities.metadata:
        assert store.head("x").metadata == {"b": "2"}


def test_put_creates_only_what_is_absent(store: UnderStore):
    need(store, "conditional")
    first = store.put("d/x", b"one", {}, expect=ABSENT)
    with pytest.raises(VersionChanged):
        store.put("d/x", b"two", {}, expect=ABSENT)
    assert content(store, "d/x", first.version) == b"one"


def test_put_replaces_only_the_version_that_is_expected(store: UnderStore):
    need(store, "conditional")
    first = store.put("x", b"one", {})
    second = store.put("x", b"two!", {}, expect=first.version)
    if not store.abilities.conditional:
        pytest.skip("this server compares no versions when it puts, which was found out")
    with pytest.raises(VersionChanged):
        store.put("x", b"three", {}, expect=first.version)
    assert content(store, "x", second.version) == b"two!"
    store.delete(["x"])
    with pytest.raises(VersionChanged):
        store.put("x", b"four", {}, expect=second.version)
    with pytest.raises(NotFound):
        store.head("x")


def test_one_of_many_that_create_wins(store: UnderStore):
    need(store, "conditional")

    def create(number: int) -> bool:
        for _ in range(50):
            try:
                store.put("race", b"%d" % number, {}, expect=ABSENT)
            except VersionChanged:
                return False
            except StoreUnavailable:
                continue  # 409: another one is at it
            return True
        return False

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(create, range(12)))
    assert sum(won) == 1
    assert content(store, "race") == b"%d" % won.index(True)


REFUSED = [{"a": "é"}, {"a": "two\nlines"}, {"a": " blank"}, {"é": "a"}, {"A": "b"}]


def test_metadata_that_no_header_holds_is_refused(store: UnderStore):
    need(store, "metadata")
    for metadata in REFUSED:
        requests = [lambda m=metadata: store.put("x", b"data", m)]
        if store.abilities.multipart:
            requests.append(lambda m=metadata: store.begin_upload("x", m))
        for request in requests:
            with pytest.raises(StoreRejected, match="metadata") as caught:
                request()
            assert not caught.value.retryable
    assert everything(store) == []


def test_keys_that_look_like_syntax(store: UnderStore, target: Target):
    keys = names_for(target, KEYS)
    for key in keys:
        store.put(key, key.encode(), {})
    assert files(store) == sorted(keys)
    for key in keys:
        assert content(store, key) == key.encode()
        store.copy(key, f"copied/{key}")
        assert content(store, f"copied/{key}") == key.encode()
    if store.abilities.multipart:
        for key in keys:
            upload = store.begin_upload(key, {})
            store.complete_upload(key, upload, [(1, store.upload_part(key, upload, 1, b"part " + key.encode()))])
            assert content(store, key) == b"part " + key.encode()
    assert store.delete(keys) == {}
    assert files(store) == sorted(f"copied/{key}" for key in keys)


def test_keys_that_no_file_can_have(store: UnderStore, target: Target):
    if "odd keys" not in target.features:
        pytest.skip("a file system has no such names")
    keys = [key for key in ODD_KEYS if "no dots" not in target.features or "./" not in key]
    for key in keys:
        info = store.put(key, key.encode(), META)
        assert content(store, key, info.version) == key.encode()
        store.copy(key, f"{key}.copy", version=info.version)
    assert files(store) == sorted([*keys, *(f"{key}.copy" for key in keys)])
    assert store.delete(everything(store)) == {}
    assert everything(store) == []


def test_control_characters_in_keys(store: UnderStore, target: Target):
    if "newlines" not in target.features:
        pytest.skip("not possible here")
    store.put("new\nline", b"x", {})
    store.put("tab\there", b"x", {})
    assert content(store, "new\nline") == b"x"
    assert store.delete(["new\nline", "tab\there", "none"]) == {}
    assert everything(store) == []


def test_paths_that_would_lead_out_are_refused(store: UnderStore, target: Target):
    if "odd keys" in target.features or target.name.endswith(("fast", "gs")):
        pytest.skip("keys are no paths here")
    for key in ("../x", "d/../../x", "/x", "a//b", ""):
        with pytest.raises(StoreRejected):
            store.put(key, b"data", {})


def test_markers(store: UnderStore):
    store.put("d/", b"", META)
    store.put("d/e/", b"", {})
    assert everything(store) == ["d/", "d/e/"]
    assert everything(store, "d/") == ["d/", "d/e/"]
    assert [name for page in store.list_directory("d/") for name in page.prefixes + page.objects] == ["d/e/"]
    assert [(page.prefixes, page.objects) for page in store.list_directory("d/e/")] == [([], [])]
    with pytest.raises(NotFound):
        store.head("d")
    if store.abilities.metadata:
        assert store.head("d/").metadata == META
    store.copy("d/e/", "f/")
    assert "f/" in everything(store)
    assert store.delete(["d/e/", "f/", "none/"]) == {}
    assert everything(store) == ["d/"]
    assert store.delete(["d/"]) == {}
    assert everything(store) == []
    assert store.has_prefix("d/") is False


def test_directory_that_is_not_empty(store: UnderStore):
    store.put("d/x", b"data", {})
    if not store.abilities.hierarchical:
        store.put("d/", b"", {})
        assert store.delete(["d/"]) == {}
    else:
        assert everything(store) == ["d/", "d/x"]
        failures = store.delete(["d/"])
        assert failures.keys() == {"d/"}
        assert failures["d/"].errno == errno.ENOTEMPTY
        assert not failures["d/"].retryable
        assert store.delete(["d/x", "d/"]) == {}
        assert everything(store) == []
        return
    assert everything(store) == ["d/x"]


def test_object_and_directory_of_one_name(store: UnderStore, target: Target):
    if not store.abilities.hierarchical:
        pytest.skip("both can exist")
    store.put("file", b"data", {})
    store.put("dir/", b"", {})
    store.put("dir/x", b"data", {})
    if target.name != "memory":  # which lets both exist
        for key in ("file/x", "file/", "dir"):
            with pytest.raises(StoreRejected):
                store.put(key, b"", {})
    assert store.delete(["dir"]) == {}
    assert files(store) == ["dir/x", "file"]


def test_copy(store: UnderStore):
    first = store.put("d/x", b"data" * 1000, META)
    assert store.copy("d/x", "e/y z").version == store.head("e/y z").version
    copied = store.copy("d/x", "e/y z", version=first.version, size=first.size)
    found = store.head("e/y z")
    assert (found.version, found.size) == (copied.version, 4000)
    assert copied.size in (-1, 4000)
    assert content(store, "e/y z", copied.version) == b"data" * 1000
    if store.abilities.metadata:
        assert found.metadata == META
        changed = store.copy("d/x", "e/y z", metadata={"mode": "33261"})
        assert store.head("e/y z").metadata == {"mode": "33261"}
        assert store.head("e/y z").version == changed.version
        assert store.copy("d/x", "e/z", metadata={}).version == store.head("e/z").version
        assert store.head("e/z").metadata == {}
    assert store.head("d/x").version == first.version
    with pytest.raises(NotFound):
        store.copy("none", "y")
    with pytest.raises(VersionChanged):
        store.copy("d/x", "y", version='"none"', metadata={})
    with pytest.raises(VersionChanged):
        store.copy("d/x", "y", version='"none"', size=4000)
    with pytest.raises(NotFound):
        store.head("y")


def test_copy_onto_itself_replaces_the_metadata(store: UnderStore):
    need(store, "metadata")
    first = store.put("x.html", b"<p>", META)
    second = store.copy("x.html", "x.html", metadata={"mode": "33261"}, version=first.version)
    found = store.head("x.html")
    assert (found.version, found.metadata, found.size) == (second.version, {"mode": "33261"}, 3)
    assert content(store, "x.html", second.version) == b"<p>"
    if first.version != second.version:
        with pytest.raises(VersionChanged):
            store.copy("x.html", "x.html", metadata={}, version=first.version)
    assert store.head("x.html").metadata == {"mode": "33261"}


def test_copy_with_a_condition(store: UnderStore, target: Target):
    need(store, "conditional")
    if on_moto(target) or target.name.endswith("ceph"):
        pytest.skip("this server knows no conditions on the target of a copy")
    store.put("x", b"data", {})
    made = store.copy("x", "y", expect=ABSENT)
    with pytest.raises(VersionChanged):
        store.copy("x", "y", expect=ABSENT)
    store.copy("x", "y", expect=made.version)
    with pytest.raises(VersionChanged):
        store.copy("x", "y", expect='"none"')


def test_put_file(store: UnderStore, target: Target, tmp_path: Path):
    source = tmp_path.parent / f"source-{uuid.uuid4().hex}"
    big = os.urandom(1000) * 18_000  # more than one part
    try:
        for data in (b"", b"small", big):
            source.write_bytes(data)
            info = store.put_file("d/file.bin", str(source), META)
            assert info.size == len(data)
            assert store.head("d/file.bin").version == info.version
            assert content(store, "d/file.bin", info.version) == data
            if store.abilities.metadata:
                assert store.head("d/file.bin").metadata == info.metadata == META
        if store.abilities.conditional and not target.name.endswith("ceph"):  # which has no conditions for uploads
            with pytest.raises(VersionChanged):
                store.put_file("d/file.bin", str(source), {}, expect=ABSENT)
            assert content(store, "d/file.bin", info.version) == big
    finally:
        source.unlink()


def test_multipart(store: UnderStore):
    need(store, "multipart")
    upload = store.begin_upload("d/multi", META)
    assert everything(store) == []
    bodies = {1: b"1" * PART, 2: os.urandom(PART), 3: b"end"}
    parts = {number: store.upload_part("d/multi", upload, number, memoryview(bodies[number])) for number in (3, 1, 2)}
    parts[1] = store.upload_part("d/multi", upload, 1, b"!" * PART)  # again, as after a lost answer
    info = store.complete_upload("d/multi", upload, sorted(parts.items()))
    found = store.head("d/multi")
    assert info.version == found.version == listed_version(store, "d/multi")
    assert found.size == 2 * PART + 3
    assert info.size in (-1, found.size)
    assert found.metadata == META
    assert content(store, "d/multi", info.version) == b"!" * PART + bodies[2] + b"end"
    store.abort_upload("d/multi", upload)
    assert store.head("d/multi").version == info.version


def test_multipart_with_a_condition(store: UnderStore, target: Target):
    need(store, "multipart")
    need(store, "conditional")
    if on_moto(target) or target.name.endswith("ceph"):
        pytest.skip("this server has no conditions for the end of an upload")
    first = store.put("x", b"one", {})
    for number, wrong in enumerate((ABSENT, '"none"'), 1):
        upload = store.begin_upload("x", {})
        part = store.upload_part("x", upload, 1, b"part")
        with pytest.raises(VersionChanged):
            store.complete_upload("x", upload, [(1, part)], expect=wrong)
        assert content(store, "x", first.version) == b"one"
        store.abort_upload("x", upload)
        upload = store.begin_upload("new", {})
        part = store.upload_part("new", upload, 1, b"part")
        if number == 1:
            store.complete_upload("new", upload, [(1, part)], expect=ABSENT)
        else:
            store.delete(["new"])
            with pytest.raises(VersionChanged):
                store.complete_upload("new", upload, [(1, part)], expect=first.version)
    upload = store.begin_upload("x", {})
    store.complete_upload("x", upload, [(1, store.upload_part("x", upload, 1, b"two"))], expect=first.version)
    assert content(store, "x") == b"two"


def test_abort(store: UnderStore, target: Target):
    need(store, "multipart")
    upload = store.begin_upload("x", {})
    part = store.upload_part("x", upload, 1, b"part")
    store.abort_upload("x", upload)
    store.abort_upload("x", upload)
    assert everything(store) == []
    if not target.name.endswith("az"):  # where an upload is only its blocks
        with pytest.raises(NotFound) as caught:
            store.complete_upload("x", upload, [(1, part)])
        assert not isinstance(caught.value, BucketMissing)
        with pytest.raises(StoreUnavailable if on_moto(target) else NotFound):
            store.upload_part("x", upload, 2, b"part")


def test_part_copy(store: UnderStore):
    need(store, "part_copy")
    source = store.put("d/source é", bytes(range(256)) * (PART // 128), {})
    upload = store.begin_upload("x", META)
    parts = [
        (1, store.copy_part("x", upload, 1, "d/source é", source.version, 3, 3 + PART)),
        (2, store.upload_part("x", upload, 2, b"new" * PART)),
        (3, store.copy_part("x", upload, 3, "d/source é", None, 0, 256)),
    ]
    with pytest.raises(VersionChanged):
        store.copy_part("x", upload, 4, "d/source é", '"none"', 0, 10)
    with pytest.raises(NotFound):
        store.copy_part("x", upload, 4, "none", None, 0, 10)
    store.complete_upload("x", upload, parts)
    whole = bytes(range(256)) * (PART // 128)
    assert content(store, "x") == whole[3 : 3 + PART] + b"new" * PART + whole[:256]
    assert store.head("x").metadata == META


def test_copies_of_what_went_up_in_parts(store: UnderStore, target: Target):
    need(store, "multipart")
    if on_moto(target):
        pytest.skip("this server fails when it is asked for the ACL of such an object")
    upload = store.begin_upload("x", META)
    store.complete_upload(
        "x", upload, [(1, store.upload_part("x", upload, 1, b"x" * PART)), (2, store.upload_part("x", upload, 2, b"y"))]
    )
    source = store.head("x")
    store.copy("x", "y", version=source.version)
    assert content(store, "y") == b"x" * PART + b"y"
    with pytest.raises(VersionChanged):
        store.copy("x", "z", version='"none-2"')
    if store.abilities.part_copy:
        upload = store.begin_upload("z", META)
        part = store.copy_part("z", upload, 1, "x", source.version, 0, PART)
        with pytest.raises(VersionChanged):
            store.copy_part("z", upload, 2, "x", '"none-2"', 0, PART)
        store.complete_upload("z", upload, [(1, part)])
        assert content(store, "z") == b"x" * PART


def test_list_all_and_delete_of_many(store: UnderStore, target: Target):
    # More than is deleted by one request: of Azure's, which is slow to fill, 256.
    count = 320 if on_moto(target) or target.name.endswith("-az") else MOST_DELETES + 20
    if target.name in ("sftp", "ftp", "webdav", "fsspec-gs", "hdfs", "webhdfs"):  # which have no requests for many
        count = 40
    if target.name.endswith("-swift"):  # whose one process takes a tenth of a second for each
        count = 120
    keys = [f"many/{number % 7}/é{number:04d}" for number in range(count)]
    # WebDAV locks a directory while something is put into it.
    with ThreadPoolExecutor(1 if target.name == "webdav" else 8) as pool:
        list(pool.map(lambda key: store.put(key, b"x", {}), keys))
    store.put("many/3/", b"", {})
    store.put("manyother", b"x", {})
    assert files(store, "many/") == sorted(keys)
    assert "many/3/" in everything(store, "many/")
    (infos,) = [[i for page in store.list_all("many/") for i in page.objects if i.key == keys[5]]]
    assert infos[0].version == store.head(keys[5]).version
    assert infos[0].size == 1
    assert everything(store, "none/") == []
    first = MOST_DELETES - 1 if count > MOST_DELETES else count // 2
    assert store.delete([*keys[:first], "none"]) == {}
    assert store.delete(keys[first:]) == {}
    assert files(store) == ["manyother"]


def test_directories_that_somebody_else_makes_meanwhile(store: UnderStore, target: Target, monkeypatch: pytest.MonkeyPatch):
    """They are missing at the first try to write, and there when they are about to be made."""
    if not isinstance(store, FsspecWrites):
        pytest.skip("makes no directories")
    other, make_parents = target.open(), store._make_parents

    def late(filesystem: object, path: str) -> bool:
        other.put("d/e/", b"", {})
        return make_parents(filesystem, path)

    monkeypatch.setattr(store, "_make_parents", late)
    store.put("d/e/f", b"data", {})
    assert content(store, "d/e/f") == b"data"
    other.close()


def test_missing_bucket(target: Target):
    if "buckets" in target.features:
        source = f"{target.source.partition('://')[0]}://no-such-{uuid.uuid4().hex[:8]}"
    elif target.name in ("local", "sftp", "webdav", "hdfs", "webhdfs"):
        source = f"{target.source}/missing"
    else:
        pytest.skip("has no bucket")
    driver = target.open(source=source)
    requests = [lambda: driver.put("x", b"data", {}), lambda: driver.put("d/x", b"data", {}, expect=ABSENT),
                lambda: driver.put("d/", b"", {})]  # fmt: skip
    if driver.abilities.multipart and not target.name.endswith("az"):
        requests.append(lambda: driver.begin_upload("x", {}))
    for request in requests:
        with pytest.raises(BucketMissing):
            request()
    driver.close()


def assert_clean(error: StoreError, *secrets: str) -> None:
    """One line, and no secret in it or in what a traceback would show."""
    assert "\n" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__
    assert not any(secret in str(error) for secret in (*secrets, "sig=", "<Error>"))


def test_the_doctor_finds_nothing_wrong_and_leaves_nothing(target: Target, store: UnderStore):
    before = everything(store)
    found = list(check_permissions(store, target.source, read_only=False))
    on_request = [each.values[0] for each in ON_REQUEST]
    servers_without = {"conditional put"} if target.name in on_request else set()
    assert [
        each for each in found if each.state == "FAIL" or (each.state == "warn" and each.name not in servers_without)
    ] == []
    assert {"list", "put", "get", "copy", "multipart", "delete"} <= {finding.name for finding in found}
    assert everything(store) == before


def test_bad_credentials(target: Target):
    if "credentials" not in target.features:
        pytest.skip("checks no credentials")
    option = "account_key" if target.name.endswith("az") else "secret"
    right = target.options[option]
    wrong = right[:10] + "Z" + right[11:]
    driver = target.open(storage_options={**target.options, option: wrong})
    requests = [lambda: driver.put("x", b"data", {}), lambda: driver.copy("x", "y"), lambda: driver.delete(["x"]),
                lambda: list(driver.list_all(""))]  # fmt: skip
    if not target.name.endswith("az"):
        requests += [lambda: driver.begin_upload("x", {}), lambda: driver.delete(["x", "y"]),
                     lambda: driver.upload_part("x", "u", 1, b"x" * MIB)]  # fmt: skip
    for request in requests:
        with pytest.raises(AccessDenied) as caught:
            request()
        assert_clean(caught.value, right, wrong)
    driver.close()


def test_unreachable(target: Target):
    if "endpoint" not in target.features:
        pytest.skip("has no network")
    account = "/devstoreaccount1" if target.name.endswith("az") else ""
    driver = target.open(endpoint_url=f"http://127.0.0.1:{free_port()}{account}")
    requests = [lambda: driver.put("x", b"data", {}), lambda: driver.put("d/", b"", {}),
                lambda: driver.delete(["x"]), lambda: driver.copy("x", "y")]  # fmt: skip
    if driver.abilities.multipart and not target.name.endswith("az"):
        requests += [lambda: driver.begin_upload("x", {}), lambda: driver.upload_part("x", "u", 1, b"x" * MIB),
                     lambda: driver.delete(["x", "y"])]  # fmt: skip
    for request in requests:
        with pytest.raises(StoreUnavailable) as caught:
            request()
        assert_clean(caught.value, SECRET, target.options.get("account_key", SECRET))
    driver.close()


@pytest.mark.parametrize("driver", ["obstore", "fsspec"])
def test_unknown_s3_key(strict_moto_url: str, driver: str):  # noqa: F811
    store = open_driver("s3://bucket", endpoint_url=strict_moto_url, driver=driver,
                        storage_options={"key": "AKIAUNKNOWN", "secret": SECRET})  # fmt: skip
    for request in (lambda: store.put("x", b"data", {}), lambda: store.begin_upload("x", {}),
                    lambda: store.delete(["x", "y"]), lambda: store.copy("x", "y")):  # fmt: skip
        with pytest.raises(AccessDenied) as caught:
            request()
        assert_clean(caught.value, SECRET)
    store.close()


@pytest.fixture
def http_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    yield from open_target(request, "http")


def test_http_is_read_only(http_target: Target):
    store = http_target.open()
    http_target.put("d/x", b"data")
    for attempt in (lambda: store.put("x", b"data", {}), lambda: store.put("d/", b"", {}),
                    lambda: store.put_file("x", "/dev/null", {}), lambda: store.copy("d/x", "y"),
                    lambda: store.delete(["d/x"]), lambda: store.delete(["d/x", "y"])):  # fmt: skip
        with pytest.raises(ReadOnlyStore) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS
    assert files(store) == ["d/x"]
    store.close()


def test_markers_of_google_by_each_driver(request: pytest.FixtureRequest):
    for target in open_target(request, "fsspec-gs"):
        for driver in ("fsspec", "obstore"):  # obstore cannot name markers: gcsfs's client writes them
            store = target.open(driver=driver)
            assert store.put(f"{driver}/", b"", META).size == 0
            assert store.head(f"{driver}/").metadata == META
            assert store.delete([f"{driver}/"]) == {}
            with pytest.raises(NotFound):
                store.head(f"{driver}/")
            store.close()
