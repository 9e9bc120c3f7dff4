"""Manifests through the commands: made by one mount or of the source, and given to the next mount."""

from __future__ import annotations

from pathlib import Path

from tests.support.fast_s3 import FastS3
from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import Mounts, content, put


def test_a_mount_with_a_manifest_lists_nothing(
    mounting: Mounts, s3: FastS3, proxy: FaultProxy, bucket: str, fill, tmp_path: Path
) -> None:
    fill({f"class{n % 3}/part{n % 2}/f{n:03}": content(n, 100 + n) for n in range(60)})
    maker = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    done = maker.cli("index", "export", maker.path, tmp_path / "from-mount", check=True)
    assert done.stdout == f"{tmp_path}/from-mount: 69 names in 10 directories\n"
    tree = maker.do("tree", str(maker.path))
    maker.unmount()
    arguments = ["index", "export", f"s3://{bucket}", str(tmp_path / "of-source"), "--endpoint-url", proxy.endpoint]
    done = maker.cli(*arguments, check=True)
    assert done.stdout == f"{tmp_path}/of-source: 69 names in 10 directories\n"

    put(s3, bucket, "class0/part0/f000", b"another content")  # no manifest knows of it
    for name in ("from-mount", "of-source"):
        proxy.reset_counts()
        mount = mounting(
            f"s3://{bucket}", "--manifest", str(tmp_path / name), "--metadata-ttl", "1h", endpoint_url=proxy.endpoint
        )
        assert mount.do("tree", str(mount.path)) == tree
        assert mount.read("class1/part1/f001")[0] == 101
        assert mount.read("class0/part0/f000")[0] == len(b"another content")
        below = [r for r in proxy.requests if "delimiter" in r.query]
        assert below == [], "but for the question whether the bucket is there"
        assert mount.status()["names"]["listings"] == 0
        mount.unmount()


def test_what_is_not_the_manifest_of_the_source_is_refused(
    mounting: Mounts, s3: FastS3, bucket: str, fill, tmp_path: Path
) -> None:
    fill({"a": b"a"})
    manifest, damaged = tmp_path / "m", tmp_path / "damaged"
    maker = mounting(f"s3://{bucket}/", endpoint_url=s3.endpoint)
    maker.cli("index", "export", maker.path, manifest, check=True)
    damaged.write_bytes(manifest.read_bytes()[:-30])
    for file, why in ((damaged, "damaged"), (manifest, "is of s3://"), (tmp_path / "none", "No such file")):
        other = mounting.make(f"s3://{bucket}/prefix", "--manifest", str(file), endpoint_url=s3.endpoint)
        done = other.try_mount()
        assert done.returncode != 0
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not other.mounted
    for file in (damaged, tmp_path / "none"):
        done = maker.cli("index", "import", file, maker.path)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
    done = maker.cli("index", "import", manifest, maker.path, check=True)
    assert "0 names in 0 directories taken up; 1 directory known better here" in done.stdout
    for arguments in (("export", maker.path / "none/x", tmp_path / "part"), ("import", manifest, maker.path / "none/x")):
        done = maker.cli("index", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"luxfuse: {maker.path}/none/x: a manifest has all names of an under-store; give {maker.path}, or export and "
            f"mount s3://{bucket}/none/x\n"
        )
    assert not (tmp_path / "part").exists()
    done = maker.cli("index", "export", maker.path, manifest, "--endpoint-url", "http://x")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
