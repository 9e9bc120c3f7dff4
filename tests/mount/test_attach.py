"""Further under-stores inside a mount: real commands on real buckets."""

from __future__ import annotations

import contextlib
import json
import re
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from luxfuse.control.client import ControlClient, DaemonRefused
from luxfuse.steps import DIE_AT, DIE_ONCE
from tests.mount.conftest import new_bucket
from tests.mount.test_keeper import DIED
from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, PATIENCE_S, STILL, Mount, Mounts, content, digest, open_paths, put, wait_for

LATER = ["cannot be brought to the under-store yet"]


@pytest.fixture
def other(s3: FastS3) -> str:
    """A second bucket, with some content."""
    name = new_bucket(s3)
    for key in ("x", "s/y", "s/z"):
        put(s3, name, key, content(key, 30_000))
    return name


@pytest.fixture
def mount(mounting: Mounts, s3: FastS3, bucket: str) -> Mount:
    put(s3, bucket, "a", content("a", 1000))
    put(s3, bucket, "d/m/hidden", b"hidden")
    return mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)


def client(mount: Mount) -> ControlClient:
    return ControlClient(mount.directory() / "control.sock", PATIENCE_S)


def attach(mount: Mount, s3: FastS3, bucket: str, path: str, **options: object) -> list[str]:
    """As the command does, without the time that it takes to start."""
    return client(mount).attach(f"s3://{bucket}", path, {"endpoint_url": s3.endpoint, **options})


def detach(mount: Mount, path: str, *, force: bool = False) -> None:
    mount.close_readers()
    *_, last = client(mount).detach(path, force=force)
    assert last["done"]


