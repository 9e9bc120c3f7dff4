#!/usr/bin/env bash
# Mounts a small bucket of an S3 server on this machine, reads it twice, and leaves nothing behind but the virtualenv.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/bootstrap.sh"
bootstrap demo

files=60
work=$(mktemp -d "${TMPDIR:-/tmp}/luxfuse-quickstart.XXXXXX")
mountpoint=$work/bucket
server=

cleanup() {
    local code=$?
    trap - EXIT INT TERM
    if [ "$code" != 0 ]; then tail -n 20 "$work"/state/mounts/*/daemon.log >&2 2>/dev/null || true; fi
    if grep -qF " $mountpoint " /proc/self/mountinfo; then
        "$VENV/bin/luxfuse" unmount "$mountpoint" || "$VENV/bin/luxfuse" unmount --force "$mountpoint" || true
    fi
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    if grep -qF " $mountpoint " /proc/self/mountinfo; then
        echo "$mountpoint could not be unmounted; $work is left" >&2
    else
        rm -rf --one-file-system "$work"
    fi
}
trap cleanup EXIT
trap 'exit 1' INT TERM

unset "${!LUXFUSE_@}" AWS_PROFILE AWS_SESSION_TOKEN
export LUXFUSE_STATE_DIR=$work/state
export AWS_ACCESS_KEY_ID=quickstart AWS_SECRET_ACCESS_KEY=quickstart AWS_DEFAULT_REGION=us-east-1
mkdir "$mountpoint"

echo "== an S3 server on loopback, with a bucket of $files files of 1 MiB and 200 small ones"
"$VENV/bin/python" -m moto.server -H 127.0.0.1 -p 0 >"$work/server.log" 2>&1 &
server=$!
endpoint=
for _ in $(seq 300); do
    endpoint=$(grep -om1 'http://127.0.0.1:[0-9]*' "$work/server.log" || true)
    if [ -n "$endpoint" ] || ! kill -0 "$server" 2>/dev/null; then break; fi
    sleep 0.1
done
if [ -z "$endpoint" ]; then
    echo "the S3 server did not start:" >&2
    cat "$work/server.log" >&2
    exit 1
fi
expected=$("$VENV/bin/python" - "$endpoint" "$files" <<'PYTHON'
import hashlib, random, sys
import boto3

endpoint, count = sys.argv[1], int(sys.argv[2])
s3 = boto3.client("s3", endpoint_url=endpoint)
s3.create_bucket(Bucket="demo")
generator, total = random.Random(1), hashlib.sha256()
objects = {f"large/{i:03}.bin": 1 << 20 for i in range(count)} | {f"small/{i:03}.bin": 4096 for i in range(200)}
for key, size in sorted(objects.items()):
    body = generator.randbytes(size)
    total.update(body)
    s3.put_object(Bucket="demo", Key=key, Body=body)
print(total.hexdigest())
PYTHON
)

echo "== luxfuse mount s3://demo"
"$VENV/bin/luxfuse" mount s3://demo "$mountpoint" --endpoint-url "$endpoint" --cache-dir "$work/cache"
ls "$mountpoint"

drop_page_cache() {
    sync -f "$work"
    if [ "$(id -u)" = 0 ]; then echo 1 2>/dev/null >/proc/sys/vm/drop_caches || true; fi
}

# Reads every file once; prints the seconds.
read_all() {
    local start end
    drop_page_cache
    start=$(date +%s.%N)
    timeout 300 find "$mountpoint" -type f -print0 | sort -z | timeout 300 xargs -0 cat >/dev/null
    end=$(date +%s.%N)
    awk -v start="$start" -v end="$end" 'BEGIN { printf "%.3f", end - start }'
}

report() {
    awk -v what="$1" -v s="$2" -v n="$files" \
        'BEGIN { printf "%-40s %8.3f s %8.0f MiB/s %8.0f files/s\n", what, s, (n + 200 / 256) / s, (n + 200) / s }'
}

echo "== reading everything, twice"
cold=$(read_all)
report "cold, from the bucket" "$cold"
warm=$(read_all)
report "warm, from the cache on local disk" "$warm"
awk -v cold="$cold" -v warm="$warm" 'BEGIN { printf "the second read was %.1f times as fast\n", cold / warm }'

actual=$(timeout 300 find "$mountpoint" -type f -print0 | sort -z | timeout 300 xargs -0 cat | sha256sum | cut -d ' ' -f 1)
if [ "$actual" != "$expected" ]; then
    echo "the bytes read are not the bytes that were written" >&2
    exit 1
fi
echo "every byte is what was put in the bucket"

echo "== luxfuse status"
"$VENV/bin/luxfuse" status "$mountpoint"

echo "== luxfuse unmount"
"$VENV/bin/luxfuse" unmount "$mountpoint"
