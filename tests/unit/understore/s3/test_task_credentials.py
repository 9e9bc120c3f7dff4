"""The credentials of a task on ECS, which are served at a link-local address: tested in a network of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luxfuse.errors import NotFound
from luxfuse.understore.base import UnderStore
from luxfuse.understore.factory import open_driver
from tests.support.front import Answer, front
from tests.support.issuers import TASK, TASK_ADDRESS, TO_RENEWAL_S, Clock, ValidTokens, issuers, token_of
from tests.support.mounted import wait_for
from tests.support.network import missing

NETWORK = f'ip link set lo up && ip address add {TASK_ADDRESS[0]}/32 dev lo && exec "$@"'


def use_the_store(directory: str) -> None:
    """Ask a store, which refuses what has expired, until the credentials have been renewed for each driver."""
    clock = Clock(Path(directory) / "now")
    tokens = ValidTokens(clock)
    with (
        issuers(clock, TASK_ADDRESS) as all_kinds,
        front("http://127.0.0.1:9", lambda request: tokens(request) or Answer(404)) as endpoint,
        pytest.MonkeyPatch.context() as patch,
    ):
        clock.rule(patch)
        for driver in ("obstore", "fsspec"):
            store = open_driver("s3://bucket", endpoint_url=endpoint, driver=driver)  # type: ignore[arg-type]

            def renewed(store: UnderStore = store) -> bool:
                with pytest.raises(NotFound):
                    store.head("a")
                return set(tokens.last.values()) == {token_of(clock)}

            assert renewed()
            for _ in range(2):
                clock.move(TO_RENEWAL_S)
                wait_for("they are renewed", renewed)
            store.close()
        assert all_kinds.issued == {"task": 6}


def test_the_credentials_of_a_task_are_renewed(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": TASK, "AWS_METADATA_SERVICE_TIMEOUT": "10", "HOME": str(tmp_path),
        "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1",  # the address of the credentials is not behind it
    }  # fmt: skip
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", NETWORK, "sh", sys.executable, "-m", __name__, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    use_the_store(sys.argv[1])
