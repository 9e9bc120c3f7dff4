"""Short storms: daemons are killed, the store fails in every way, the disk fills up, and nothing acknowledged is lost.

The long ones are a command: ``python -m tests.storm --help``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.mount.test_keeper import DIED
from tests.storm import plan
from tests.storm.report import Report
from tests.storm.storm import Storm
from tests.support import fast_s3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import Mounts, content, digest, wait_for
from tests.support.seeds import drawn_seed

REQUEST_TIMEOUT_S = 40.0
"""Of short storms: a busy machine alone makes no request fail."""


@pytest.fixture
def seed() -> int:
    if reason := fast_s3.available():
        pytest.skip(reason)
    return drawn_seed()


def rage(seed: int, drawn: plan.Plan, base: Path, **how: Any) -> Report:
    """Have a storm in which nothing is wrong."""
    report = Storm(seed, drawn, base, request_timeout_s=REQUEST_TIMEOUT_S, **how).run()
    print(report)
    assert report.counts["steps"] > 0
    assert not report.wrong, f"LUXFUSE_SEED={seed}, see {base}/found\n" + "\n".join(report.wrong)
    return report


@pytest.mark.parametrize("mode", ["async-through", "cache-through"])
def test_no_program_notices_that_daemons_are_killed(tmp_path: Path, seed: int, mode: str) -> None:
    drawn = plan.draw(seed, 10.0, kills=3, kill_every_s=2, store=(), disk=False)
    report = rage(seed, drawn, tmp_path, keeper=True, mode=mode, workers=4)
    assert report.counts["kills"] > 0
    assert not report.counts["errors that are allowed"]


@pytest.mark.parametrize(
    ("mode", "keeper"),
    [
        ("async-through", True),
        pytest.param("cache-through", True, marks=pytest.mark.slow),
        pytest.param("must-cache", True, marks=pytest.mark.slow),
        pytest.param("async-through", False, marks=pytest.mark.slow),
    ],
)
def test_nothing_acknowledged_is_lost_and_no_other_error_is_seen(
    tmp_path: Path, seed: int, mode: str, keeper: bool
) -> None:
    rage(seed, plan.draw(seed, 12.0, kills=4, kill_every_s=3), tmp_path, keeper=keeper, mode=mode)


@pytest.mark.parametrize("how", ["refused", "forbidden"])
def test_a_daemon_that_dies_in_an_outage_has_a_successor(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill: Any, how: str
) -> None:
    """Found by a storm: each successor ended since it got no answer from the store, and after ten all was given up."""
    data = content("outage", 50_000)
    fill({"a": data})
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=proxy.endpoint, keeper=True,
        expected_logs=[DIED, "the store", "cannot be brought to the under-store", "credentials", "AccessDenied"],
    )  # fmt: skip
    assert mount.read("a") == digest(data)
    if how == "refused":
        proxy.outage(True)
    else:
        proxy.set(error_probability=1.0, error_status=403)
    with mount.impatient():
        mount.replaced()
        if how == "refused":
            assert mount.read("a") == digest(data)
    assert mount.status()["restarts"] == 1
    proxy.recover()
    wait_for("it is read", lambda: mount.error("file", f"{mount.path}/a") is None)
    assert mount.read("a") == digest(data)
