"""What the store says of objects beside their content: when it is asked for, and when not."""

from __future__ import annotations

import http.client
import shutil
import stat
import time
from collections.abc import Callable, Mapping

import pytest

from luxfuse.core.evidence import ENOUGH, SAMPLE
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import NOBODY, Mount, Mounts, content, wait_for

FILES = 60
SIZE = 100 << 10
OLD_NS = 1_600_000_000_123_456_789


@pytest.fixture
def describe(s3: FastS3, bucket: str) -> Callable[..., None]:
    """Put an object with metadata into the bucket: ``describe(key, data, {"mode": "33188"})``."""

    def put(key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        connection = http.client.HTTPConnection(s3.endpoint.removeprefix("http://"))
        headers = {f"x-amz-meta-{name}": value for name, value in metadata.items()}
        connection.request("PUT", f"/{bucket}/{key}", data, headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == 200

    return put


def said_by_s3fs(mode: int, kind: int = stat.S_IFREG) -> dict[str, str]:
    """The metadata that s3fs writes."""
    return {"mode": str(kind | mode), "uid": "0", "gid": "0", "mtime": f"{OLD_NS // 10**9}.{OLD_NS % 10**9}"}


def counts(proxy: FaultProxy) -> tuple[int, int]:
    """GETs and HEADs of objects so far."""
    of_objects = [r for r in proxy.requests if "list-type" not in r.query]
    return sum(r.method == "GET" for r in of_objects), sum(r.method == "HEAD" for r in of_objects)


@pytest.mark.parametrize("passthrough", ["true", "false"])
def test_what_was_fetched_is_asked_for_once(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill, passthrough: str
) -> None:
    names = [f"file{i:03}" for i in range(FILES)]
    fill({f"d/{name}": content(name, SIZE) for name in names})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"passthrough": passthrough})
    mount.do("list", f"{mount.path}/d")
    proxy.reset_counts()
    first = mount.do("epoch", f"{mount.path}/d", names)
    assert counts(proxy) == (FILES, SAMPLE)
    assert [mount.do("epoch", f"{mount.path}/d", names) for _ in range(2)] == [first, first]
    assert counts(proxy) == (FILES, SAMPLE)


def test_a_load_brings_attributes_too(mounting: Mounts, proxy: FaultProxy, bucket: str, describe) -> None:
    names = [f"file{i:03}" for i in range(20)]
    for name in names:
        describe(f"d/{name}", content(name, SIZE), said_by_s3fs(0o640))
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("stat", f"{mount.path}/d")
    proxy.reset_counts()
    mount.cli("load", f"{mount.path}/d", check=True)
    assert counts(proxy) == (20, 0)
    found = mount.do("epoch", f"{mount.path}/d", names)
    assert found == [[stat.S_IFREG | 0o640, OLD_NS, SIZE]] * 20
    assert counts(proxy) == (20, 0)


def test_what_was_written_is_not_asked_for(mounting: Mounts, proxy: FaultProxy, bucket: str) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("os.mkdir", f"{mount.path}/d")
    for number in range(5):
        mount.do("create", f"{mount.path}/d/{number}")
    proxy.reset_counts()
    assert len(mount.do("lstats", f"{mount.path}/d")) == 5
    mount.do("epoch", f"{mount.path}/d", [str(number) for number in range(5)])
    assert counts(proxy) == (0, 0)


