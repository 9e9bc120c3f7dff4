"""Commands against a fake daemon: what they print, what they return, how they fail."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from luxfuse.cli import command_line, launch, main, progress, stats, unmount
from luxfuse.control import registry
from tests.support.mounted import wait_for

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        assert self.err.startswith("luxfuse: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.rstrip("\n")


Run = Callable[..., Outcome]


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("LUXFUSE_STATE_DIR", str(directory))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(
        launch,
        "_command",
        lambda settings, log, fd: [sys.executable, str(Path(__file__).with_name("fake_daemon.py")), str(fd)],
    )
    yield directory
    for record in registry.list_mounts(directory):
        if record.alive:
            os.kill(record.pid, signal.SIGKILL)


@pytest.fixture
def luxfuse(state: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main.guard(lambda: main.run([str(argument) for argument in arguments]))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def test_from_mount_to_unmount(luxfuse: Run, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    assert luxfuse("mount", "fake://ok", where) == Outcome(0, "", "")
    assert "is about to mount there, or still brings changes" in luxfuse("mount", "fake://ok", where).line

    shown = luxfuse("status", where)
    assert shown.code == 0
    assert not [line for line in shown.out.splitlines() if line != line.rstrip()]
    for text in (
        "serving", "up 1 h 1 min", "passthrough", "512.0 MiB of 1.0 GiB (50 %)", "5 gets", "1 failed",
        "about 0.0123 EUR since the mount",
    ):  # fmt: skip
        assert text in shown.out
    assert luxfuse("status").out == shown.out
    assert json.loads(luxfuse("status", where, "--json").out)["source"] == "s3://bucket"
    assert len(json.loads(luxfuse("status", "--json").out)) == 1

    (listed,) = json.loads(luxfuse("list", "--json").out)
    assert (listed["mountpoint"], listed["state"]) == (str(where), "running")
    assert str(where) in luxfuse("list").out
    assert luxfuse("metrics", where).out == "luxfuse_up 1\n"
    assert luxfuse("refresh", where, where / "a/b") == Outcome(0, "", "")
    refreshed = luxfuse("refresh", where / "missing")
    assert refreshed.code == 1
    assert refreshed.line == f"luxfuse: refresh: {where}: missing: no such file"

    assert luxfuse("unmount", where) == Outcome(0, "", "")
    assert luxfuse("list").out == "no mounts\n"
    assert luxfuse("status").out == "no mounts\n"
    assert "is not a luxfuse mount" in luxfuse("unmount", where).line


def test_mounting_fails_with_the_daemons_line(luxfuse: Run, tmp_path: Path) -> None:
    outcome = luxfuse("mount", "fake://error", tmp_path)
    assert outcome.code == 1
    assert outcome.line == "luxfuse: s3://bucket: no such bucket; create it first"


def test_a_daemon_that_dies_is_reported_with_its_log(luxfuse: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcome = luxfuse("mount", "fake://dies", tmp_path / "mnt", "--log-file", log)
    assert outcome.code == 1
    assert "ended before it was ready; see " + str(log) in outcome.line
    assert "about to die" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_is_never_ready_is_ended(luxfuse: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "READY_DEADLINE_S", 0.5)
    assert "was not ready within 0.5 s" in luxfuse("mount", "fake://slow", tmp_path / "mnt").line


def test_a_busy_mount_stays(luxfuse: Run, tmp_path: Path) -> None:
    luxfuse("mount", "fake://busy", tmp_path)
    outcome = luxfuse("unmount", tmp_path)
    assert outcome.code == 1
    assert "is busy: in use by cat (pid 7)" in outcome.line
    assert luxfuse("unmount", tmp_path, "--force").code == 0
    assert luxfuse("list").out == "no mounts\n"


def test_attach_and_detach(luxfuse: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    luxfuse("mount", "fake://ok", tmp_path)
    monkeypatch.setenv("LUXFUSE_METADATA_TTL", "7s")
    monkeypatch.setenv("LUXFUSE_MEMORY_LIMIT", "1GiB")  # of the mount, not of what is attached
    done = luxfuse(
        *("attach", "s3://b", tmp_path / "d/m", "--read-only", "--storage-option", "key=k", "-o", "metadata_ttl=9s,ro"),
        *("--write-mode", "through"),
    )  # fmt: skip
    options = '{"metadata_ttl": "9s", "read_only": true, "storage_options": {"key": "k"}, "write_mode": "through"}'
    assert (done.code, done.line) == (0, f"luxfuse: s3://b at d/m: {options}")
    refused = luxfuse("attach", "s3://b", tmp_path / "taken")
    assert (refused.code, refused.line) == (1, "luxfuse: taken: something is attached there already")
    wrong = luxfuse("attach", "s3://b", tmp_path / "m", "-o", "allow_other")
    assert wrong.code == 2
    assert "allow_other: no setting of an attached under-store" in wrong.line
    assert luxfuse("detach", tmp_path / "d/m") == Outcome(0, "", "")
    busy = luxfuse("detach", tmp_path / "busy")
    assert (busy.code, busy.line) == (1, "luxfuse: busy is busy: in use by cat (pid 7)")
    assert luxfuse("detach", "--force", tmp_path / "busy").code == 0
    nowhere = luxfuse("detach", "/nowhere/m")
    assert nowhere.code == 1
    assert "is not in a luxfuse mount" in nowhere.line


def test_persist(luxfuse: Run, tmp_path: Path) -> None:
    luxfuse("mount", "fake://ok", tmp_path)
    assert luxfuse("persist", tmp_path / "a") == Outcome(0, "", "")
    whole = luxfuse("persist", tmp_path)
    assert (whole.code, whole.line) == (0, f"luxfuse: persist: {tmp_path}: a.tmp: local only (must-cache)")
    failed = luxfuse("persist", tmp_path / "a", tmp_path / "d/open")
    assert (failed.code, failed.line) == (1, f"luxfuse: persist: {tmp_path}: d/open: is open for writing")


def test_what_the_daemon_notes_at_its_start(luxfuse: Run, tmp_path: Path) -> None:
    outcome = luxfuse("mount", "fake://notes", tmp_path)
    assert outcome.code == 0
    assert outcome.line == "luxfuse: the last run left 2 changed files"


def test_a_start_that_takes_long(luxfuse: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "READY_DEADLINE_S", 3.0)
    outcome = luxfuse("mount", "fake://busy-beginning", tmp_path)
    assert outcome.code == 0
    assert outcome.line == "luxfuse: still finishing"


def test_unmounting_drains_and_says_how_far_it_is(luxfuse: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.4)
    luxfuse("mount", "fake://slow-drain", tmp_path)
    outcome = luxfuse("unmount", tmp_path)
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert 1 <= len(lines) <= 3
    for line in lines:
        assert re.fullmatch(rf"luxfuse: {tmp_path}: \d+ files \(\d+\.\d MiB\), \d+\.\d MiB/s, about \d s left", line), line


def test_unmounting_gives_up_where_nothing_moves(luxfuse: Run, tmp_path: Path) -> None:
    luxfuse("mount", "fake://stuck", tmp_path)
    outcome = luxfuse("unmount", tmp_path)
    assert outcome.code == 1
    assert outcome.line == (
        f"luxfuse: {tmp_path}: 2 files (5.0 MiB) and 1 delete are still not in the under-store, without progress for 60 s "
        f"(big: PUT 'big': 503); it stays mounted: try again, or leave them to the next mount with: "
        f"luxfuse unmount --force {tmp_path}"
    )
    wait_for("it goes on", lambda: json.loads(luxfuse("status", tmp_path, "--json").out)["state"] == "serving")
    assert luxfuse("unmount", tmp_path, "--lazy").code == 0


def test_a_hung_daemon(luxfuse: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmount, "DEADLINE_S", 0.3)
    monkeypatch.setattr(unmount, "_LAZY_DEADLINE_S", 0.3)
    monkeypatch.setattr(unmount, "_TERM_PATIENCE_S", 0.3)
    monkeypatch.setattr("luxfuse.control.client.ControlClient.__init__.__defaults__", (0.3,))
    assert luxfuse("mount", "fake://hung", tmp_path).code == 0
    assert "does not answer within 0.3 s" in luxfuse("status", tmp_path).line
    assert "does not answer" in luxfuse("status").line
    assert "--force" in luxfuse("unmount", tmp_path).line
    assert luxfuse("unmount", tmp_path, "--lazy").code == 0
    assert luxfuse("unmount", tmp_path, "--force").code == 0
    assert luxfuse("list").out == "no mounts\n"


def test_a_dead_daemon(luxfuse: Run, tmp_path: Path, state: Path) -> None:
    luxfuse("mount", "fake://ok", tmp_path)
    (record,) = registry.list_mounts(state)
    pidfd = os.pidfd_open(record.pid)
    os.kill(record.pid, signal.SIGKILL)
    unmount._ended(record, pidfd, time.monotonic() + 5)
    os.close(pidfd)
    outcome = luxfuse("status", tmp_path)
    assert outcome.code == 1
    assert f"the daemon (pid {record.pid}) has died" in outcome.line
    assert json.loads(luxfuse("list", "--json").out)[0]["state"] == "dead"
    assert luxfuse("unmount", tmp_path).code == 0
    assert luxfuse("list").out == "no mounts\n"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nonsense"], 2, "No such command"),
        (["mount", "--nonsense"], 2, "No such option: --nonsense; see: luxfuse mount --help"),
        (["mount"], 2, "source is missing"),
        (["mount", "s3://b"], 2, "mountpoint is missing"),
        (["mount", "s3://b", "/m", "--write-mode", "back"], 2, "--write-mode: 'back' is not one of cache-through"),
        (["mount", "s3://b", "/m", "-o", "on_conflict=merge"], 2, "on_conflict"),
        (["mount", "s3://b", "/m", "-o", "novelty=1"], 2, "-o novelty: unknown option"),
        (["mount", "s3://b", "/m", "--cache-size", "big"], 2, "--cache-size: 'big' is not a size"),
        (["mount", "s3://b", "/m", "--driver", "boto"], 2, "driver"),
        (["mount", "s3://b", "/m", "--storage-option", "secret"], 2, "--storage-option: write it as key=value"),
        (["mount", "s3://b", "/m", "--config", "/nowhere.toml"], 2, "/nowhere.toml: No such file"),
        (["unmount"], 2, "Missing argument"),
        (["status", "/nowhere"], 1, "/nowhere is not in a luxfuse mount; see: luxfuse list"),
        (["metrics", "/nowhere"], 1, "is not in a luxfuse mount"),
        (["refresh", "/nowhere"], 1, "is not in a luxfuse mount"),
        (["persist", "/nowhere"], 1, "is not in a luxfuse mount"),
        (["persist"], 2, "Missing argument"),
        (["unmount", "/nowhere"], 1, "is not a luxfuse mount"),
        (["s3://b", "/m", "-o", "novelty"], 2, "-o novelty: unknown option"),
        (["s3://b"], 2, "write: mount.luxfuse SOURCE MOUNTPOINT"),
    ],
)
def test_errors_are_one_line(luxfuse: Run, arguments: list[str], code: int, text: str) -> None:
    outcome = luxfuse(*arguments)
    assert outcome.code == code
    assert text in outcome.line
    assert outcome.out == ""


def test_help_and_version(luxfuse: Run) -> None:
    assert luxfuse("--version").out.startswith("luxfuse ")
    shown = luxfuse("--help")
    assert shown.code == 0
    commands = re.findall(r"^  (\w+) ", shown.out.partition("Commands:")[2], re.MULTILINE)
    assert sorted(commands) == sorted(command_line.COMMANDS)
    assert luxfuse().code == 2


def test_a_bug_is_one_line_and_a_log(luxfuse: Run, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("oh\nno")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "list_mounts", broken)
        outcome = luxfuse("list")
    assert outcome.code == 1
    assert outcome.line.startswith("luxfuse: unexpected RuntimeError: oh no: details in ")
    assert "Traceback" in (state / "command-errors.log").read_text()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["status"], ["list"], ["unmount", "/nowhere"], ["mount", "x"], ["load", "/nowhere"]]
)
def test_commands_start_without_heavy_imports(arguments: list[str], tmp_path: Path) -> None:
    # An environment that was made before typer was bounded may hold one that reads it.
    bounded = tuple(map(int, metadata.version("typer").split(".")[:2])) < (0, 29)
    program = (
        "import sys; from luxfuse.cli import main; main.guard(lambda: main.run(sys.argv[1:]))\n"
        "heavy = {'trio', 'pyfuse3', 'obstore', 'fsspec', 'h11', 'prometheus_client', 'rich'}\n"
        "heavy |= {'typer'} if sys.argv[1] == 'load' else set()\n"
        f"heavy |= {{'pydantic'}} if {bounded} else set()\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "LUXFUSE_STATE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.endswith("heavy: []\n")


def test_load(luxfuse: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    luxfuse("mount", "fake://ok", where)
    assert luxfuse("load", where / "a", where) == Outcome(0, f"{where}: 2 files loaded (2.0 MiB)\n", "")
    outcome = luxfuse("load", where / "a", where / "missing")
    assert outcome.code == 1
    assert outcome.out == f"{where}: 1 file loaded (1.0 MiB), 1 failed\n"
    assert outcome.line == f"luxfuse: load: {where}: missing: no such file"
    outcome = luxfuse("load", where / "large")
    assert (outcome.code, outcome.line) == (1, f"luxfuse: load: {where}: 1 file left out: enlarge the cache")

    listed = tmp_path / "list"
    listed.write_text(f"{where}/a\n\n{where}/b c\n")
    assert "2 files loaded" in luxfuse("load", "--from-file", listed).out
    monkeypatch.setattr(sys, "stdin", listed.open())
    assert "3 files loaded" in luxfuse("load", where / "x", "--from-file", "-").out
    assert "No such file or directory" in luxfuse("load", "--from-file", tmp_path / "gone").line


def test_load_in_the_background(luxfuse: Run, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    luxfuse("mount", "fake://ok", where)
    assert luxfuse("load", "--progress", where) == Outcome(0, f"{where}: no load\n", "")
    assert luxfuse("load", "--stop", where) == Outcome(0, f"{where}: no load runs\n", "")
    begun = luxfuse("load", "--background", where / "a", where / "missing")
    assert begun == Outcome(0, f"load 1 of {where} has begun; see: luxfuse load --progress {where}\n", "")
    outcome = luxfuse("load", "--progress", where, where / "a")
    assert outcome.code == 1
    assert outcome.out == f"{where}: load 1 (a, missing): done, 1 file loaded (1.0 MiB), 1 failed\n"
    assert "no such file" in outcome.line
    assert luxfuse("load", "--stop", where) == Outcome(0, f"{where}: 1 load stopped\n", "")


def test_load_wants_paths_of_a_living_mount(luxfuse: Run, tmp_path: Path) -> None:
    assert luxfuse("load").code == 2
    assert "no path is given" in luxfuse("load").line
    assert "exclude each other" in luxfuse("load", tmp_path, "--progress", "--stop").line
    where = tmp_path / "mnt"
    where.mkdir()
    luxfuse("mount", "fake://ok", where)
    outcome = luxfuse("load", where / "a", tmp_path / "elsewhere")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.line == f"luxfuse: {tmp_path / 'elsewhere'} is not in a luxfuse mount; see: luxfuse list"
    (record,) = registry.list_mounts(Path(os.environ["LUXFUSE_STATE_DIR"]))
    os.kill(record.pid, signal.SIGKILL)
    while registry.is_alive(record.directory):
        time.sleep(0.01)
    for flags in ((), ("--background",), ("--progress",), ("--stop",)):
        outcome = luxfuse("load", where / "a", *flags)
        assert outcome.code == 1
        assert "has died" in outcome.line


def test_free(luxfuse: Run, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    luxfuse("mount", "fake://ok", where)
    assert luxfuse("free", where) == Outcome(0, f"{where}: 1 file freed (1.0 MiB)\n", "")
    kept = luxfuse("free", where / "busy", where / "x")
    assert kept.out == (f"{where}: 2 files freed (2.0 MiB), 3 stay: 1 open, or being loaded, 2 open for writing\n")
    assert kept.code == 0
    outcome = luxfuse("free", where / "missing")
    assert (outcome.code, outcome.line) == (1, f"luxfuse: free: {where}: missing: no such file")
    (document,) = json.loads(luxfuse("free", "--json", where / "busy").out)
    assert (document["mountpoint"], document["freed_files"]) == (str(where), 1)
    assert "is not in a luxfuse mount" in luxfuse("free", tmp_path).line


def test_check(luxfuse: Run, tmp_path: Path) -> None:
    where, damaged, broken = (tmp_path / name for name in ("mnt", "damaged", "broken"))
    for path, source in ((where, "ok"), (damaged, "damaged"), (broken, "broken")):
        path.mkdir()
        luxfuse("mount", f"fake://{source}", path)
    assert luxfuse("check", where) == Outcome(0, f"{where}: 3 files checked (3.0 MiB), no problem\n", "")
    found = luxfuse("check", damaged)
    assert (found.code, found.err) == (1, "")
    assert found.out.splitlines() == [
        f"{damaged}: a: page 3 damaged",
        f"{damaged}: /c/objects/ab/abcd: belongs to nothing",
        f"{damaged}: 8 more",
        f"{damaged}: 3 files checked (3.0 MiB), 10 problems",
    ]
    mended = luxfuse("check", damaged, "--repair")
    assert mended.code == 0
    assert mended.out.endswith(f"{damaged}: 3 files checked (3.0 MiB), 10 problems, 10 mended\n")
    document = json.loads(luxfuse("check", damaged, "--json").out)
    assert (document["mountpoint"], document["problems"], document["files"]) == (str(damaged), 10, 3)
    ended = luxfuse("check", broken)
    assert ended.code == 1
    assert ended.line.startswith(f"luxfuse: {broken}: the check ended early: internal error: KeyError; see ")
    assert "is not in a luxfuse mount" in luxfuse("check", tmp_path).line


def test_replicate(luxfuse: Run, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    luxfuse("mount", "fake://ok", where)
    assert luxfuse("replicate", where / "a", "--min", 2, "--max", 3).line == f"luxfuse: replicate: {where}: 2 3"
    assert luxfuse("replicate", where / "a", "--off").line.endswith("0 None")
    assert luxfuse("replicate", where / "a", "--min", 0).line.endswith("0 None")
    outcome = luxfuse("replicate", where / "missing", "--min", 2)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == f"luxfuse: replicate: {where}: missing: no such file"
    for wrong, text in [
        ((), "--min N"), (("--max", 3), "--min N"), (("--min", 3, "--max", 2), "--max 2: is of no use with --min 3"),
        (("--off", "--min", 2), "--off: leave out"), (("--min", 0, "--max", 2), "--max 2"), (("--min", -1), "min"),
    ]:  # fmt: skip
        outcome = luxfuse("replicate", where / "a", *wrong)
        assert outcome.code == 2
        assert text in outcome.line
    assert "  node h:/m" in luxfuse("locate", where / "shared").out.splitlines()
    assert "  not here: pages 4,6" in luxfuse("locate", where / "shared").out.splitlines()


def test_locate(luxfuse: Run, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    luxfuse("mount", "fake://ok", where)
    assert luxfuse("locate", where / "f", where / "d").out.splitlines() == [
        f"{where}/f: 7.0 MiB",
        "  ssd: pages 0-3,5 (5.0 MiB) in /c/objects/ab/abcd",
        "  under-store only: pages 4,6",
        f"{where}/d: 2 whole files, 1 in part, 4 not in the under-store yet cached",
        "  mem: 3 files (1.0 MiB) in /m",
    ]
    outcome = luxfuse("locate", where / "missing", where / "f")
    assert (outcome.code, outcome.line) == (1, f"luxfuse: locate: {where}/missing: no such file")
    assert f"{where}/f" in outcome.out
    found = json.loads(luxfuse("locate", "--json", where / "f").out)
    assert found[0]["places"][0]["pages"] == "0-3,5"
    assert "is not in a luxfuse mount" in luxfuse("locate", tmp_path).line


def test_stats_once(luxfuse: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "INTERVAL_S", 0.01)
    assert "no mount is running" in luxfuse("stats").line
    where = tmp_path / "mnt"
    where.mkdir()
    luxfuse("mount", "fake://ok", where)
    for arguments in ((), (where,), (where, "--once")):
        shown = luxfuse("stats", *arguments)
        assert shown.code == 0
        assert shown.out.startswith(f"{where}  fake://ok\n  state          serving, up 1 h 1 min\n")
        assert "cache (ssd)    512.0 MiB of 1.0 GiB (50 %) in /c" in shown.out
    assert "is not in a luxfuse mount" in luxfuse("stats", tmp_path).line


def test_live_stats_end_cleanly(state: Path, luxfuse: Run, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    luxfuse("mount", "fake://ok", where)
    master, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "luxfuse.cli.main", "stats", where], stdout=terminal, stderr=subprocess.PIPE, cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while shown.count(b"serving, up") < 2:  # drawn again
        shown += os.read(master, 65536)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    os.close(master)
    assert (process.returncode, err) == (0, b"")


def test_words_that_are_not_understood_are_named(luxfuse: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = luxfuse("ttl", tmp_path, "abc")
    assert (failed.code, failed.out) == (2, "")
    assert failed.line == "luxfuse: DURATION: 'abc' is not a duration; write it like 60s, 1h30m or never"
    monkeypatch.setenv("HOME", str(tmp_path))  # where a completion would be installed
    for option in ("--install-completion", "--show-completion", "--version"):
        failed = luxfuse(option, "foo")
        assert (failed.code, failed.out) == (2, "")
        assert failed.line == f"luxfuse: {option}: is written alone, without 'foo'; see: luxfuse --help"
    assert not list(tmp_path.iterdir())
    assert luxfuse("--version").code == 0


def test_a_path_in_no_mount_is_not_taken_for_a_source(luxfuse: Run, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    for path in (where, tmp_path / "missing"):
        for command in (("doctor", path), ("doctor", path, "--read-only"), ("index", "export", path, tmp_path / "m"),
                        ("index", "export", path, tmp_path / "m", "--endpoint-url", "http://x")):  # fmt: skip
            failed = luxfuse(*command)
            assert (failed.code, failed.out) == (1, "")
            assert failed.line == (
                f"luxfuse: {path} is not in a luxfuse mount; see: luxfuse list; "
                f"for a local directory as a source write file://{path}"
            )
    assert list(tmp_path.rglob("*")) == [where], "nothing is written there"
    luxfuse("mount", "fake://ok", where)
    failed = luxfuse("doctor", where / "below")
    assert failed.line == f"luxfuse: {where}/below is not a mountpoint; the mount that it is in is {where}"


def test_a_manifest_of_a_source_that_cannot_be_made(luxfuse: Run, tmp_path: Path) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.mkdir()
    assert (
        luxfuse("index", "export", f"file://{there}", missing / "m").line
        == f"luxfuse: {missing}/m: No such file or directory"
    )
    assert "missing" in luxfuse("index", "export", f"file://{missing}", tmp_path / "m").line
    assert not (tmp_path / "m").exists()


def test_output_that_cannot_be_written(luxfuse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[bool] = []
    monkeypatch.setattr(main, "_give_up_output", lambda: given_up.append(True))
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
        failed = luxfuse("list")
    assert (failed.code, failed.line) == (1, "luxfuse: the output cannot be written: No space left on device")
    assert given_up


def test_a_user_without_a_home_directory(luxfuse: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    for name in ("LUXFUSE_STATE_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for arguments, instead in ((["list"], "LUXFUSE_STATE_DIR"), (["mount", "s3://b", tmp_path], "--cache-dir")):
        failed = luxfuse(*arguments)
        assert (failed.code, failed.line) == (
            2, f"luxfuse: this user has no home directory; set HOME, or give {instead}"
        )  # fmt: skip
