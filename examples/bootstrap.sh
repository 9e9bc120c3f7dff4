# Sourced by examples/quickstart.sh, tests/run.sh and .ci/run: system packages, virtualenv, luxfuse itself.
#
#   bootstrap EXTRAS [PACKAGE...]   make "$LUXFUSE_VENV" (default: .venv in the repository) with luxfuse[EXTRAS];
#                                   the Debian packages named besides are installed where that is possible.
# Sets VENV. Prints what is missing and returns 1 where it may not install it.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${LUXFUSE_VENV:-$REPOSITORY/.venv}
DIRECT_GETS="libcurl4-openssl-dev libssl-dev libxxhash-dev" # luxfuse can do without: obstore then fetches small files

bootstrap() {
    local extras=$1
    shift
    _system_packages $DIRECT_GETS "$@" || return 1
    _virtualenv "$extras"
}

# The first Python of at least 3.11, preferring the system's own.
_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
}

# Debian packages without which luxfuse cannot be built and run, one per line; nothing if all is there.
_missing_packages() {
    local python
    python=$(_python)
    if [ -n "$python" ]; then
        "$python" -c 'import venv, ensurepip' 2>/dev/null || echo "$python-venv"
        "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
            echo "$python-dev"
    elif apt-cache show python3.11 >/dev/null 2>&1; then
        printf '%s\n' python3.11 python3.11-venv python3.11-dev
    else
        printf '%s\n' python3 python3-venv python3-dev
    fi
    command -v gcc >/dev/null || printf '%s\n' gcc libc6-dev
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    command -v fusermount3 >/dev/null || echo fuse3
}

# Those of the named packages that are not here; npm and nodejs count as here if their commands are.
_missing_extras() {
    local package
    for package in "$@"; do
        case $package in
        npm) command -v npm >/dev/null && continue ;;
        nodejs) command -v node >/dev/null && continue ;;
        esac
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

_system_packages() {
    local needed wanted apt
    needed=$(_missing_packages | sort -u | xargs)
    wanted=$(_missing_extras "$@" | xargs)
    if [ -n "$needed$wanted" ]; then
        apt=
        if command -v apt-get >/dev/null; then
            if [ "$(id -u)" = 0 ]; then
                apt=env
            elif sudo -n true 2>/dev/null; then
                apt="sudo -n env"
            fi
        fi
        if [ -n "$apt" ]; then
            _apt_install "$apt" "$needed" "$wanted"
            needed=$(_missing_packages | sort -u | xargs)
        elif [ -n "$wanted" ]; then
            echo "some tests will be skipped, or things be slower, without: $wanted" >&2
        fi
    fi
    if [ -n "$needed" ]; then
        echo "luxfuse needs what is missing here. As root on Debian or Ubuntu:" >&2
        echo "  apt-get install $needed" >&2
        echo "Elsewhere: Python 3.11 or newer with venv and headers, a C compiler, pkg-config, libfuse 3 with headers." >&2
        return 1
    fi
    if [ ! -e /dev/fuse ] && ! { [ "$(id -u)" = 0 ] && modprobe fuse 2>/dev/null && [ -e /dev/fuse ]; }; then
        echo "/dev/fuse is missing. As root: modprobe fuse; in a container: docker run --device /dev/fuse" >&2
        echo "  --cap-add SYS_ADMIN --security-opt apparmor=unconfined" >&2
        return 1
    fi
    if [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then
        echo "/dev/fuse is closed to you. As root: chmod 666 /dev/fuse (its usual mode)" >&2
        return 1
    fi
}

# $1: words to run apt-get under; $2: packages that must be installed; $3: ones that may be missing.
_apt_install() {
    local apt="$1 DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300" package available= policy=
    echo "installing: $2 $3"
    $apt update >/dev/null || echo "apt-get update failed; going on with the lists that are here" >&2
    for package in $3; do
        if apt-cache show "$package" >/dev/null 2>&1; then available="$available $package"; fi
    done
    # A test server that is installed must not be started as a service of this machine.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=yes
        printf '#!/bin/sh\nexit 101\n' | $1 tee /usr/sbin/policy-rc.d >/dev/null
        $1 chmod 755 /usr/sbin/policy-rc.d
    fi
    if [ -n "$2" ]; then $apt install -y --no-install-recommends $2 >/dev/null || true; fi
    if [ -n "$available" ]; then
        $apt install -y --no-install-recommends $available >/dev/null ||
            echo "not installed, so that some tests will be skipped, or things be slower: $available" >&2
    fi
    if [ -n "$policy" ]; then $1 rm -f /usr/sbin/policy-rc.d; fi
}

# Installs only when what decides the installation has changed.
_virtualenv() {
    local extras=$1 stamp
    if [ ! -x "$VENV/bin/python" ]; then
        echo "making a virtualenv in $VENV"
        "$(_python)" -m venv "$VENV" || return 1
    fi
    stamp=$(cd "$REPOSITORY" && {
        echo "$extras $REPOSITORY"
        pkg-config --modversion libcurl libcrypto libxxhash 2>/dev/null
        find luxfuse -name '*.[ch]' | sort | xargs cat pyproject.toml
    } | sha256sum | cut -c 1-16)
    if [ ! -e "$VENV/.luxfuse-$stamp" ]; then
        echo "installing luxfuse${extras:+[$extras]} in $VENV"
        _pip_install -e "$REPOSITORY" || return 1
        # boto3 and aiobotocore each want a narrow range of botocore. s3fs decides: asked for all at once, pip may
        # search through their versions for minutes and find nothing.
        "$VENV/bin/python" -m pip freeze --exclude-editable |
            grep -iE '^(aiobotocore|botocore|fsspec|s3fs)==' >"$VENV/.luxfuse-constraints" || return 1
        _pip_install -c "$VENV/.luxfuse-constraints" -e "$REPOSITORY${extras:+[$extras]}" || return 1
        touch "$VENV/.luxfuse-$stamp"
    fi
}

_pip_install() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