def test_chmod_is_a_look_and_a_copy(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> None:
    fill({"d/a": b"x", "d/b": b"x"})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    for name in ("a", "b"):  # the first finds out what the server heeds
        mount.do("file", f"{mount.path}/d/{name}")
        mount.do("lstats", f"{mount.path}/d")  # since the first was changed, objects are known to carry attributes
        mount.await_answers()
        proxy.reset_counts()
        mount.do("os.chmod", f"{mount.path}/d/{name}", 0o600)
    assert [r.method for r in proxy.requests] == ["HEAD", "PUT"]
    proxy.reset_counts()
    assert mount.do("stat", f"{mount.path}/d/b")["mode"] == stat.S_IFREG | 0o600
    assert mount.read("d/b")[0] == 1
    assert proxy.requests == []


# -- nobody gets in


class Stranger:
    """Another user, who has nothing but the mount: tries things in a process of its own."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount

    def reads(self, path: str) -> bool:
        """Whether a file can be read."""
        return self._try(f"cat {path}")

    def enters(self, path: str) -> bool:
        """Whether a directory can be listed, or looked through."""
        return self._try(f"ls {path}") or self._try(f"stat {path}/.")

    def makes(self, path: str) -> bool:
        """Whether a file can be opened for writing, made if it is missing."""
        return self._try(f"printf x >> {path}")

    def _try(self, script: str) -> bool:
        command = [
            "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
            "sh", "-c", f"cd {self._mount.path} && {script}",
        ]  # fmt: skip
        return self._mount.run(command).returncode == 0


@pytest.fixture(params=["true", "false"], ids=["passthrough", "copying"])
def two_nodes(mounting: Mounts, s3: FastS3, bucket: str, request: pytest.FixtureRequest) -> tuple[Mount, Mount]:
    """The first, a node that writes; the second, not mounted yet, lets others in."""
    first = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    options = {"passthrough": request.param, "metadata_ttl": "1s", "negative_ttl": "1s"}
    second = mounting.make(f"s3://{bucket}", "--allow-other", endpoint_url=s3.endpoint, options=options)
    second.base.chmod(0o755)
    return first, second


def test_private_files_stay_private_elsewhere(two_nodes: tuple[Mount, Mount]) -> None:
    first, second = two_nodes
    script = """mkdir x shut && echo s > x/key && chmod 600 x/key && echo o > x/open
        echo hidden > shut/world && mkdir shut/inner && echo deep > shut/inner/f && chmod 700 shut"""
    first.run(["sh", "-c", f"cd {first.path} && {script}"], check=True)
    second.mount()
    stranger = Stranger(second)
    assert not stranger.reads("x/key")
    assert not stranger.reads("shut/world")
    assert not stranger.reads("shut/inner/f")
    assert not stranger.enters("shut")
    assert stranger.reads("x/open")
    listed = second.run(["ls", "-lR", f"{second.path}"], check=True).stdout
    assert "-rw-------" in listed
    assert "drwx------" in listed
    assert second.do("stat", f"{second.path}/x/key")["mode"] == stat.S_IFREG | 0o600
    # After a listing, whose entries the kernel keeps, it is the same.
    assert not stranger.reads("x/key")
    assert not stranger.enters("shut")
    assert second.do("file", f"{second.path}/x/key")[0] == 2


def test_what_becomes_private_elsewhere_does_here(two_nodes: tuple[Mount, Mount]) -> None:
    first, second = two_nodes
    script = f"cd {first.path} && mkdir d open && echo one > d/a && echo two > d/b && echo three > open/f"
    first.run(["sh", "-c", script], check=True)
    second.mount()
    stranger = Stranger(second)
    assert stranger.reads("d/a")
    assert stranger.reads("d/b")
    assert stranger.reads("open/f")
    time.sleep(1.1)  # what happens in one second cannot be told apart by times of change
    replace_it = "umask 077; echo secret > d/n; mv d/n d/a"
    first.run(["sh", "-c", f"cd {first.path} && {replace_it}; chmod 600 d/b; chmod 700 open"], check=True)

    def shut_out() -> bool:
        second.run(["ls", "-lR", f"{second.path}"], check=True)
        return not (stranger.reads("d/a") or stranger.reads("d/b") or stranger.reads("open/f"))

    wait_for("the stranger is shut out", shut_out)
    assert second.do("file", f"{second.path}/d/a")[0] == 7


def test_a_file_that_appears_is_not_opened_by_who_wants_to_make_it(two_nodes: tuple[Mount, Mount]) -> None:
    first, second = two_nodes
    first.run(["sh", "-c", f"cd {first.path} && mkdir common && chmod 1777 common"], check=True)
    second.mount("-o", "negative_ttl=1h")
    stranger = Stranger(second)
    assert not stranger.reads("common/f")  # the kernel knows that it is missing
    first.run(["sh", "-c", f"cd {first.path} && umask 077 && echo s > common/f"], check=True)
    second.run(["sh", "-c", f"ls {second.path}/common"], check=True)
    assert not stranger.makes("common/f")
    assert stranger.makes("common/g")
    assert second.do("file", f"{second.path}/common/f")[0] == 2


def test_nobody_is_let_in_while_the_store_cannot_be_asked(
    mounting: Mounts, s3: FastS3, proxy: FaultProxy, bucket: str
) -> None:
    first = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    first.run(["sh", "-c", f"cd {first.path} && mkdir x && echo s > x/key && chmod 600 x/key"], check=True)
    second = mounting.make(f"s3://{bucket}", "--allow-other", endpoint_url=proxy.endpoint)
    second.base.chmod(0o755)
    second.expected_logs.append("under-store|store")
    second.mount()
    second.do("list", f"{second.path}/x")
    proxy.only(lambda request: request.method == "HEAD")
    proxy.set(error_probability=1.0, error_status=403)
    stranger = Stranger(second)
    assert not stranger.reads("x/key")
    assert second.do("stat", f"{second.path}/x/key")["mode"] & 0o077 == 0
    proxy.clear()
    assert second.do("stat", f"{second.path}/x/key")["mode"] == stat.S_IFREG | 0o600


# -- attributes do not change while a program looks


@pytest.fixture
def tree_of_s3fs(describe) -> dict[str, int]:
    """Objects as s3fs writes them: path and mode."""
    modes = {f"t/{sub}/f{i:02}": (0o600, 0o755, 0o444)[i % 3] for sub in ("a", "b") for i in range(20)}
    for directory, mode in (("t", 0o750), ("t/a", 0o700), ("t/b", 0o755)):
        describe(f"{directory}/", b"", said_by_s3fs(mode, stat.S_IFDIR))
    for path, mode in modes.items():
        describe(path, content(path, 5_000), said_by_s3fs(mode))
    return modes


@pytest.mark.parametrize("attributes", ["auto", "exact"])
def test_programs_see_what_stays(
    mounting: Mounts, proxy: FaultProxy, bucket: str, tree_of_s3fs: dict[str, int], attributes: str, tmp_path
) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint, options={"attributes": attributes})
    archive = mount.base / "t.tar"
    done = mount.run(["tar", "cf", f"{archive}", "-C", f"{mount.path}", "t"])
    assert (done.returncode, done.stderr) == (0, "")
    _, heads = counts(proxy)
    assert heads <= len(tree_of_s3fs) + 3 + SAMPLE  # and the directories; a name that was not listed is asked for as a file
    mount.run(["mkdir", f"{mount.base}/copy"], check=True)
    mount.run(["tar", "xpf", f"{archive}", "-C", f"{mount.base}/copy"], check=True)
    if shutil.which("rsync"):
        done = mount.run(["rsync", "-ain", f"{mount.path}/t/", f"{mount.base}/copy/t/"])
        assert (done.returncode, done.stdout) == (0, "")
    for path, mode in tree_of_s3fs.items():
        said = mount.do("stat", f"{mount.path}/{path}")
        assert (said["mode"], said["mtime_ns"]) == (stat.S_IFREG | mode, OLD_NS)


def test_a_bucket_without_attributes_costs_no_requests(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> None:
    fill({f"d{i:02}/f{j}": b"x" for i in range(20) for j in range(10)})
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    for command in (["find", f"{mount.path}"], ["ls", "-lR", f"{mount.path}"], ["find", f"{mount.path}", "-ls"]):
        mount.run(command, check=True)
    assert counts(proxy)[1] <= ENOUGH + SAMPLE
    mount.remount()
    proxy.reset_counts()
    mount.run(["ls", "-lR", f"{mount.path}"], check=True)
    assert counts(proxy) == (0, 0)


def test_ls_asks_for_many_at_once(mounting: Mounts, proxy: FaultProxy, bucket: str, describe) -> None:
    names = [f"f{i:03}" for i in range(300)]
    for name in names:
        describe(f"d/{name}", b"x", said_by_s3fs(0o640))
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.do("list", f"{mount.path}/d")
    proxy.reset_counts()
    proxy.set(latency_s=0.1)
    found = mount.do("lstats", f"{mount.path}/d")
    assert proxy.most_delayed > 20
    assert found == {name: [stat.S_IFREG | 0o640, 0, 0, OLD_NS] for name in names}
    assert counts(proxy) == (0, 300 - SAMPLE)  # the listing has asked for a few
    proxy.clear()
    mount.remount()
    proxy.reset_counts()
    assert mount.do("lstats", f"{mount.path}/d") == found
    assert counts(proxy) == (0, 0)
