"""A short storm: daemons are killed, the store fails in every way, the disk fills up, and nothing acknowledged is lost.

The long one is a command: ``python -m tests.storm --help``.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.mount.test_keeper import DIED
from tests.storm import plan
from tests.storm.storm import Storm
from tests.support import fast_s3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import Mounts, content, digest, wait_for

SECONDS = 12.0
CHOSEN = os.environ.get("LUXFUSE_SEED")


@pytest.mark.parametrize("keeper", [pytest.param(False, marks=pytest.mark.slow), True], ids=["mounted again", "keeper"])
def test_nothing_acknowledged_is_lost_and_no_other_error_is_seen(tmp_path: Path, keeper: bool) -> None:
    if reason := fast_s3.available():
        pytest.skip(reason)
    seed = int(CHOSEN) if CHOSEN else random.randrange(10**9)
    print(f"LUXFUSE_SEED={seed}")
    drawn = plan.draw(seed, SECONDS, kill_every_s=4)
    mode = "cache-through" if seed % 4 == 0 else "async-through"
    report = Storm(seed, drawn, tmp_path, keeper=keeper, mode=mode).run()
    print(report)
    assert report.counts["calls"] > 0
    assert not report.wrong, f"LUXFUSE_SEED={seed}\n" + "\n".join(report.wrong)


@pytest.mark.parametrize("how", ["refused", "forbidden"])
def test_a_daemon_that_dies_in_an_outage_has_a_successor(
    mounting: Mounts, proxy: FaultProxy, bucket: str, fill: Any, how: str
) -> None:
    """Found by a storm: each successor ended since it got no answer from the store, and after ten all was given up."""
    data = content("outage", 50_000)
    fill({"a": data})
    mount = mounting(
        f"s3://{bucket}", "--write-mode", "async-through", endpoint_url=proxy.endpoint, keeper=True,
        options={"request_timeout": "2s"},
        expected_logs=[DIED, "the store", "cannot be brought to the under-store", "credentials", "AccessDenied"],
    )  # fmt: skip
    assert mount.read("a") == digest(data)
    if how == "refused":
        proxy.outage(True)
    else:
        proxy.set(error_probability=1.0, error_status=403)
    mount.replaced()
    if how == "refused":
        assert mount.read("a") == digest(data)
    assert mount.status()["restarts"] == 1
    proxy.clear()
    proxy.outage(False)
    wait_for("it is read", lambda: mount.error("file", f"{mount.path}/a") is None)
    assert mount.read("a") == digest(data)