def by_command(mount: Mount, s3: FastS3, bucket: str, path: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return mount.cli("attach", f"s3://{bucket}", mount.path / path, "--endpoint-url", s3.endpoint, *flags)


def shell(mount: Mount, command: str) -> subprocess.CompletedProcess[str]:
    return mount.run(["bash", "-c", command, "bash", mount.path])


def refused(done: subprocess.CompletedProcess[str], *texts: str, code: int = 1) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for text in texts:
        assert text in done.stderr


def volumes(mount: Mount) -> dict[str, dict[str, object]]:
    return {volume["path"]: volume for volume in mount.status()["volumes"]}


def test_attached_while_programs_use_the_mount_and_detached_again(
    mount: Mount, s3: FastS3, bucket: str, other: str, tmp_path: Path
) -> None:
    assert mount.do("list", f"{mount.path}/d/m") == ["hidden"]
    assert mount.error("file", f"{mount.path}/d/m/x") == "ENOENT"
    done = by_command(mount, s3, other, "d/m")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(mount.do("list", f"{mount.path}/d/m")) == ["s", "x"]
    assert mount.error("file", f"{mount.path}/d/m/hidden") == "ENOENT"
    for key in ("x", "s/y", "s/z"):
        assert mount.read(f"d/m/{key}") == digest(content(key, 30_000))
    assert mount.read("d/m/x") == digest(content("x", 30_000))
    *_, last = client(mount).export_index("d/m", str(tmp_path / "names"))
    assert (last["done"], last["entries"]) == (True, 4)
    with pytest.raises(DaemonRefused, match=f"give {mount.path}/d/m, or export and mount s3://{other}/s$"):
        list(client(mount).export_index("d/m/s", str(tmp_path / "some")))
    shell(mount, 'echo -n new > "$1/d/m/s/new" && mkdir "$1/d/m/made" && mv "$1/d/m/x" "$1/d/m/made/x"').check_returncode()
    assert (s3.root / other / "s/new").read_bytes() == b"new"
    assert (s3.root / other / "made/x").exists()
    assert not (s3.root / bucket / "d/m/s/new").exists()
    reads = mount.status()["reads"]
    assert reads["passthrough_opens"] + reads["dataplane_opens"] >= 4
    mount.close_readers()
    done = mount.cli("detach", mount.path / "d/m", check=True)
    assert done.stderr == ""
    assert mount.do("list", f"{mount.path}/d/m") == ["hidden"]
    assert set(volumes(mount)) == {""}
    assert list(json.loads((mount.directory() / "attached.json").read_text())["attached"]) == []


def test_renames_across_are_exdev_and_mv_copies(mount: Mount, s3: FastS3, other: str) -> None:
    attach(mount, s3, other, "m")
    done = shell(mount, "python3 -c \"import os,sys; os.rename(sys.argv[1]+'/a', sys.argv[1]+'/m/a')\" \"$1\"")
    assert "Errno 18" in done.stderr
    shell(mount, 'mv "$1/a" "$1/m/a" && mv "$1/m/s" "$1/s"').check_returncode()
    assert (s3.root / other / "a").read_bytes() == content("a", 1000)
    assert mount.read("s/y") == digest(content("s/y", 30_000))
    for command in ('rmdir "$1/m"', 'mv "$1/m" "$1/n"'):
        done = shell(mount, command)
        assert done.returncode != 0
        assert "busy" in done.stderr
    assert "exists" in shell(mount, 'mkdir "$1/m"').stderr
    assert shell(mount, 'ln "$1/m/x" "$1/m/l"').stderr.endswith("Operation not permitted\n")


def test_nested_and_each_with_its_own_options(mount: Mount, s3: FastS3, other: str) -> None:
    third = new_bucket(s3)
    put(s3, third, "deep", b"deep")
    attach(mount, s3, other, "m", write_mode="async-through")
    by_command(mount, s3, third, "m/s/n", "--read-only", "-o", "metadata_ttl=1s").check_returncode()
    assert mount.read("m/s/n/deep") == digest(b"deep")
    done = shell(mount, 'echo > "$1/m/s/n/new"')
    assert "Read-only file system" in done.stderr
    assert volumes(mount)["m/s/n"]["read_only"] is True
    assert volumes(mount)["m"]["read_only"] is False
    refused(mount.cli("detach", mount.path / "m"), "is busy: another under-store is attached inside, at")
    shell(mount, 'ls -laR "$1"').check_returncode()
    detach(mount, "m/s/n")
    detach(mount, "m")


def test_attached_again_by_the_next_mount_with_the_same_inodes(mount: Mount, s3: FastS3, other: str) -> None:
    attach(mount, s3, other, "d/m", storage_options={"key": "test", "secret": "very-secret"})
    inode = mount.do("stat", f"{mount.path}/d/m/s/y")["ino"]
    record = mount.directory() / "attached.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    mount.remount()
    assert mount.read("d/m/s/y") == digest(content("s/y", 30_000))
    assert mount.do("stat", f"{mount.path}/d/m/s/y")["ino"] == inode
    texts = [mount.log(), json.dumps(mount.status()), mount.cli("status", mount.path).stdout]
    assert not any("very-secret" in text for text in texts)
    assert f"s3://{other} at d/m: serving" in mount.cli("status", mount.path).stdout
    mount.kill()
    mount.close_readers()
    mount.cli("unmount", mount.path, check=True)
    mount.mount()
    assert mount.read("d/m/x") == digest(content("x", 30_000))


def test_a_mount_that_takes_long_says_what_it_waits_for(
    mounting: Mounts, s3: FastS3, bucket: str, other: str, proxy: FaultProxy
) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    client(mount).attach(f"s3://{other}", "m", {"endpoint_url": proxy.endpoint})
    assert mount.unmount().returncode == 0
    proxy.set(latency_s=6)
    done = mount.cli("mount", mount.source, mount.path, *mount.flags, check=True)
    assert f"luxfuse: s3://{bucket}: still attaching what was attached before\n" in done.stderr
    assert all(STILL.match(line) for line in done.stderr.splitlines())
    proxy.clear()


def test_one_that_cannot_be_attached_again_keeps_its_place_and_is_tried_again(mount: Mount, s3: FastS3, other: str) -> None:
    attach(mount, s3, other, "d/m")
    mount.unmount()
    away = s3.root / f"{other}-away"
    (s3.root / other).rename(away)
    done = mount.try_mount()
    assert done.returncode == 0
    assert f"{mount.path}/d/m: cannot be attached yet, and is tried again" in done.stderr
    assert mount.error("stat", f"{mount.path}/d/m") == "EIO"
    assert mount.error("file", f"{mount.path}/d/m/hidden") == "EIO"
    assert mount.do("list", f"{mount.path}/d") == ["m"]
    assert mount.status()["state"] == "degraded"
    assert volumes(mount)["d/m"]["state"] == "unreachable"
    assert "create the bucket" in str(volumes(mount)["d/m"]["error"])
    away.rename(s3.root / other)
    wait_for("attached again", lambda: volumes(mount)["d/m"]["state"] == "serving")
    assert mount.read("d/m/x") == digest(content("x", 30_000))
    assert mount.status()["state"] == "serving"


def test_detach_refuses_while_files_are_open_and_force_keeps_what_is_dirty(
    mount: Mount, mounting: Mounts, s3: FastS3, other: str
) -> None:
    attach(mount, s3, other, "m")
    reader = mount.reader()
    reader("open", "f", f"{mount.path}/m/x")
    done = mount.cli("detach", mount.path / "m")
    refused(done, f"{mount.path}/m is busy: in use by", f"luxfuse detach --force {mount.path}/m")
    assert str(reader.pid) in done.stderr
    assert mount.read("m/s/y") == digest(content("s/y", 30_000)), "and everything goes on"
    mount.cli("detach", mount.path / "m", "--force", check=True)
    assert reader("all", "f") == digest(content("x", 30_000)), "what is in passthrough reads on"
    assert mount.error("stat", f"{mount.path}/m") == "ENOENT"
    refused(by_command(mount, s3, other, "m"), "files are still open from before")
    reader("close", "f")
    wait_for("the kernel tells of the close", lambda: by_command(mount, s3, other, "m").returncode == 0)
    assert mount.read("m/x") == digest(content("x", 30_000))


def test_what_was_not_uploaded_when_detached_by_force_goes_up_after_the_next_attach(
    mounting: Mounts, s3: FastS3, bucket: str, other: str, proxy: FaultProxy
) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, expected_logs=LATER)
    source = ("attach", f"s3://{other}")
    flags = ("--endpoint-url", proxy.endpoint, "--write-mode", "async-through")
    mount.cli(*source, mount.path / "m", *flags, check=True)
    proxy.only(lambda request: request.method == "PUT")
    proxy.set(error_probability=1.0)
    shell(mount, 'echo -n kept > "$1/m/new"').check_returncode()
    wait_for("counted", lambda: mount.status()["dirty"]["files"] == 1)
    assert volumes(mount)["m"]["dirty_files"] == 1
    assert volumes(mount)[""]["dirty_files"] == 0
    mount.cli("detach", mount.path / "m", "--force", check=True)
    assert mount.status()["dirty"]["files"] == 0
    assert not (s3.root / other / "new").exists()
    proxy.clear()
    done = mount.cli(*source, mount.path / "k", *flags, check=True)
    assert "the last run left 1 changed file, going to the under-store now" in done.stderr
    wait_for("uploaded", (s3.root / other / "new").exists)
    assert mount.read("k/new") == digest(b"kept")


