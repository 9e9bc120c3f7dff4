"""What ships beside the package agrees with it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import reference

ROOT = Path(__file__).parents[3]
SCRIPTS = ["examples/bootstrap.sh", "examples/quickstart.sh", "tests/run.sh", ".ci/run"]


def test_the_systemd_unit_is_valid() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = ROOT / "systemd/luxfuse@.service"
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_read(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], timeout=20, check=True)


def test_the_reference_has_every_setting_as_the_code_has_it() -> None:
    text = reference.PAGE.read_text()
    assert text == reference.replaced(text), "write it anew: python -m tests.support.reference"
