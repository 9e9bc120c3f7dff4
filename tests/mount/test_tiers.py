"""Tiers and eviction policies through real mounts, and the commands and rules that steer them."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.mounted import MIB, Mount, Mounts, content, digest, wait_for

KIB = 1 << 10


def tier(mount: Mount, name: str) -> str:
    return str(mount.do("getxattr", f"{mount.path}/{name}", "user.luxfuse.tier"))


def used(mount: Mount) -> dict[str, int]:
    return {t["name"]: t["used_bytes"] for t in mount.status()["tiers"]}


@pytest.mark.parametrize("passthrough", ["true", "false"], ids=["passthrough", "copying"])
def test_files_are_read_from_memory_and_move_while_they_are_open(
    memory: Path, mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None], passthrough: str
) -> None:
    files = {f"f{n}": content(("tier", n), 2 * MIB) for n in range(8)}
    fill(files)
    mount = mounting(
        f"s3://{bucket}", "--cache-dir", f"{memory}/c,tier=mem,size=10MiB,low_watermark=30%,high_watermark=80%",
        endpoint_url=s3.endpoint, options={"passthrough": passthrough},
    )  # fmt: skip
    reader = mount.reader()
    reader("open", "it", f"{mount.path}/f0")
    assert reader("all", "it") == digest(files["f0"])
    reader("map", "map", f"{mount.path}/f0")
    for name, data in files.items():
        assert mount.read(name) == digest(data)
    gets = mount.gets()
    wait_for("memory is below its high watermark, and nothing moves", lambda: settled(used(mount), 16 * MIB, 8 * MIB))
    assert mount.status()["cache"]["moved_down"] > 0
    assert mount.status()["cache"]["evictions"] == 0
    assert reader("all", "it") == digest(files["f0"])
    assert reader("mapped", "map") == digest(files["f0"])
    for name, data in files.items():
        assert mount.read(name) == digest(data)
    assert mount.gets() == gets, "nothing was fetched twice"
    reader("close", "it")
    reader("unmap", "map")
    mount.remount()
    for name, data in files.items():
        assert mount.read(name) == digest(data)
    assert mount.gets() == 0
    assert mount.status()["fuse"]["errors"] == 0


def settled(tiers: dict[str, int], total: int, most_in_memory: int) -> bool:
    """Whether each file is in one tier, and memory where it is let alone."""
    return tiers["ssd"] + tiers["mem"] == total and tiers["mem"] <= most_in_memory


def test_an_epoch_hits_the_part_of_the_data_that_fits(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None]
) -> None:
    """Training: everything once an epoch, in random order. Half of it fits."""
    names = [f"{n:03}" for n in range(480)]
    fill({f"d/{name}": content(("epoch", name), 128 * KIB) for name in names})
    mount = mounting(f"s3://{bucket}", "--cache-size", "30MiB", endpoint_url=s3.endpoint)
    order = random.Random(5)
    hits = []
    for _ in range(4):
        before = mount.gets()
        order.shuffle(names)
        mount.do("file_order", f"{mount.path}/d", names)
        hits.append(1 - (mount.gets() - before) / len(names))
    assert hits[0] == 0
    assert sum(hits[2:]) / 2 >= 0.95 * 0.5, hits
    assert mount.status()["cache"]["evictions"] > 0
    assert used(mount)["ssd"] <= 30 * MIB


def test_pins_and_time_limits_by_command(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill({f"d/f{n}": content(("pin", n), MIB) for n in range(8)} | {"other": b"other"})
    mount = mounting(f"s3://{bucket}", "--cache-size", "4MiB", endpoint_url=s3.endpoint)
    assert mount.read("d/f0") == digest(content(("pin", 0), MIB))
    assert mount.cli("pin", mount.path / "d/f0", check=True).stderr == ""
    for n in range(8):
        mount.read(f"d/f{n}")
    assert mount.do("getxattr", f"{mount.path}/d/f0", "user.luxfuse.state") == "cached"
    assert mount.status()["cache"]["pinned_bytes"] == MIB
    done = mount.cli("pin", mount.path / "d", check=True)
    assert "what is pinned is more than the cache can hold" in done.stderr
    mount.remount()
    assert (mount.status()["cache"]["pins"], mount.status()["cache"]["pinned_bytes"] >= MIB) == (2, True)
    mount.cli("unpin", mount.path / "d", check=True)
    assert mount.status()["cache"]["pinned_bytes"] == 0
    for arguments, text in (
        (("pin", mount.path / "gone"), "gone: there is no such file or directory"),
        (("unpin", mount.path / "d"), "d: is not pinned"),
        (("pin", tmp_path), f"{tmp_path} is not in a luxfuse mount"),
        (("ttl", mount.path / "d", "never"), "d: has no time limit"),
    ):
        done = mount.cli(*arguments)
        assert (done.returncode, text in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr
    for arguments, text in (
        (("ttl", mount.path / "d", "7d", "--action", "delete"), "add --yes"),
        (("ttl", mount.path / "d", "soon"), "'soon' is not a duration"),
        (("ttl", mount.path / "d", "7d", "--action", "burn"), "write free or delete"),
    ):
        done = mount.cli(*arguments)
        assert (done.returncode, text in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr
    mount.cli("ttl", mount.path / "d", "7d", check=True)
    assert mount.status()["cache"]["time_limits"] == 1
    mount.cli("ttl", mount.path / "d", "never", check=True)
    assert mount.status()["cache"]["time_limits"] == 0
    mount.kill()
    done = mount.cli("pin", mount.path / "d")
    assert (done.returncode, "has died" in done.stderr) == (1, True)


def test_rules_and_their_change_while_mounted(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill({"keep/a": b"kept", "secret/b": content("b", MIB), "secret/d": content("d", MIB), "fixed/c": b"fixed"})
    file = tmp_path / "luxfuse.toml"
    file.write_text('metadata_ttl = "60s"\n[[path]]\npattern = "secret/**"\nread_mode = "no-cache"\n')
    mount = mounting(
        f"s3://{bucket}", "--config", str(file), endpoint_url=s3.endpoint,
    )  # fmt: skip
    for _ in range(2):
        assert mount.read("secret/b") == digest(content("b", MIB))
    assert mount.do("getxattr", f"{mount.path}/secret/b", "user.luxfuse.cached_bytes") == "0"
    assert mount.cli("reload", mount.path, check=True).stdout == f"{mount.path}: nothing has changed\n"
    mount.run(["sh", "-c", f"echo x > {mount.path}/fixed/new"], check=True)

    rules = '[[path]]\npattern = "fixed/**"\nread_only = true\n[[path]]\npattern = "keep/*"\npin = true\n'
    file.write_text(f'metadata_ttl = "1s"\n{rules}')
    assert mount.read("keep/a") == digest(b"kept")
    assert mount.cli("reload", mount.path, check=True).stdout == f"{mount.path}: changed: path, metadata_ttl\n"
    assert mount.status()["cache"]["pinned_bytes"] > 0
    done = mount.run(["sh", "-c", f"echo x > {mount.path}/fixed/more; rm {mount.path}/fixed/new"])
    assert done.stderr.count("Read-only file system") == 2, done.stderr
    assert mount.read("secret/d") == digest(content("d", MIB))
    assert mount.do("getxattr", f"{mount.path}/secret/d", "user.luxfuse.state") == "cached"

    good = file.read_text()
    for text, reason in (
        ("metadata_ttl = \n", "line 1"),
        ('metadata_ttl = "1s"\n\n[[path]]\npattern = "/x"\npin = true\n', "line 3: [[path]] number 1: pattern '/x'"),
        ('metadata_ttl = "1s"\nnegative_ttl = "soon"\n', "line 2: negative_ttl: 'soon' is not a duration"),
        ('metadata_ttl = "1s"\nmax_requests = 3\n', "max_requests cannot change while mounted"),
    ):
        file.write_text(text)
        done = mount.cli("reload", mount.path)
        assert (done.returncode, reason in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr
        assert "the configuration stays as it was" in done.stderr
    assert mount.status()["cache"]["pinned_bytes"] > 0, "the old one stays"

    mount.expected_logs.append("the configuration stays as it was: .*max_requests")
    os.kill(mount.pid, signal.SIGHUP)
    wait_for("it is refused", lambda: "the configuration stays as it was" in mount.log())
    file.write_text(good.replace("pin = true", "pin = false"))
    os.kill(mount.pid, signal.SIGHUP)
    wait_for("it is taken up", lambda: mount.status()["cache"]["pinned_bytes"] == 0)
    file.unlink()
    assert "No such file" in mount.cli("reload", mount.path).stderr


def test_a_quota_of_a_path(mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None], tmp_path: Path) -> None:
    fill({f"few/{n}": content(("few", n), MIB) for n in range(8)} | {f"all/{n}": content(n, MIB) for n in range(4)})
    file = tmp_path / "luxfuse.toml"
    file.write_text('[[path]]\npattern = "few/**"\nmax_cached = "3MiB"\n')
    mount = mounting(f"s3://{bucket}", "--config", str(file), endpoint_url=s3.endpoint)
    for n in range(4):
        assert mount.read(f"all/{n}") == digest(content(n, MIB))
    for n in range(8):
        assert mount.read(f"few/{n}") == digest(content(("few", n), MIB))
    assert used(mount)["ssd"] == 7 * MIB
    file.write_text('[[path]]\npattern = "few/**"\nmax_cached = "1MiB"\n')
    mount.cli("reload", mount.path, check=True)
    assert used(mount)["ssd"] == 5 * MIB
    mount.remount()
    for n in range(8):
        assert mount.read(f"few/{n}") == digest(content(("few", n), MIB))
    assert used(mount)["ssd"] == 5 * MIB


@pytest.mark.parametrize("passthrough", ["true", "false"], ids=["passthrough", "copying"])
def test_directories_come_and_go_while_mounted(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None], tmp_path: Path, passthrough: str
) -> None:
    files = {f"f{n}": content(("dir", n), MIB) for n in range(6)}
    fill(files)
    file = tmp_path / "luxfuse.toml"
    mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint, options={"passthrough": passthrough})
    mount.flags = [*(flag for flag in mount.flags if flag not in ("--cache-dir", str(mount.cache))), "--config", str(file)]
    home, other = mount.cache, tmp_path / "other"

    def configure(*directories: str) -> str:
        file.write_text(f"cache_dir = {list(directories)}\n")
        return mount.cli("reload", mount.path).stderr if mount.mounted else ""

    def read_all() -> None:
        for name, data in files.items():
            assert mount.read(name) == digest(data)

    configure(f"{home},size=20MiB")
    mount.mount()
    read_all()
    assert configure(f"{home},size=20MiB", f"{other},tier=mem,size=20MiB") == ""
    fill({"new": content("new", MIB)})
    mount.cli("refresh", mount.path, check=True)
    assert mount.read("new") == digest(content("new", MIB))
    assert tier(mount, "new") == "mem"
    reader = mount.reader()
    reader("open", "it", f"{mount.path}/new")
    assert configure(f"{home},size=20MiB") == ""
    assert reader("all", "it") == digest(content("new", MIB))
    reader("close", "it")
    wait_for("it is gone", lambda: [t["name"] for t in mount.status()["tiers"]] == ["ssd"])
    gets = mount.gets()
    read_all()
    assert mount.read("new") == digest(content("new", MIB))
    assert mount.gets() == gets, "it has moved"
    assert "files that are written lie there" in configure(f"{other},size=20MiB")
    assert mount.read("f0") == digest(files["f0"])
    assert configure(f"{home},size=3MiB") == ""
    wait_for("it is smaller", lambda: mount.status()["tiers"][0]["used_bytes"] <= 3 * MIB)
    assert mount.status()["fuse"]["errors"] == 0
