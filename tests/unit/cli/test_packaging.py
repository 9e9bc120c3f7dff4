"""What ships beside the package agrees with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from luxfuse.cli import command_line, main
from luxfuse.cli.options import parse_options
from tests.support import reference

ROOT = Path(__file__).parents[3]
SCRIPTS = ["examples/bootstrap.sh", "examples/quickstart.sh", "tests/run.sh", ".ci/run"]


def test_the_systemd_unit_is_valid() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = ROOT / "systemd/luxfuse@.service"
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


MOST_EXPOSED = 50
"""Tenths of the exposure that `systemd-analyze security` counts. What a mount that others see must have is most of that:
CAP_SYS_ADMIN, root, and the machine's own mount namespace."""


def test_the_systemd_unit_lets_a_service_do_little() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = ROOT / "systemd/luxfuse@.service"
    command = ["systemd-analyze", "security", "--no-pager", "--offline=yes", f"--threshold={MOST_EXPOSED}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1:]


def test_the_directories_for_systemd_are_closed_to_others(tmp_path: Path) -> None:
    if shutil.which("systemd-tmpfiles") is None:
        pytest.skip("systemd-tmpfiles is not installed")
    command = ["systemd-tmpfiles", "--create", f"--root={tmp_path}", str(ROOT / "systemd/luxfuse.conf")]
    subprocess.run(command, timeout=60, check=True, capture_output=True)
    made = {
        path: tmp_path.joinpath(path).stat().st_mode & 0o777
        for path in ("etc/luxfuse", "var/lib/luxfuse", "var/cache/luxfuse")
    }
    assert set(made.values()) == {0o700}


def test_lines_for_fstab_are_understood_by_systemd_and_by_us(tmp_path: Path) -> None:
    fstab = ROOT / "systemd/fstab.example"
    lines = [line.split() for line in fstab.read_text().splitlines() if line and not line.startswith("#")]
    assert [parse_options([line[3]], fstab=True).keys() for line in lines] == [
        {"allow_other", "cache_size"}, {"allow_other", "write_mode"}
    ]  # fmt: skip
    generator = Path("/lib/systemd/system-generators/systemd-fstab-generator")
    if not generator.exists():
        pytest.skip("systemd is not installed")
    subprocess.run([generator, tmp_path, tmp_path, tmp_path], env={"SYSTEMD_FSTAB": str(fstab)}, timeout=60, check=True)
    for name in ("mnt-bucket.mount", "mnt-scratch.mount"):
        unit = (tmp_path / name).read_text()
        assert "Type=fuse.luxfuse" in unit
        assert "TimeoutSec=1min 30s" in unit
    assert (tmp_path / "mnt-scratch.automount").exists()
    assert (tmp_path / "remote-fs.target.wants" / "mnt-bucket.mount").exists(), "it comes after the network"


@pytest.mark.parametrize("document", ["systemd/fstab.example", "luxfuse/docs/luxfuse.1", "luxfuse/docs/USING.md"])
def test_lines_for_fstab_have_the_type_that_mount_knows(document: str) -> None:
    """mount(8) runs /sbin/mount.fuse for it, which takes what is behind the dot for the program."""
    lines = re.findall(r"^ *\w+://\S+ +/\S+ .* 0 +0$", (ROOT / document).read_text(), re.MULTILINE)
    assert lines
    for line in lines:
        assert line.split()[2] == "fuse.luxfuse", line
        assert parse_options([line.split()[3]], fstab=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_read(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], timeout=20, check=True)


def test_the_reference_has_every_setting_as_the_code_has_it() -> None:
    text = reference.PAGE.read_text()
    assert text == reference.replaced(text), "write it anew: python -m tests.support.reference"


SHELLS = {
    "bash": {"COMP_WORDS": "luxfuse doctor --js", "COMP_CWORD": "2"},
    "zsh": {"_TYPER_COMPLETE_ARGS": "luxfuse doctor --js"},
    "fish": {"_TYPER_COMPLETE_ARGS": "luxfuse doctor --js", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_complete_commands_and_options(shell: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def ask(what: str, **variables: str) -> str:
        for name, value in {**variables, "_LUXFUSE_COMPLETE": f"{what}_{shell}"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main.run([])
        assert ended.value.code == 0
        return capsys.readouterr().out

    script = ask("source")
    assert "_LUXFUSE_COMPLETE" in script
    if (
        shell == "zsh"
    ):  # reads the first line of each file in its fpath, and calls the one of a command for its first answer
        assert script.startswith("#compdef luxfuse\n")
        assert script.strip().endswith('|| _luxfuse_completion "$@"')
    assert "--json" in ask("complete", **SHELLS[shell])
    shorter = {name: value.replace("doctor --js", "unm") for name, value in SHELLS[shell].items()}
    assert "unmount" in ask("complete", **{**shorter, "COMP_CWORD": "1"})
    for words, value in (("mount --write-mode asy", "async-through"), ("mount --keeper of", "off")):
        asked = {name: each.replace("doctor --js", words) for name, each in SHELLS[shell].items()}
        assert value in ask("complete", **{**asked, "COMP_CWORD": "3"})


COMPLETED = """
luxfuse --install-completion >&2 || exit
source ~/.bashrc
complete -p luxfuse
completed() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _luxfuse_completion luxfuse "${COMP_WORDS[COMP_CWORD]}"
    echo "${COMPREPLY[@]}"
}
completed luxfuse unm
completed luxfuse doctor --js
"""


def test_bash_takes_what_is_installed_for_it(tmp_path: Path) -> None:
    program = tmp_path / "bin/luxfuse"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m luxfuse.cli.main "$@"\n')
    program.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "--norc", "-c", COMPLETED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    installed, *found = done.stdout.splitlines()
    assert installed.endswith("-F _luxfuse_completion luxfuse"), done.stderr
    assert found == ["unmount", "--json"]


def test_the_list_of_commands_cuts_nothing_off() -> None:
    """It has 80 columns where it does not go to a terminal."""

    def cut(group: Any, path: str) -> Iterator[str]:
        for name, command in group.commands.items():
            if command.get_short_help_str(80 - 6 - max(map(len, group.commands))).endswith("..."):
                yield f"{path} {name}"
            if hasattr(command, "commands"):
                yield from cut(command, f"{path} {name}")

    assert list(cut(typer.main.get_command(command_line.all_commands()), "luxfuse")) == []
