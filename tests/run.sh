#!/usr/bin/env bash
# Runs the tests, a file of them in one of several processes, after installing what they need; arguments go to pytest.
# Two processes for each processor: tests of mounts and servers wait for half of their time.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../examples/bootstrap.sh"
bootstrap test nginx-light libnginx-mod-http-lua lua-filesystem e2fsprogs attr nodejs npm \
    iproute2 nftables fio stress-ng dbench sqlite3 git rsync make openssh-server prometheus systemd \
    chromium-headless-shell
cd "$REPOSITORY"
exec "$VENV/bin/python" -m pytest -n "$(($(nproc) * 2))" --maxprocesses=8 --dist loadfile --no-loadscope-reorder "$@"
