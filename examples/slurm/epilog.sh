#!/bin/sh
# Slurm epilog: what the job wrote is in the bucket before its node is free again; with its last job a mount ends. See
# prolog.sh. It may run again for the same job. What cannot be uploaded stays mounted, on the node's disk, and is
# uploaded when the store is back; the epilog says so in the system's log, and does not drain the node.
set -eu
PATH=${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
ROOT=${ROOT:-/mnt/luxfuse}
JOBS=${JOBS:-/run/luxfuse-slurm}

job=${SLURM_JOB_ID:?is not set: this is for slurmd to run}
for mark in "$JOBS"/*/"$job"; do
    [ -e "$mark" ] || continue
    name=$(basename "$(dirname "$mark")")
    (
        flock -w 120 9 || exit 1
        rm -f "$mark"
        if [ -n "$(ls "$JOBS/$name")" ]; then
            exec luxfuse persist "$ROOT/$name" # for jobs that run on
        fi
        exec luxfuse unmount "$ROOT/$name"
    ) 9>"$JOBS/$name.lock" || {
        echo "luxfuse epilog, job $job: $ROOT/$name stays mounted, or has changes that are not in the store" >&2
        logger -t luxfuse-epilog "job $job: $ROOT/$name stays mounted, or has changes that are not in the store" \
            2>/dev/null || true
    }
done
