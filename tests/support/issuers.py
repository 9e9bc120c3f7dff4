"""Fakes of what hands out temporary S3 credentials: instance and container metadata, an STS, and a program.

A token says until when it holds, so that `only_valid_tokens` needs to know nothing else.
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
from typing import Any
from urllib.parse import parse_qs

from tests.support.front import Answer, s3_error

CONTAINER_TOKEN = "Bearer of-the-container"
WEB_IDENTITY = "of-the-pod"
TASK = "/v2/credentials/of-the-task"
TASK_ADDRESS = ("169.254.170.2", 80)
"""Where ECS serves the credentials of a task, at a path that a variable tells."""
GRACE_S = 2.0
"""A request may be under way for so long on a machine that is busy."""

_ROLE = "/latest/meta-data/iam/security-credentials/"


def only_valid_tokens(request: Any) -> Answer | None:
    """Refuse requests whose token is none, or has expired, as S3 does: a HEAD without a reason."""
    token = request.headers.get("X-Amz-Security-Token") or ""
    if not token.startswith("until-"):
        return s3_error(403, "InvalidAccessKeyId")
    if time.time() <= float(token.removeprefix("until-")) + GRACE_S:
        return None
    return Answer(400) if request.command == "HEAD" else s3_error(400, "ExpiredToken")


class Issuers:
    """``url`` serves all of them. ``issued`` counts what was handed out, by kind: "instance", "task", "web"."""

    def __init__(self, lifetime_s: int) -> None:
        self.lifetime_s = lifetime_s
        self.issued: Counter[str] = Counter()
        self.url = ""

    def credentials(self, kind: str) -> dict[str, str]:
        """Return new ones, with the names of the metadata services."""
        self.issued[kind] += 1
        until_s = int(time.time()) + self.lifetime_s
        ends = datetime.datetime.fromtimestamp(until_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"AccessKeyId": f"ASIA{kind.upper()}", "SecretAccessKey": "secret", "Token": f"until-{until_s}",
                "Expiration": ends, "Code": "Success"}  # fmt: skip

    def program(self, directory: Path) -> str:
        """Write a program for ``credential_process``, which notes its runs in a file beside it; returns its path."""
        path = directory / "program"
        path.write_text(
            "#!/bin/sh\n"
            f"echo run >> {directory}/runs\n"
            f"until=$(( $(date +%s) + {self.lifetime_s} ))\n"
            'ends=$(date -u -d "@$until" +%Y-%m-%dT%H:%M:%SZ)\n'
            'echo "{\\"Version\\": 1, \\"AccessKeyId\\": \\"ASIAPROGRAM\\", \\"SecretAccessKey\\": \\"secret\\",'
            ' \\"SessionToken\\": \\"until-$until\\", \\"Expiration\\": \\"$ends\\"}"\n'
        )
        path.chmod(0o700)
        return str(path)


@contextmanager
def issuers(lifetime_s: int, address: tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[Issuers]:
    """Serve all kinds of issuers, on loopback by itself."""
    all_kinds = Issuers(lifetime_s)

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
