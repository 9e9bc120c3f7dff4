"""What operators do with a live mount: real commands, their real output, and what comes of it."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import MIB, Mount, Mounts, content, digest, wait_for

KIB = 1 << 10
MEASURED = {"cache room", "cache speed", "http", "open files"}
"""What the doctor says of the machine that the tests run on, and may warn of."""


@pytest.fixture
def tree(fill: Callable[..., None]) -> dict[str, bytes]:
    objects = {f"d/{n % 4}/{n:03}.bin": content(n, 20 * KIB + n) for n in range(60)}
    objects |= {"big": content("big", 5 * MIB + 7), "d/empty": b"", "odd/a b\u00e9.txt": content("odd", KIB)}
    fill(objects)
    return objects


@pytest.fixture
def mount(mounting: Mounts, s3: FastS3, bucket: str, tree: dict[str, bytes]) -> Mount:
    return mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)


def refused(done: subprocess.CompletedProcess[str], *texts: str, code: int = 1) -> None:
    assert done.returncode == code, (done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert all(line.startswith("luxfuse: ") for line in lines), done.stderr
    for text in texts:
        assert any(text in line for line in lines), (text, done.stderr)


# -- doctor


def test_the_doctor_looks_at_a_mount(mounting: Mounts, proxy: FaultProxy, bucket: str, tree: dict[str, bytes]) -> None:
    mount = mounting(
        f"s3://{bucket}",
        endpoint_url=proxy.endpoint,
        expected_logs=["cannot be reached"],
    )

    def doctor(*arguments: str) -> dict[str, str]:
        done = mount.cli("doctor", mount.path, "--json", *arguments)
        assert done.stderr == ""
        said = json.loads(done.stdout)
        assert done.returncode == (1 if said["failures"] else 0)
        return {check["name"]: check["state"] for check in said["checks"]}

    well = doctor()
    assert {name: state for name, state in well.items() if state != "ok" and name not in MEASURED} == {}
    assert {"kernel", "mounting", "passthrough", "mount", "store", "backlog"} <= well.keys()
    assert "put" not in well, "the mount's options are not known"
    with_options = doctor("--endpoint-url", proxy.endpoint)
    assert {"http", "credentials", "put", "delete"} <= with_options.keys()
    assert "FAIL" not in with_options.values()
    proxy.outage(True)
    with mount.impatient():
        mount.error("file", f"{mount.path}/big")
        wait_for("it is away", lambda: mount.status()["understore"]["state"] == "unreachable")
    assert doctor()["store"] == "FAIL"
    proxy.outage(False)


# -- load


def test_load_brings_everything_and_reads_ask_nobody(mount: Mount, tree: dict[str, bytes]) -> None:
    done = mount.cli("load", mount.path, check=True)
    size = sum(map(len, tree.values())) / MIB
    assert done.stdout == f"{mount.path}: {len(tree) - 1} files loaded ({size:.1f} MiB), 1 there already\n"
    assert done.stderr == ""
    before = mount.status()["understore"]
    assert before["heads"] == 0
    for name, data in tree.items():
        assert mount.read(name) == digest(data)
    after = mount.status()["understore"]
    assert after["gets"] == before["gets"]
    again = mount.cli("load", mount.path / "d", mount.path / "big", check=True)
    assert again.stdout == f"{mount.path}: 0 files loaded (0 B), 62 there already\n"
    assert mount.status()["understore"]["gets"] == before["gets"]


def test_load_of_patterns_lists_and_odd_names(mount: Mount, tree: dict[str, bytes], tmp_path: Path) -> None:
    assert "30 files loaded" in mount.cli("load", f"{mount.path}/d/[02]/*.bin", check=True).stdout
    listed = mount.base / "list"
    listed.write_text(f"{mount.path}/odd/a b\u00e9.txt\n{mount.path}/d/1/001.bin\n")
    assert "2 files loaded" in mount.cli("load", "--from-file", listed, check=True).stdout
    done = mount.cli("load", f"{mount.path}/nothing*", mount.path / "gone", mount.path / "big")
    refused(done, "nothing*: nothing matches", "gone: there is no such file or directory")
    assert done.stdout == f"{mount.path}: 1 file loaded (5.0 MiB), 2 failed\n"
    refused(mount.cli("load", tmp_path / "elsewhere"), "is not in a luxfuse mount")
    refused(mount.cli("load"), "no path is given", code=2)


def test_a_load_survives_a_restart(mounting: Mounts, proxy: FaultProxy, bucket: str, tree: dict[str, bytes]) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.cli("load", mount.path / "d" / "0", check=True)
    mount.kill()
    mount.cli("unmount", mount.path, check=True)
    mount.mount()
    done = mount.cli("load", mount.path / "d", check=True)
    assert done.stdout.startswith(f"{mount.path}: 45 files loaded")
    assert "16 there already" in done.stdout


def test_a_load_in_the_background_is_shown_and_stopped_by_another_operator(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None]
) -> None:
    fill({f"many/{n:04}": content(n, 64 * KIB) for n in range(400)})
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options={"max_requests": 2})
    s3.set(latency_ms=200)  # 40 s for all: commands may take long, and it is stopped soon
    try:
        begun = mount.cli("load", "--background", mount.path, check=True)
        assert begun.stdout == f"load 1 of {mount.path} has begun; see: luxfuse load --progress {mount.path}\n"
        wait_for("the walk has found some", lambda: " to come" in mount.cli("load", "--progress", mount.path).stdout)
        shown = mount.cli("load", "--progress", mount.path, check=True).stdout
        assert re.search(r"load 1 \(\.\): running, \d+ files? loaded \(.*\), (at least )?\d+ to come\n$", shown), shown
        stopped = mount.cli("load", "--stop", mount.path / "many", check=True)
        assert stopped.stdout == f"{mount.path}: 1 load stopped\n"
        shown_again = mount.cli("load", "--progress", mount.path)
        assert shown_again.returncode == 1
        assert "load 1 (.): stopped, " in shown_again.stdout
    finally:
        s3.set(latency_ms=0)
    wait_for("what was on its way", lambda: mount.status()["cache"]["in_flight_bytes"] == 0)
    there = mount.status()["cache"]["objects"]
    assert 0 < there < 400
    done = mount.cli("load", mount.path, check=True)
    assert f"{there} there already" in done.stdout


def test_two_operators_load_the_same_at_once(mount: Mount, tree: dict[str, bytes]) -> None:
    outcomes: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(mount.cli("load", mount.path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in outcomes] == [0, 0], outcomes
    # One for each small file, three for the large one.
    assert mount.gets() == len(tree) - 2 + 3


def test_a_load_that_is_too_large_for_the_cache_says_so(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None]
) -> None:
    fill({f"d/{n:02}": content(n, MIB) for n in range(20)})
    mount = mounting(f"s3://{bucket}", "--cache-size", "8MiB", endpoint_url=s3.endpoint)
    done = mount.cli("load", mount.path)
    refused(done, "13 files (13.0 MiB) left out: what is asked for is more than the cache holds (7.")
    assert done.stderr.count("\n") == 1
    assert done.stdout == f"{mount.path}: 7 files loaded (7.0 MiB), 13 left out\n"
    status = mount.status()
    assert status["cache"]["evictions"] == 0
    assert status["understore"]["gets"] == 7


def test_a_load_while_the_store_is_away_ends(
    mounting: Mounts, proxy: FaultProxy, bucket: str, tree: dict[str, bytes]
) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    mount.cli("load", mount.path / "d" / "0", check=True)
    assert mount.read("d/0/000.bin") == digest(tree["d/0/000.bin"])
    proxy.outage(True)
    with mount.impatient():
        done = mount.cli("load", mount.path / "d")
    assert done.returncode == 1
    assert done.stderr
    assert mount.read("d/0/000.bin") == digest(tree["d/0/000.bin"])


def test_commands_of_a_dead_daemon_say_so(mount: Mount) -> None:
    mount.kill()
    for command in (("load", mount.path), ("load", "--progress", mount.path), ("load", "--stop", mount.path)):
        refused(mount.cli(*command), "has died", "luxfuse unmount")


# -- free and locate


def test_free_drops_what_is_not_in_use(mount: Mount, tree: dict[str, bytes]) -> None:
    mount.cli("load", mount.path, check=True)
    reader = mount.reader()
    reader("open", "it", f"{mount.path}/d/1/001.bin")
    done = mount.cli("free", mount.path / "d", check=True)
    assert done.stdout.endswith("59 files freed (1.4 MiB), 1 stay: 1 open, or being loaded\n"), done.stdout
    assert len(mount.cache_files()) == 3
    assert mount.status()["tiers"][0]["used_bytes"] == mount.disk_bytes()
    reader.close()
    for name in ("d/1/001.bin", "d/2/002.bin", "big"):
        assert mount.read(name) == digest(tree[name])
    again = mount.cli("free", mount.path / "gone", mount.path)
    refused(again, "gone: there is no such file or directory")
    # A close is answered before the daemon hears of it.
    wait_for("nothing is open", lambda: mount.cli("free", mount.path).returncode == 0 and mount.cache_files() == [])


def test_free_keeps_what_the_store_has_not_got(mounting: Mounts, proxy: FaultProxy, bucket: str) -> None:
    mount = mounting(f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=proxy.endpoint)
    mount.run(["ls", mount.path], check=True)
    proxy.outage(True)
    mount.run(["sh", "-c", f"printf content > {mount.path}/new"], check=True)
    done = mount.cli("free", mount.path, "--json", check=True)
    (document,) = json.loads(done.stdout)
    assert document["kept"] == {"is not in the under-store yet": 1}
    located = json.loads(mount.cli("locate", mount.path / "new", "--json", check=True).stdout)
    assert located[0]["state"] == "dirty"
    proxy.outage(False)
    mount.cli("persist", mount.path, check=True)


def test_locate_shows_pages_and_tiers(
    mounting: Mounts, s3: FastS3, bucket: str, tree: dict[str, bytes], tmp_path: Path
) -> None:
    options = {"whole_file_threshold": "1MiB", "readahead": "0"}
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint, options=options)
    mount.cli("load", mount.path / "d", check=True)
    done = mount.cli("locate", mount.path / "big", mount.path, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == f"{mount.path}/big: 5.0 MiB"
    assert lines[1] == "  under-store only: pages 0-5"
    assert lines[2] == f"{mount.path}: 60 whole files cached"
    assert lines[3].startswith("  ssd: 60 files (")
    assert lines[3].endswith(f"in {mount.cache}")
    mount.cli("load", mount.path / "big", check=True)
    (found,) = json.loads(mount.cli("locate", mount.path / "big", "--json", check=True).stdout)
    (place,) = found["places"]
    assert (place["tier"], place["pages"], place["bytes"]) == ("ssd", "0-5", len(tree["big"]))
    assert Path(place["file"]).read_bytes() == tree["big"]
    refused(mount.cli("locate", mount.path / "gone"), "gone: there is no such file or directory")
    refused(mount.cli("locate", tmp_path), "is not in a luxfuse mount")
    mount.kill()
    for command in ("free", "locate"):
        refused(mount.cli(command, mount.path), "has died")


# -- stats


def test_stats_and_metrics_show_what_happened(mounting: Mounts, s3: FastS3, bucket: str, tree: dict[str, bytes]) -> None:
    mount = mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)
    s3.set(latency_ms=30)
    try:
        mount.cli("load", mount.path / "d", check=True)
    finally:
        s3.set(latency_ms=0)
    get = mount.status()["latency"]["understore"]["get"]
    assert get["count"] == 60
    assert get["p50_s"] > 0.025
    shown = mount.cli("stats", mount.path, check=True).stdout
    assert shown.startswith(f"{mount.path}  s3://{bucket}\n  state          serving, up ")
    for text in ("  cache (ssd) ", "  under-store ", "  kernel ", "  not uploaded   nothing\n"):
        assert text in shown, shown
    metrics = mount.cli("metrics", mount.path, check=True).stdout
    assert 'luxfuse_request_seconds_count{kind="get"} 60.0' in metrics
    mount.do("stat", f"{mount.path}/d/0/000.bin")
    assert mount.status()["latency"]["fuse"]["lookup"]["count"] > 0
    mount.kill()
    refused(mount.cli("stats", mount.path, "--once"), "has died")


def test_what_the_store_costs_is_shown_where_there_is_a_price_table(
    mounting: Mounts, s3: FastS3, bucket: str, tree: dict[str, bytes], tmp_path: Path
) -> None:
    config = tmp_path / "luxfuse.toml"
    config.write_text('[prices]\nget = 1000\nput = 5000\nget_gb = 0.0\ncurrency = "EUR"\n')
    mount = mounting(f"s3://{bucket}", "--config", str(config), endpoint_url=s3.endpoint)
    assert "about 0.00 EUR since the mount" in mount.cli("status", mount.path, check=True).stdout
    mount.cli("load", mount.path / "d", check=True)
    mount.run(["sh", "-c", f"printf content > {mount.path}/new"], check=True)
    store = mount.status()["understore"]
    assert (store["gets"], store["currency"]) == (60, "EUR")
    assert store["cost"] == 60 + 5 * store["puts"]
    for command in ("status", "stats"):
        assert f"about {store['cost']:.2f} EUR since the mount" in mount.cli(command, mount.path, check=True).stdout
    assert f"luxfuse_understore_cost {store['cost']}" in mount.cli("metrics", mount.path, check=True).stdout
    mount.remount("--config", "/dev/null")
    assert "cost" not in mount.cli("status", mount.path, check=True).stdout


# -- limits


def test_bandwidth_limits_hold_through_a_mount(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None]
) -> None:
    data = content("big", 6 * MIB)
    fill({"big": data, "small": b"small"})
    mount = mounting(
        f"s3://{bucket}", "--bandwidth-limit", "2MiB", "--upload-bandwidth-limit", "2MiB", endpoint_url=s3.endpoint
    )
    began_s = time.monotonic()
    assert mount.read("big") == digest(data)
    # The last run of 2 MiB goes when those before it are paid for.
    assert time.monotonic() - began_s >= (6 - 2) / 2 - 0.2
    began_s = time.monotonic()
    for name in ("copy", "another"):
        mount.run(["cp", mount.path / "big", mount.path / name], check=True)
    assert time.monotonic() - began_s >= 6 / 2 - 0.2
    mount.remount()
    assert mount.read("another") == digest(data)


def test_a_path_is_held_to_the_rate_of_its_rule_and_a_reload_changes_it(
    mounting: Mounts, s3: FastS3, bucket: str, fill: Callable[..., None], tmp_path: Path
) -> None:
    data = {name: content(name, 6 * MIB) for name in ("slow/a", "slow/b", "fast/a")}
    fill(data)
    config = tmp_path / "luxfuse.toml"
    rule = '[[path]]\npattern = "slow/**"\nbandwidth_limit = "{0}"\nupload_bandwidth_limit = "{0}"\n'
    config.write_text(rule.format("64KiB"))
    mount = mounting(f"s3://{bucket}", "--config", str(config), endpoint_url=s3.endpoint)
    with ThreadPoolExecutor() as pool:
        # The first requests go at once, those after them would take minutes.
        held = mount.reader()
        held.send("file", f"{mount.path}/slow/a")
        copying = [
            pool.submit(mount.run, ["cp", f"{mount.path}/fast/a", f"{mount.path}/slow/{name}"], check=True)
            for name in ("one", "another")
        ]
        assert mount.read("fast/a") == digest(data["fast/a"])
        mount.run(["cp", mount.path / "fast/a", mount.path / "fast/new"], check=True)
        assert not held.answered()
        assert not all(copy.done() for copy in copying)
        config.write_text(rule.format("2MiB"))
        assert mount.cli("reload", mount.path, check=True).stdout == f"{mount.path}: changed: path\n"
        assert held.take() == digest(data["slow/a"])
        assert [copy.result().returncode for copy in copying] == [0, 0]
    began_s = time.monotonic()
    assert mount.read("slow/b") == digest(data["slow/b"])
    # The last run of 2 MiB goes when those before it are paid for.
    assert time.monotonic() - began_s >= (6 - 2) / 2 - 0.2
    mount.remount("--config", str(config))
    assert mount.read("slow/another") == digest(data["fast/a"])
