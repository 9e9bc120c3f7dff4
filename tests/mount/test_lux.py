"""``lux://`` through real mounts: fsspec's own suites, and the libraries that people use it with."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Iterator

import pytest

from luxfuse.lux import LuxFileSystem
from tests.mount.conftest import new_bucket
from tests.support.abstract_suites import Suites
from tests.support.fast_s3 import FastS3
from tests.support.mounted import PATIENCE_S, Mount, Mounts

_serial = itertools.count()

HEAD = """
import os, sys, fsspec
from luxfuse.lux import LuxFileSystem
fsspec.register_implementation("lux", LuxFileSystem, clobber=True)
root, options = sys.argv[1], {"endpoint_url": sys.argv[2]}
fs = fsspec.filesystem("lux", **options)
assert fs.in_mount(root) == sys.argv[3], fs.in_mount(root)
"""

FSSPEC = """
with fsspec.open(root + "/a/new.txt", "wt", **options) as file:
    file.write("made")
assert fs.cat(root + "/a/new.txt") == b"made"
assert fs.info(root + "/a/new.txt")["size"] == 4
fs.mv(root + "/a/new.txt", root + "/a/moved.txt")
assert fs.ls(root + "/a", detail=False) == [root.removeprefix("lux://") + "/a/moved.txt"]
fs.put(sys.executable, root + "/python"); fs.get(root + "/python", os.environ["TMPDIR"] + "/copy"); fs.rm(root + "/python")
direct = fsspec.filesystem("lux", use_mount=False, key="test", secret="test-secret", **options)
assert direct.in_mount(root) is None
assert direct.cat(root + "/a/moved.txt") == b"made"
assert set(fs.find(root + "/a")) <= set(direct.find(root + "/a"))  # which has the marker of the directory, too
with direct.open(root + "/b/direct.txt", "wb") as file:
    file.write(b"to the store")
assert direct.cat(root + "/b/direct.txt") == b"to the store"
"""

PANDAS = """
import pandas
frame = pandas.DataFrame({"a": range(1000), "b": ["x", "y"] * 500})
frame.to_csv(root + "/pandas/t.csv", index=False, storage_options=options)
assert pandas.read_csv(root + "/pandas/t.csv", storage_options=options).equals(frame)
frame.to_parquet(root + "/pandas/t.parquet", storage_options=options)
assert pandas.read_parquet(root + "/pandas/t.parquet", storage_options=options).equals(frame)
"""

PYARROW = """
import pyarrow, pyarrow.dataset, pyarrow.parquet
table = pyarrow.table({"a": list(range(1000)), "part": [n % 3 for n in range(1000)]})
inside = root.removeprefix("lux://")
pyarrow.parquet.write_to_dataset(table, inside + "/arrow", partition_cols=["part"], filesystem=fs)
found = pyarrow.dataset.dataset(inside + "/arrow", filesystem=fs, partitioning="hive")
assert found.count_rows() == 1000
assert sorted(found.to_table(columns=["a"]).column("a").to_pylist()) == list(range(1000))
os._exit(0)  # a thread of pyarrow that is about to end when the interpreter does aborts the process
"""

DASK = """
import dask, dask.dataframe, pandas
dask.config.set(scheduler="synchronous")
frame = dask.dataframe.from_pandas(pandas.DataFrame({"a": range(100)}), npartitions=4)
frame.to_csv(root + "/dask/*.csv", index=False, storage_options=options)
assert int(dask.dataframe.read_csv(root + "/dask/*.csv", storage_options=options).a.sum().compute()) == 4950
"""

DATASETS = """
import datasets
datasets.disable_progress_bars()
fs.pipe({root + f"/hf/{n}.csv": b"a,b\\n%d,x\\n%d,y\\n" % (n, n + 10) for n in range(3)})
found = datasets.load_dataset("csv", data_files=root + "/hf/*.csv", split="train", storage_options=options)
assert sorted(found["a"]) == [0, 1, 2, 10, 11, 12]
found.save_to_disk(root + "/hf/saved", storage_options=options)
assert datasets.load_from_disk(root + "/hf/saved", storage_options=options)["b"][:2] == found["b"][:2]
"""


@pytest.fixture(scope="module")
def mount(s3: FastS3) -> Iterator[Mount]:
    """A mount for all tests here."""
    mounts = Mounts()
    try:
        yield mounts(f"s3://{new_bucket(s3)}", endpoint_url=s3.endpoint)
    finally:
        mounts.close()


@pytest.mark.parametrize(
    ("needs", "text"),
    [("fsspec", FSSPEC), ("pandas", PANDAS), ("pyarrow", PYARROW), ("dask", DASK), ("datasets", DATASETS)],
)
def test_a_library_reads_and_writes_through_the_mount(mount: Mount, tmp_path, needs: str, text: str) -> None:
    if importlib.util.find_spec(needs) is None or (needs == "dask" and importlib.util.find_spec("pandas") is None):
        pytest.skip(f"needs {needs}")
    before = mount.status()
    kept = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", "TMPDIR": str(tmp_path)}
    command = [
        sys.executable,
        "-c",
        HEAD + text,
        f"lux://{mount.source.replace('://', '/')}",
        _endpoint(mount),
        str(mount.path),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3 * PATIENCE_S, cwd="/", env=mount.environment | kept, check=False
    )
    assert (done.returncode, done.stderr) == (0, "") or (needs != "fsspec" and done.returncode == 0), done.stderr
    assert mount.status()["fuse"]["requests"] > before["fuse"]["requests"]


def _endpoint(mount: Mount) -> str:
    return mount.flags[mount.flags.index("--endpoint-url") + 1]


@pytest.mark.slow
class TestInAMount(Suites):
    """fsspec's own suites; `tests/unit/lux` runs them on stores and on the local disk."""

    @pytest.fixture
    def fs_path(self, mount: Mount, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("LUXFUSE_STATE_DIR", str(mount.state))
        path = f"{mount.source.replace('://', '/')}/suites{next(_serial)}"
        fs = LuxFileSystem(skip_instance_cache=True)
        assert fs.in_mount(path) is not None
        fs.mkdir(path)
        return path
