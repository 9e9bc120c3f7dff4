"""The credentials of a task on ECS, which are served at a link-local address: tested in a network of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luxfuse.errors import NotFound
from luxfuse.understore.factory import open_driver
from tests.support.front import Answer, front
from tests.support.issuers import TASK, TASK_ADDRESS, issuers, only_valid_tokens
from tests.support.network import missing

NETWORK = f'ip link set lo up && ip address add {TASK_ADDRESS[0]}/32 dev lo && exec "$@"'


def use_the_store() -> None:
    """Ask a store, which refuses what has expired, until the credentials have been renewed for each driver."""
    with (
        issuers(4, TASK_ADDRESS) as all_kinds,
        front("http://127.0.0.1:9", lambda request: only_valid_tokens(request) or Answer(404)) as endpoint,
    ):
        for driver in ("obstore", "fsspec"):
            store = open_driver("s3://bucket", endpoint_url=endpoint, driver=driver)  # type: ignore[arg-type]
            wanted, until_s = all_kinds.issued["task"] + 2, time.monotonic() + 60
            while all_kinds.issued["task"] < wanted:
                with pytest.raises(NotFound):
                    store.head("a")
                assert time.monotonic() < until_s, "not renewed"
                time.sleep(0.3)
            store.close()
        print(dict(all_kinds.issued))


def test_the_credentials_of_a_task_are_renewed(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": TASK, "AWS_METADATA_SERVICE_TIMEOUT": "10", "HOME": str(tmp_path),
        "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1",  # the address of the credentials is not behind it
    }  # fmt: skip
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", NETWORK, "sh", sys.executable, "-m", __name__],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "'task'" in done.stdout


if __name__ == "__main__":
    use_the_store()
