"""Write and read distributed checkpoints of PyTorch: each process writes its own files, and the last one makes it valid.

    python examples/training/checkpoints.py /mnt/bucket/checkpoints

Two processes train, save after each epoch, and the second run goes on where the first ended. Mount with
`--write-mode cache-through` if a checkpoint is to be in the bucket when it is said to be saved, with `async-through` if it
is enough that it is safe on this machine. Needs torch; runs on a CPU in some seconds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import nn
from torch.distributed import checkpoint

PROCESSES, EPOCHS = 2, 2


def train(rank: int, root: Path, rendezvous: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=PROCESSES)
    run_epochs(rank, root)  # its model is gone before the group: the end of one that holds the last of the group can hang
    dist.destroy_process_group()


def run_epochs(rank: int, root: Path) -> None:
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(256, 256))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saved = sorted(path for path in root.glob("epoch-*") if (path / ".metadata").exists()) if root.exists() else []
    state = {"model": model.module.state_dict(), "epoch": torch.zeros(1)}
    if saved:
        checkpoint.load(state, checkpoint_id=saved[-1])
        model.module.load_state_dict(state["model"])
    begun = int(state["epoch"])
    for epoch in range(begun + 1, begun + 1 + EPOCHS):
        data = torch.randn(64, 256, generator=torch.Generator().manual_seed(epoch * PROCESSES + rank))
        loss = (model(data) - data).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = {"model": model.module.state_dict(), "epoch": torch.full((1,), float(epoch))}
        checkpoint.save(state, checkpoint_id=root / f"epoch-{epoch:04}")
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.4f}, saved", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write and read distributed checkpoints.")
    parser.add_argument("directory", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as local:
        processes.spawn(train, (given.directory, f"file://{local}/rendezvous"), PROCESSES)


if __name__ == "__main__":
    main()
