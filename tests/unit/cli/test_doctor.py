"""``luxfuse doctor``: what each check says of what is well and of what is not, and that nothing is left of it."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from luxfuse.cli import doctor, main
from luxfuse.cli.checkup import disks, machine, mounted, network, patience
from luxfuse.cli.checkup.bucket import check_permissions
from luxfuse.cli.checkup.findings import STATES, Finding, fail, ok
from luxfuse.cli.doctor import check_credentials
from luxfuse.configuration import building
from luxfuse.errors import AccessDenied, Archived, BucketMissing, StoreError, StoreRejected, StoreUnavailable
from luxfuse.types import ABSENT, ListPage
from luxfuse.understore.endpoints import Endpoint, endpoint_of
from tests.support import fast_s3
from tests.support.fake_store import EVERYTHING, FakeStore
from tests.support.front import Answer, certificate_authority, front, proxy
from tests.unit.control.samples import sample_status

SECRET = "s3cr3tS3cr3tS3cr3t"
CAN = {"list", "put", "get", "conditional put", "copy", "multipart", "delete"}


def states(findings: Iterable[Finding]) -> dict[str, str]:
    """By name; of several of one name the worst."""
    found: dict[str, str] = {}
    for finding in findings:
        found[finding.name] = max(finding.state, found.get(finding.name, "ok"), key=STATES.index)
        assert finding.state == "ok" or finding.advice, finding
    return found


# -- the machine


@pytest.mark.parametrize(
    ("hard", "may_exceed", "state"),
    [(512, True, "ok"), (512, False, "FAIL"), (4096, False, "warn"), (1 << 20, False, "ok"),
     (resource.RLIM_INFINITY, False, "ok")],
)  # fmt: skip
def test_open_files(hard: int, may_exceed: bool, state: str) -> None:
    assert machine.check_files(256, hard, may_exceed).state == state


def test_who_may_let_others_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not machine.user_allow_other("# user_allow_other\nmount_max = 1000\n")
    assert machine.user_allow_other("mount_max = 1000\n user_allow_other # yes\n")
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(machine, "FUSE_CONF", tmp_path / "fuse.conf")
    assert states(machine.check_privileges(allow_other=True)) == {"privileges": "FAIL"}
    assert states(machine.check_privileges(allow_other=False)) == {"privileges": "ok"}
    (tmp_path / "fuse.conf").write_text("user_allow_other\n")
    assert states(machine.check_privileges(allow_other=True)) == {"privileges": "ok"}


def test_a_plain_user_needs_a_device_and_fusermount3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "fusermount3"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    assert states(machine.check_device(tmp_path / "fuse")) == {"fuse device": "FAIL", "fusermount3": "FAIL"}
    program.touch(mode=0o755)
    (tmp_path / "fuse").touch()
    assert states(machine.check_device(tmp_path / "fuse")) == {"fuse device": "ok", "fusermount3": "FAIL"}
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    assert states(machine.check_device(tmp_path / "fuse")) == {"fuse device": "ok", "fusermount3": "ok"}


# -- disks


def test_disks(tmp_path: Path) -> None:
    def look(cache: str) -> dict[str, str]:
        chosen = building.build(
            {"source": "s3://b", "mountpoint": "/m", "cache_dir": [cache]}, {"LUXFUSE_STATE_DIR": "/proc/x"}
        )
        return states(disks.check_disks(chosen))

    found = look(f"{tmp_path}/deep/er,size=1000TiB")
    assert found["cache room"] == "warn", "it wants more than there is"
    assert {"cache", "cache speed", "state"} <= found.keys()
    assert found["state"] == "FAIL", "nothing can be written there"
    (tmp_path / "file").touch()
    assert look(f"{tmp_path}/file/below")["cache"] == "FAIL"
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left of it"


def test_a_disk_that_does_not_answer_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "TO_CLEAN_UP_S", 0.01)
    answers = threading.Event()

    def look() -> Generator[Finding, None, None]:
        yield ok("cache", "on ext4")
        answers.wait(120)

    found = list(patience.patiently(look(), "disk", "look at it", patience_s=0.05))
    answers.set()
    assert [(finding.name, finding.state) for finding in found] == [("cache", "ok"), ("disk", "FAIL")]
    with pytest.raises(ZeroDivisionError):
        list(patience.patiently((ok("a", str(1 // number)) for number in (1, 0)), "disk", ""))


# -- the way to a store


def endpoint(url: str, **options: str) -> Endpoint:
    found = endpoint_of("s3://bucket", url, {"region": "r", **options})
    assert found is not None
    return found


def test_each_step_of_the_way_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(url: str, **options: str) -> dict[str, str]:
        return states(network.check_network(endpoint(url, **options)))

    assert look("http://nothing.invalid") == {"dns": "FAIL"}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert look(f"http://127.0.0.1:{closed.getsockname()[1]}") == {"connection": "FAIL"}
    authority = certificate_authority(tmp_path, "ours")
    with front("http://127.0.0.1:9", lambda _: Answer(403), authority.server) as url:
        assert look(url) == {"connection": "ok", "tls": "FAIL"}
        well = {"connection": "ok", "tls": "warn", "http": "ok", "clock": "ok"}  # the certificate holds for a day
        assert look(url, verify=authority.bundle) == well
        assert look(url, verify="false") == well
        assert look(url.replace("https", "http")) == {"connection": "ok", "http": "FAIL"}
    with front("http://127.0.0.1:9", lambda _: Answer(403)) as url, proxy("me", SECRET) as between:
        assert look(url, proxy_url=between.url) == {"connection": "ok", "http": "ok", "clock": "ok"}
        assert between.seen
        assert look(url.replace("http", "https")) == {"connection": "ok", "tls": "FAIL"}


@pytest.mark.parametrize(("late_s", "state"), [(0, "ok"), (-300, "warn"), (300, "warn"), (3600, "FAIL")])
def test_the_clock_of_the_store(late_s: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.check_clock(late_s).state == state
    monkeypatch.setattr(
        "tests.support.front._Handler.date_time_string",
        lambda self, timestamp=None: formatdate(time.time() + late_s, usegmt=True),
    )
    with front("http://127.0.0.1:9", lambda _: Answer(403)) as url:
        assert states(network.check_network(endpoint(url)))["clock"] == state


def test_credentials_are_told_by_their_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))

    def look(source: str, **options: str) -> Finding:
        given = {
            "source": source,
            "mountpoint": "/m",
            "storage_options": {"region": "r", **options} if source[1] == "3" else options,
        }
        found = check_credentials(building.build(given, {"LUXFUSE_STATE_DIR": "/s"}))
        assert SECRET not in repr(found)
        return found

    assert look("s3://b").state == "FAIL"
    assert "the storage options key and secret" in look("s3://b", key="k", secret=SECRET).text
    assert "not signed" in look("s3://b", anon="true").text
    assert look("az://c", account_name="a", account_key=SECRET).text == "from the storage option account_key"
    soon = look("az://c", account_name="a", sas_token=f"sv=1&se={ends}&sig={SECRET}")
    assert (soon.state, "good for" in soon.text) == ("warn", True)
    assert look("az://c", account_name="a", sas_token=f"se=2020-01-01T00:00:00Z&sig={SECRET}").state == "FAIL"
    assert look("gs://b", token="anon").state == "ok"
    assert look("gs://b").state == "warn"
    assert "password" in look("sftp://h/d", username="u", password=SECRET).text


# -- the bucket


def test_all_is_allowed_and_nothing_is_left() -> None:
    store = FakeStore()
    store.place("a", b"theirs")
    assert states(check_permissions(store, "s3://b", read_only=False)) == dict.fromkeys(CAN, "ok")
    assert list(store.objects) == ["a"]
    assert not store.uploads
    writes = len(store.writes)
    assert states(check_permissions(store, "s3://b", read_only=True)) == {"list": "ok", "get": "ok", "put": "ok"}
    assert len(store.writes) == writes


class InPages(FakeStore):
    """Gives the directories as a page of their own, before the objects, as obstore does."""

    def list_directory(self, prefix: str) -> Iterator[ListPage]:
        for page in super().list_directory(prefix):
            yield ListPage([], page.prefixes)
            yield ListPage(page.objects)


@pytest.mark.parametrize(
    ("objects", "listed", "got"),
    [
        ({"d/b": b"", "e/c": b"2", "a": b"1"}, "3 names", "a byte of an object was read"),
        ({"d/": b"", "d/e/": b"", "d/e/f/g": b"1", "x": b""}, "2 names", "a byte of an object was read"),
        ({f"{n:02}/": b"" for n in range(12)} | {"12/a": b"1"}, "13 names", "a byte of an object was read"),
        ({"d/": b"", "d/e": b"", "x": b""}, "2 names", "not tried: no object with content was found among 3 names"),
        ({f"{n:02}/": b"" for n in range(99)} | {"99/a": b"1"}, "100 names", "not tried: no object with content"),
        ({}, "0 names", "not tried: no object with content was found among 0 names"),
    ],
)
def test_without_writing_a_byte_is_read_of_an_object_anywhere(objects: dict[str, bytes], listed: str, got: str) -> None:
    store = InPages()
    for key, content in objects.items():
        store.place(key, content)
    found = {finding.name: finding for finding in check_permissions(store, "s3://b", read_only=True)}
    assert {finding.state for finding in found.values()} == {"ok"}
    assert f"({listed} seen" in found["list"].text
    assert got in found["get"].text
    store.fail_next(1, lambda: AccessDenied("403 Forbidden"), "get")
    state = "ok" if "not tried" in got else "FAIL"
    assert states(check_permissions(store, "s3://b", read_only=True))["get"] == state


def test_a_directory_that_is_closed_is_told() -> None:
    class Closed(InPages):
        def list_directory(self, prefix: str) -> Iterator[ListPage]:
            if prefix:
                raise AccessDenied("403 Forbidden")
            return super().list_directory(prefix)

    store = Closed()
    store.place("d/a", b"1")
    found = states(check_permissions(store, "s3://b", read_only=True))
    assert found == {"list": "ok", "get": "warn", "put": "ok"}


def test_behind_a_directory_that_is_closed_others_are_looked_at() -> None:
    class Closed(InPages):
        def list_directory(self, prefix: str) -> Iterator[ListPage]:
            if prefix == "closed/":
                raise AccessDenied("403 Forbidden")
            return super().list_directory(prefix)

    store = Closed()
    store.place("closed/a", b"1")
    store.place("open/a", b"1")
    assert states(check_permissions(store, "s3://b", read_only=True)) == {"list": "ok", "get": "ok", "put": "ok"}


def test_an_object_in_an_archive_is_no_fault_of_the_permissions() -> None:
    store = FakeStore()
    store.place("a", b"1")
    store.fail_next(1, lambda: Archived("the object is in an archive"), "get")
    found = {finding.name: finding for finding in check_permissions(store, "s3://b", read_only=True)}
    assert found["get"].state == "ok"
    assert "in an archive" in found["get"].text


@pytest.mark.parametrize(
    ("kind", "failed"),
    [("list", "list"), ("put", "put"), ("head", "get"), ("get", "get"), ("copy", "copy"), ("begin_upload", "multipart"),
     ("complete_upload", "multipart"), ("delete", "delete")],
)  # fmt: skip
def test_what_is_refused_is_named_and_nothing_is_left(kind: str, failed: str) -> None:
    store = FakeStore()
    store.fail_next(1, lambda: AccessDenied("403 Forbidden"), kind)
    found = list(check_permissions(store, "s3://b", read_only=False))
    assert [finding.name for finding in found if finding.state == "FAIL"] == [failed]
    advice = next(finding.advice for finding in found if finding.name == failed)
    assert "s3:" in advice
    assert not store.uploads
    if kind == "delete":
        assert all(key in advice for key in store.objects), "what is left is named"
    else:
        assert not store.objects


@pytest.mark.parametrize("error", [BucketMissing("404 NoSuchBucket"), StoreRejected("400 Bad Request")])
def test_each_failure_says_what_to_do(error: StoreError) -> None:
    for kind in ("list", "put", "get", "copy", "begin_upload", "delete"):
        store = FakeStore()
        store.fail_next(1, lambda: error, kind)
        assert "FAIL" in states(check_permissions(store, "s3://b", read_only=False)).values()


@pytest.mark.parametrize(
    ("taken", "state", "said"),
    [
        (lambda _expect: None, "warn", "If-None-Match"),
        (lambda expect: expect if expect == ABSENT else None, "warn", "If-Match"),
        (lambda expect: expect if expect == ABSENT else "another", "FAIL", "If-Match"),
        (lambda expect: expect, "ok", "honoured"),
    ],
)
def test_each_condition_is_tried(taken: Callable[[str], str | None], state: str, said: str) -> None:
    """``taken``: the version that the server takes for the one wanted."""

    class Server(FakeStore):
        def put(self, *arguments: Any, expect: str | None = None, **named: Any) -> Any:
            return super().put(*arguments, expect=None if expect is None else taken(expect), **named)

    server = Server()
    (found,) = [each for each in check_permissions(server, "s3://b", read_only=False) if each.name == "conditional put"]
    assert (found.state, said in found.text) == (state, True), found
    assert not server.objects


def test_a_server_that_refuses_conditions() -> None:
    class Server(FakeStore):
        error: StoreError

        def put(self, *arguments: Any, expect: str | None = None, **named: Any) -> Any:
            if expect is not None:
                raise self.error
            return super().put(*arguments, **named)

    for error, state in ((StoreRejected("501 Not Implemented"), "warn"), (AccessDenied("403 Forbidden"), "FAIL")):
        server = Server()
        server.error = error
        assert states(check_permissions(server, "s3://b", read_only=False))["conditional put"] == state


def test_a_put_without_an_answer_is_removed_too() -> None:
    store = FakeStore()
    store.lose_answer_next("put")
    assert states(check_permissions(store, "s3://b", read_only=False))["put"] == "FAIL"
    assert not store.objects


def test_an_interrupted_trial_leaves_nothing() -> None:
    store = FakeStore()
    trial = check_permissions(store, "s3://b", read_only=False)
    assert next(trial).name == "list"
    assert next(trial).name == "put"
    assert store.objects
    trial.close()
    assert not store.objects


def test_a_poorer_store() -> None:
    store = FakeStore(abilities=replace(EVERYTHING, conditional=False, multipart=False, metadata=False))
    assert states(check_permissions(store, "x://b", read_only=False)) == dict.fromkeys(CAN, "ok")
    away = FakeStore()
    away.fail_next(1, lambda: StoreUnavailable("503"), "list")
    assert states(check_permissions(away, "s3://b", read_only=False)) == {"list": "FAIL"}


# -- a mount


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: None, {}),
        (lambda s: s.update(state="degraded", degraded_reasons=["the disk is full"]), {"mount": "warn"}),
        (lambda s: s.update(version="0.0.1", restarts=2), {"version": "warn", "restarts": "warn"}),
        (lambda s: s["understore"].update(state="unreachable"), {"store": "FAIL"}),
        (lambda s: s["names"].update(stale_served=3), {"stale": "warn"}),
        (lambda s: s["dirty"].update(failing=1, error="403"), {"backlog": "FAIL"}),
        (lambda s: s["dirty"].update(files=3, open_files=0, oldest_s=5000.0, failing=0), {"backlog": "warn"}),
        (lambda s: s["tiers"][0].update(state="degraded"), {"cache": "FAIL"}),
        (lambda s: s["fuse"].update(stalls=1), {"requests": "warn"}),
    ],
)  # fmt: skip
def test_what_a_status_shows(change: Callable[[Any], None], expected: dict[str, str]) -> None:
    status: Any = sample_status()
    status["understore"].update(state="ok")
    status["names"].update(stale_served=0)
    status["dirty"].update(files=0, deletes=0, failing=0, oldest_s=0.0, error=None)
    status["cache"].update(checksum_failures=0)
    status["fuse"].update(errors=0, stalls=0)
    status["recovered"].update(files=0)
    status["volumes"] = []
    change(status)
    found = states(mounted.judge(status, "/log"))
    assert {name: state for name, state in found.items() if state != "ok"} == expected


# -- the command


def test_a_bucket_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := fast_s3.available():
        pytest.skip(reason)
    monkeypatch.setenv("LUXFUSE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(doctor, "check_machine", lambda **_: iter([fail("kernel", "a\x1b[31m\nb", "none")]))

    def run(*arguments: str) -> tuple[int, str]:
        code = main.guard(lambda: main.run(["doctor", *arguments]))
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        assert "\x1b" not in out
        return code, out + err

    with fast_s3.FastS3(buckets=("bucket",)) as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        flags = ["--endpoint-url", server.endpoint, "--cache-dir", str(tmp_path / "cache")]
        code, out = run("s3://bucket", *flags, "--json")
        said = json.loads(out)
        assert (code, said["failures"]) == (1, 1)
        assert {"dns", "tls"}.isdisjoint(check["name"] for check in said["checks"])
        assert CAN | {"connection", "http", "clock", "credentials"} <= {check["name"] for check in said["checks"]}
        monkeypatch.setattr(doctor, "check_machine", lambda **_: iter([]))
        code, out = run("s3://bucket", *flags)
        assert (code, "FAIL" in out) == (0, False)
        assert not any(path.is_file() for path in server.bucket_path("bucket").rglob("*"))
        code, out = run("s3://missing", *flags)
        assert (code, out.count("FAIL")) == (1, 1)
        assert "NoSuchBucket" in out
    code, out = run("s3://bucket", *flags)
    assert (code, "FAIL  connection" in out, "not asked" in out) == (1, True, True)
    assert run("s3://bucket", "--nonsense")[0] == 2
    assert not list(tmp_path.rglob(".luxfuse-doctor*"))
