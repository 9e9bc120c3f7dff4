"""The web page of a mount: as Prometheus and a browser meet it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import browser
from tests.support.browser import Browser
from tests.support.fast_s3 import FastS3
from tests.support.mounted import PATIENCE_S, Mount, Mounts, wait_for

SIZE = 50_000
MONITORING = Path(__file__).parents[2] / "luxfuse/docs/MONITORING.md"


def get(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read()


def document(url: str) -> Any:
    status, content = get(url)
    assert status == 200, content
    return json.loads(content)


@pytest.fixture
def mount(s3: FastS3, bucket: str, fill: Callable[..., None], mounting: Mounts) -> Mount:
    fill({"images/one.jpg": os.urandom(SIZE), "images/two.jpg": os.urandom(SIZE)})
    return mounting(f"s3://{bucket}", "--http", "127.0.0.1:0", endpoint_url=s3.endpoint)


def history(url: str) -> dict[str, Any]:
    return dict(document(f"{url}v1/history?span=15m"))


def test_what_a_mount_shows(mount: Mount, tmp_path: Path) -> None:
    url = mount.status()["http"]
    before = wait_for("a sample", lambda: len(history(url)["times"]))
    for name in ("images/one.jpg", "images/two.jpg", "images/two.jpg"):
        mount.read(name)
    # The first opens were Python's, the last one a lane's, where the kernel reads the file then.
    expected = {"images/one.jpg": (1, SIZE), "images/two.jpg": (2, SIZE)}

    def shown() -> bool:
        found = history(url)
        times, rates = found["times"], found["series"]["store_in"]
        received = sum(rates[i] * (times[i] - times[i - 1]) for i in range(before, len(times)))
        opens = {each["path"]: (each["opens"], each["size"]) for each in found["files"]}
        assert opens.keys() <= expected.keys()
        return opens == expected and received >= SIZE

    wait_for("what was read", shown, pause_s=0.2)
    assert document(f"{url}v1/status")["mountpoint"] == str(mount.path)
    assert b"\nluxfuse_understore_gets_total 2" in get(f"{url}metrics")[1]
    assert get(f"{url}metrics", accept="application/openmetrics-text")[1].endswith(b"# EOF\n")
    assert get(f"{url}v1/status", host="evil.example")[0] == 403
    in_a_browser(url, mount, tmp_path)


def in_a_browser(url: str, mount: Mount, directory: Path) -> None:
    """What it shows of a mount that has everything is in `tests/unit/daemon/test_page_in_browser.py`."""
    if reason := browser.missing():
        pytest.skip(reason)
    chromium = Browser(directory)
    try:
        chromium.show(url, width=390, touch=True)
        chromium.until("document.body.dataset.ready")
        assert chromium.evaluate("document.title") == f"{mount.path} · luxfuse"
        assert chromium.evaluate("document.querySelector('#state').className") == "state serving"
        assert str(mount.cache) in chromium.evaluate("document.querySelector('#tiers').innerText")
        assert "images/two.jpg" in chromium.evaluate("document.querySelector('#files').innerText")
        assert chromium.evaluate("document.querySelectorAll('polyline').length") >= 8
        assert chromium.complaints == []
    finally:
        chromium.close()


def test_a_token_is_asked_for(s3: FastS3, bucket: str, mounting: Mounts, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, with which the documents have a token made")
    token = tmp_path / "token"
    (line,) = re.findall(r"^    (\(umask 077; .* > \S+\))$", MONITORING.read_text(), re.MULTILINE)
    subprocess.run(["sh", "-c", line.replace("/etc/luxfuse/http-token", str(token))], timeout=PATIENCE_S, check=True)
    secret = token.read_text().strip()
    mount = mounting(f"s3://{bucket}", "--http", "0.0.0.0:0", "--http-token-file", str(token), endpoint_url=s3.endpoint)
    url = mount.status()["http"].replace("0.0.0.0", "127.0.0.1") + "v1/status"
    assert get(url)[0] == 401
    assert get(url, authorization=f"Bearer {secret}")[0] == 200
    assert secret not in mount.log() + json.dumps(mount.status())


def test_addresses_that_cannot_be_had(s3: FastS3, bucket: str, mounting: Mounts) -> None:
    mount = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
    open_to_all = mount.try_mount("--http", "0.0.0.0:9180")
    assert open_to_all.returncode == 2
    assert "other machines could look; give --http-token-file FILE" in open_to_all.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = mount.try_mount("--http", f"127.0.0.1:{port}")
        assert refused.returncode == 1
        assert f"--http 127.0.0.1:{port}: Address already in use; choose another port" in refused.stderr
        assert not mount.mounted, "with a keeper, too, nobody would go on with it"