def test_what_a_killed_daemon_left_goes_up_at_the_next_mount(
    mounting: Mounts, s3: FastS3, bucket: str, other: str, proxy: FaultProxy
) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, expected_logs=LATER)
    client(mount).attach(f"s3://{other}", "m", {"endpoint_url": proxy.endpoint, "write_mode": "async-through"})
    proxy.only(lambda request: request.method == "PUT")
    proxy.set(error_probability=1.0)
    shell(mount, 'echo -n kept > "$1/m/new"').check_returncode()
    mount.kill()
    mount.cli("unmount", mount.path, check=True)
    proxy.clear()
    done = mount.try_mount()
    assert done.returncode == 0
    assert f"s3://{other}: the last run left 1 changed file, going to the under-store now" in done.stderr
    assert mount.read("m/new") == digest(b"kept")
    wait_for("uploaded", (s3.root / other / "new").exists)


def test_detach_and_unmount_and_persist_bring_everything_up(mount: Mount, s3: FastS3, other: str) -> None:
    attach(mount, s3, other, "m", write_mode="async-through")
    shell(mount, 'for i in $(seq 40); do echo -n $i > "$1/m/n$i"; done').check_returncode()
    detach(mount, "m")
    assert all((s3.root / other / f"n{i}").read_bytes() == str(i).encode() for i in range(1, 41))
    attach(mount, s3, other, "m", write_mode="async-through")
    shell(mount, 'echo -n 1 > "$1/m/p"').check_returncode()
    mount.cli("persist", mount.path, check=True)
    assert (s3.root / other / "p").exists()
    refused(mount.cli("persist", mount.path / "m/none"), "m/none: there is no such file or directory")
    shell(mount, 'for i in $(seq 40); do echo -n $i > "$1/m/u$i"; done').check_returncode()
    mount.unmount().check_returncode()
    assert all((s3.root / other / f"u{i}").exists() for i in range(1, 41))


