"""A PyTorch DataLoader with worker processes over a mount: the second epoch asks the store for nothing."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from tests.support.fault_proxy import FaultProxy
from tests.support.mounted import PATIENCE_S, Mounts, content

FILES, FILE_BYTES = 96, 120_000

PROGRAM = """
import hashlib, json, os, sys
import torch
from torch.utils.data import DataLoader, Dataset

class Files(Dataset):
    def __init__(self, root):
        self.paths = sorted(os.path.join(d, n) for d, _, names in os.walk(root) for n in names)
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, i):
        with open(self.paths[i], "rb") as f:
            return i, torch.frombuffer(bytearray(f.read()), dtype=torch.uint8)

data = Files(sys.argv[1])
loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=4)
for epoch in range(2):
    seen = {}
    for numbers, batch in loader:
        for i, row in zip(numbers.tolist(), batch):
            seen[os.path.relpath(data.paths[i], sys.argv[1])] = hashlib.sha256(row.numpy().tobytes()).hexdigest()
    print(json.dumps(seen), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (the extra luxfuse[torch])")
def test_second_epoch_comes_from_the_cache(mounting: Mounts, proxy: FaultProxy, bucket: str, fill) -> None:
    import hashlib
    import subprocess

    files = {f"class{i % 4}/image{i:03}.bin": content(i, FILE_BYTES) for i in range(FILES)}
    fill(files)
    mount = mounting(f"s3://{bucket}", endpoint_url=proxy.endpoint)
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mount.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        env=mount.environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        asked = [r for r in proxy.requests if r.method == "GET" and "list-type" not in r.query]
        assert len({r.path for r in asked}) == len(asked) == FILES
        proxy.reset_counts()
        process.stdin.write("\n")
        process.stdin.flush()
        second = json.loads(process.stdout.readline())
        # The content comes from the cache. What only a listing told of the files' modes is asked for once.
        assert [r for r in proxy.requests if r.method != "HEAD"] == []
        assert len(proxy.requests) <= FILES
        process.communicate("\n", timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)
    assert first == expected
    assert second == expected
    status = mount.status()
    assert status["reads"]["passthrough_opens"] >= 2 * FILES
    assert status["reads"]["copied_opens"] == 0
