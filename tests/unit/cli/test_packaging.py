"""What ships beside the package agrees with it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from luxfuse.config import NAMES

ROOT = Path(__file__).parents[3]
SCRIPTS = ["examples/bootstrap.sh", "examples/quickstart.sh", "tests/run.sh", ".ci/run"]


def test_the_systemd_unit_is_valid() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = ROOT / "systemd/luxfuse@.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_read(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], timeout=20, check=True)


def test_the_readme_names_every_setting_and_no_other() -> None:
    text = (ROOT / "README.md").read_text().partition("## Settings")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == NAMES - {"state_dir"}
