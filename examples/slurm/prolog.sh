#!/bin/sh
# Slurm prolog: mounts what /etc/luxfuse/slurm/*.toml describe, once for all jobs of a node. In slurm.conf:
#
#   Prolog=/etc/slurm/luxfuse-prolog.sh
#   Epilog=/etc/slurm/luxfuse-epilog.sh
#   PrologFlags=Alloc
#
# data.toml (source = "s3://bucket", cache_size = "500GiB", ...; readable by root alone) is mounted on /mnt/luxfuse/data,
# for all users. It may run again for the same job. If it fails, Slurm requeues the job and drains the node: with
# REQUIRED=no the job starts all the same. slurmd must leave its children alone when it is restarted (KillMode=process,
# as its unit has it), or the mounts end with it.
set -eu
PATH=${PATH:+$PATH:}/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
CONFIGS=${CONFIGS:-/etc/luxfuse/slurm}
ROOT=${ROOT:-/mnt/luxfuse}
JOBS=${JOBS:-/run/luxfuse-slurm} # a file for each job of a mount; in memory, so that a reboot empties it
REQUIRED=${REQUIRED:-yes}

job=${SLURM_JOB_ID:?is not set: this is for slurmd to run}
failed=
umask 022
mkdir -p "$ROOT"
for config in "$CONFIGS"/*.toml; do
    [ -e "$config" ] || continue
    name=$(basename "$config" .toml)
    mkdir -p "$JOBS/$name" "$ROOT/$name" 2>/dev/null || true # a dead mount there cannot be looked at, and is taken away
    (
        flock -w 120 9 || exit 1 # the epilog of another job
        : >"$JOBS/$name/$job"
        serves() { luxfuse status "$ROOT/$name" >/dev/null 2>&1; }
        # A machine under load may answer late.
        serves || LUXFUSE_MOUNTPOINT=$ROOT/$name LUXFUSE_ALLOW_OTHER=on luxfuse mount --config "$config" || serves || {
            rm -f "$JOBS/$name/$job"
            exit 1
        }
    ) 9>"$JOBS/$name.lock" || failed="$failed $name"
done
if [ -n "$failed" ]; then
    echo "luxfuse prolog, job $job: not mounted:$failed" >&2
    logger -t luxfuse-prolog "job $job: not mounted:$failed" 2>/dev/null || true
    [ "$REQUIRED" = no ] || exit 1
fi
