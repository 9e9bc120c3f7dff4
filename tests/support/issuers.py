"""Fakes of what hands out temporary S3 credentials: instance and container metadata, an STS, and a program.

A token says until when it holds, so that `ValidTokens` needs to know nothing else. It expires when the test says so: by a
clock that the test moves, which the library that finds credentials and luxfuse go by, too.
"""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.front import Answer, s3_error

CONTAINER_TOKEN = "Bearer of-the-container"
WEB_IDENTITY = "of-the-pod"
TASK = "/v2/credentials/of-the-task"
TASK_ADDRESS = ("169.254.170.2", 80)
"""Where ECS serves the credentials of a task, at a path that a variable tells."""
LIFETIME_S = 3600
TO_RENEWAL_S = LIFETIME_S - 540
"""So long after they were handed out credentials are to be renewed, and hold yet."""

_ROLE = "/latest/meta-data/iam/security-credentials/"


class Clock:
    """The time of the issuers. It is behind the machine's, by which obstore takes all that it was given for expired."""

    def __init__(self, file: Path) -> None:
        """``file``: where the program looks."""
        self.file = file
        self.move(time.time() - 10 * 86_400)

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s = int(getattr(self, "now_s", 0) + seconds)
        written = self.file.with_suffix(".new")
        written.write_text(str(self.now_s))
        written.replace(self.file)

    def rule(self, patch: pytest.MonkeyPatch) -> None:
        """Let what finds and keeps credentials in this process go by it."""
        patch.setattr("botocore.credentials._local_now", lambda: datetime.datetime.fromtimestamp(self.now_s, datetime.UTC))
        patch.setattr(
            "botocore.credentials.RefreshableCredentials._seconds_remaining",
            lambda credentials: credentials._expiry_time.timestamp() - self.now_s,
        )
        patch.setattr("luxfuse.understore.s3.credentials.time", SimpleNamespace(time=lambda: self.now_s))


def token_of(clock: Clock) -> str:
    """The token that is handed out now."""
    return f"until-{clock.now_s + LIFETIME_S}"


class ValidTokens:
    """Refuses requests whose token is none, or has expired, as S3 does: a HEAD without a reason.

    ``last`` has the token of the last request for each path.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.last: dict[str, str] = {}

    def __call__(self, request: Any) -> Answer | None:
        token = request.headers.get("X-Amz-Security-Token") or ""
        if not token.startswith("until-"):
            return s3_error(403, "InvalidAccessKeyId")
        self.last[urlsplit(request.path).path] = token
        if self._clock.now_s < int(token.removeprefix("until-")):
            return None
        return Answer(400) if request.command == "HEAD" else s3_error(400, "ExpiredToken")


class Issuers:
    """``url`` serves all of them. ``issued`` counts what was handed out, by kind: "instance", "task", "web"."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.issued: Counter[str] = Counter()
        self.url = ""

    def credentials(self, kind: str) -> dict[str, str]:
        """Return new ones, with the names of the metadata services."""
        self.issued[kind] += 1
        token = token_of(self.clock)
        ends = datetime.datetime.fromtimestamp(int(token.removeprefix("until-")), datetime.UTC).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
        return {"AccessKeyId": f"ASIA{kind.upper()}", "SecretAccessKey": "secret", "Token": token,
                "Expiration": ends, "Code": "Success"}  # fmt: skip

    def program(self, directory: Path) -> str:
        """Write a program for ``credential_process``, which notes its runs in a file beside it; returns its path."""
        path = directory / "program"
        path.write_text(
            "#!/bin/sh\n"
            f"echo run >> {directory}/runs\n"
            f"until=$(( $(cat {self.clock.file}) + {LIFETIME_S} ))\n"
            'ends=$(date -u -d "@$until" +%Y-%m-%dT%H:%M:%SZ)\n'
            'echo "{\\"Version\\": 1, \\"AccessKeyId\\": \\"ASIAPROGRAM\\", \\"SecretAccessKey\\": \\"secret\\",'
            ' \\"SessionToken\\": \\"until-$until\\", \\"Expiration\\": \\"$ends\\"}"\n'
        )
        path.chmod(0o700)
        return str(path)


@contextmanager
def issuers(clock: Clock, address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[Issuers]:
    """Serve all kinds of issuers, on loopback by itself."""
    all_kinds = Issuers(clock)

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._answer(200 if self.path == "/latest/api/token" else 404, "imds-token")

        def do_GET(self) -> None:
            if self.path == TASK:
                self._answer(200, json.dumps(all_kinds.credentials("task")))
            elif self.path == "/container":
                if self.headers.get("Authorization") == CONTAINER_TOKEN:
                    self._answer(200, json.dumps(all_kinds.credentials("container")))
                else:
                    self._answer(401, "")
            elif self.headers.get("X-aws-ec2-metadata-token") != "imds-token":
                self._answer(401, "")
            elif self.path == _ROLE:
                self._answer(200, "role")
            else:
                self._answer(200, json.dumps(all_kinds.credentials("instance")))

        def do_POST(self) -> None:
            wanted = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            action = wanted["Action"][0]
            if action == "AssumeRoleWithWebIdentity" and wanted["WebIdentityToken"] != [WEB_IDENTITY]:
                self._answer(403, "")
                return
            kind = "pod" if wanted["RoleArn"][0].endswith("/pod") else "web" if "Web" in action else "assumed"
            found = all_kinds.credentials(kind)
            inner = "".join(
                f"<{name}>{found[theirs]}</{name}>" for name, theirs in (
                    ("AccessKeyId", "AccessKeyId"), ("SecretAccessKey", "SecretAccessKey"), ("SessionToken", "Token"),
                    ("Expiration", "Expiration"))
            )  # fmt: skip
            arn = "arn:aws:sts::123456789012:assumed-role/r/s"
            user = f"<AssumedRoleUser><Arn>{arn}</Arn><AssumedRoleId>i</AssumedRoleId></AssumedRoleUser>"
            self._answer(
                200, f"<{action}Response xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><{action}Result>"
                f"<Credentials>{inner}</Credentials>{user}</{action}Result></{action}Response>"
            )  # fmt: skip

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(address, Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    all_kinds.url = f"http://{address[0]}:{server.server_port}"
    try:
        yield all_kinds
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
