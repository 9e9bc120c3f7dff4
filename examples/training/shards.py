"""Train from tar shards, as WebDataset lays them out: samples in sequence in few large files, which read fast anywhere.

    python examples/training/shards.py /mnt/bucket/shards

Writes 8 shards of generated samples into the directory if there are none, then reads them with worker processes: shards in
random order, and samples shuffled through a buffer. Needs torch and numpy; runs on a CPU in some seconds.
"""

from __future__ import annotations

import argparse
import io
import random
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

SHARDS, SAMPLES, CLASSES, FEATURES, BUFFER = 8, 250, 4, 64, 200


def generate(root: Path) -> None:
    """Write the shards: each sample is two members of one name, ``.npy`` with features and ``.cls`` with the class."""
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    centres = generator.normal(0, 1, (CLASSES, FEATURES))
    for shard in range(SHARDS):
        with tarfile.open(root / f"shard-{shard:05}.tar", "w") as tar:
            for number in range(SAMPLES):
                label = int(generator.integers(CLASSES))
                features = io.BytesIO()
                np.save(features, (centres[label] + generator.normal(0, 1, FEATURES)).astype(np.float32))
                for suffix, content in (("npy", features.getvalue()), ("cls", b"%d" % label)):
                    member = tarfile.TarInfo(f"{shard:05}-{number:05}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


class Shards(IterableDataset[tuple[torch.Tensor, int]]):
    """The samples of shards; each worker process has shards of its own."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        worker = get_worker_info()
        paths = random.Random(self.epoch).sample(self.paths, len(self.paths))
        mine = paths[worker.id :: worker.num_workers] if worker else paths
        generator, buffer = random.Random(self.epoch), []
        for path in mine:
            for sample in samples_of(path):
                buffer.append(sample)
                if len(buffer) > BUFFER:
                    yield buffer.pop(generator.randrange(len(buffer)))
        generator.shuffle(buffer)
        yield from buffer


def samples_of(path: Path) -> Iterator[tuple[torch.Tensor, int]]:
    with tarfile.open(path, "r|") as tar:  # in sequence: no seeks, no index
        parts: dict[str, bytes] = {}
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                continue
            parts[member.name.rpartition(".")[2]] = content.read()
            if len(parts) == 2:
                yield torch.from_numpy(np.load(io.BytesIO(parts["npy"]))), int(parts["cls"])
                parts.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train from tar shards.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    if not list(given.directory.glob("*.tar")):
        generate(given.directory)
    torch.manual_seed(0)
    dataset = Shards(sorted(given.directory.glob("*.tar")))
    model = nn.Linear(FEATURES, CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for epoch in range(1, given.epochs + 1):
        dataset.epoch = epoch
        start, correct, count = time.perf_counter(), 0, 0
        for features, labels in DataLoader(dataset, batch_size=50, num_workers=2):
            output = model(features)
            loss = nn.functional.cross_entropy(output, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            correct, count = correct + int((output.argmax(1) == labels).sum()), count + len(labels)
        print(
            f"epoch {epoch}: {time.perf_counter() - start:.2f} s, {count} samples, accuracy {100 * correct / count:.0f} %"
        )


if __name__ == "__main__":
    main()