def test_detached_by_a_daemon_that_dies_then(mounting: Mounts, s3: FastS3, bucket: str, other: str, tmp_path: Path) -> None:
    once = tmp_path / "once"
    mount = mounting(
        f"s3://{bucket}", endpoint_url=s3.endpoint, keeper=True, expected_logs=[DIED],
        environment={DIE_AT: "detach.recorded", DIE_ONCE: str(once)},
    )  # fmt: skip
    attach(mount, s3, other, "m", write_mode="async-through")
    shell(mount, 'echo -n new > "$1/m/new"').check_returncode()
    before = mount.pid
    once.touch()
    refused(mount.cli("detach", mount.path / "m", "--force"), "the daemon broke off")
    wait_for("another one serves", lambda: mount.serves_as_successor_of(before))
    assert not once.exists()
    assert set(volumes(mount)) == {""}
    assert mount.error("stat", f"{mount.path}/m") == "ENOENT"
    attach(mount, s3, other, "m")
    assert mount.read("m/new") == digest(b"new")


def test_refresh_load_free_and_locate_reach_into_an_attached_store(mount: Mount, s3: FastS3, other: str) -> None:
    attach(mount, s3, other, "d/m")
    assert mount.error("stat", f"{mount.path}/d/m/later") == "ENOENT"
    put(s3, other, "later", b"later")
    mount.cli("refresh", mount.path / "d/m/later", check=True)
    assert mount.read("d/m/later") == digest(b"later")
    done = mount.cli("load", mount.path / "d/m", check=True)
    assert "3 files loaded" in done.stdout
    assert "d/m/x: " in mount.cli("locate", mount.path / "d/m/x", check=True).stdout
    assert "4 files freed" in mount.cli("free", mount.path / "d/m", check=True).stdout
    refused(mount.cli("free", mount.path / "d/m/x", mount.path / "a"), "in several under-stores of the mount")


def test_wrong_orders_are_one_line_and_change_nothing(mount: Mount, s3: FastS3, bucket: str, other: str) -> None:
    wrong: list[tuple[str, str, dict[str, object], str]] = [
        (other, "", {}, "is the mountpoint itself"),
        (other, "d/../m", {}, "must be relative to the mount, without empty parts"),
        (other, "none/m", {}, "cannot be attached there"),
        (other, "a/m", {}, "cannot be attached there"),
        (other, "d/" + "n" * 256, {}, "of at most 255 bytes"),
        ("no-such-bucket", "m", {}, "create the bucket or correct its name"),
        (bucket, "m", {}, f"is in this mount already, at {mount.path}"),
        (other, "m", {"write_mode": "never"}, "write_mode"),
        (other, "m", {"allow_other": True}, "allow_other: no setting of an attached under-store"),
    ]
    for name, path, options, text in wrong:
        with pytest.raises(DaemonRefused, match=re.escape(text)):
            attach(mount, s3, name, path, **options)
    assert set(volumes(mount)) == {""}
    refused(by_command(mount, s3, "no-such-bucket", "m"), "create the bucket or correct its name")
    refused(mount.cli("detach", mount.path / "m"), "nothing is attached there")
    refused(by_command(mount, s3, other, "../m"), "is not in a luxfuse mount")
    attach(mount, s3, other, "m")
    refused(by_command(mount, s3, new_bucket(s3), "m"), f"s3://{other} is attached there already")
    with pytest.raises(DaemonRefused, match=f"is in this mount already, at {mount.path}/m"):
        attach(mount, s3, other, "n")
    mount.kill()
    refused(mount.cli("detach", mount.path / "m"), "has died")
    refused(by_command(mount, s3, other, "n"), "has died")


@pytest.mark.usefixtures("plain_user")
def test_as_a_plain_user(mounting: Mounts, s3: FastS3, bucket: str, other: str) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, plain_user=True)
    by_command(mount, s3, other, "m").check_returncode()
    assert mount.read("m/x") == digest(content("x", 30_000))
    shell(mount, 'echo -n new > "$1/m/new"').check_returncode()
    assert (s3.root / other / "new").read_bytes() == b"new"
    mount.remount()
    assert mount.read("m/new") == digest(b"new")
    detach(mount, "m")
    assert mount.error("stat", f"{mount.path}/m") == "ENOENT"


def test_two_operators_at_once(mount: Mount, s3: FastS3, other: str) -> None:
    done: list[subprocess.CompletedProcess[str]] = []

    def run(*arguments: str) -> None:
        done.append(mount.cli(*arguments))

    def together(*arguments: str) -> list[int]:
        done.clear()
        threads = [threading.Thread(target=run, args=arguments) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(len(each.stderr.splitlines()) == each.returncode for each in done), [each.stderr for each in done]
        return sorted(each.returncode for each in done)

    for _ in range(2):
        assert together("attach", f"s3://{other}", str(mount.path / "m"), "--endpoint-url", s3.endpoint) == [0, 1]
        assert mount.read("m/x") == digest(content("x", 30_000))
        mount.close_readers()
        assert together("detach", str(mount.path / "m")) == [0, 1]
        assert mount.error("stat", f"{mount.path}/m") == "ENOENT"


def test_detaching_frees_what_the_volume_held(mount: Mount, s3: FastS3, other: str) -> None:
    put(s3, other, "big", content("big", 20 * MIB))
    threads = Path(f"/proc/{mount.pid}/task")
    before = len(list(threads.iterdir()))

    def ours() -> set[str]:
        return {
            path for path in open_paths(mount.pid) if path.startswith(str(mount.base)) and "/staging/spare-" not in path
        }

    held = ours()
    for _ in range(3):
        attach(mount, s3, other, "m")
        assert mount.read("m/big") == digest(content("big", 20 * MIB))
        mount.read("m/x")
        shell(mount, 'echo > "$1/m/new"').check_returncode()
        assert ours() > held
        detach(mount, "m")
        wait_for("its files are closed", lambda: ours() == held)
    wait_for("its threads have ended", lambda: len(list(threads.iterdir())) <= before + 8)


def test_readers_notice_nothing_beside_it_and_only_estale_inside(
    mount: Mount, s3: FastS3, bucket: str, other: str, tmp_path: Path
) -> None:
    versions: dict[str, dict[str, list[object]]] = {bucket: {}, other: {}}
    for name, size in (("small", 50_000), ("large", 20 * MIB)):  # in passthrough, and copied
        (tmp_path / name).write_bytes(content(name, size))
        for each, key in ((bucket, name), (other, f"changing-{name}")):  # not mapped: ESTALE would be SIGBUS
            put(s3, each, f"d/{key}", content(name, size))
            versions[each][key] = [size, str(tmp_path / name)]
    beside, inside = mount.reader(), mount.reader()
    attach(mount, s3, other, "d/m")
    beside.send("stress", f"{mount.path}/d", versions[bucket], 5.0, 1, 11)
    inside.send("stress", f"{mount.path}/d/m/d", versions[other], 5.0, 2)
    while not beside.answered():
        *_, last = client(mount).detach("d/m", force=True)
        assert last["done"]
        while "d/m" not in volumes(mount) and not beside.answered():
            with contextlib.suppress(DaemonRefused):  # files are still open from before
                attach(mount, s3, other, "d/m")
    outside = beside.take()
    assert outside["problems"] == []
    assert (outside["stale"], outside["missing"]) == (0, 0)
    assert outside["reads"] > 0
    # EINVAL: where fstat gives ESTALE, Python's mmap maps 0 bytes.
    assert [line for line in inside.take()["problems"] if "OSError(22," not in line] == []
