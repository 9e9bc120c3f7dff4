"""Train a language model on one memory-mapped file of tokens, read at random places.

    python examples/training/tokens.py /mnt/bucket/tokens.bin

Writes 4 million generated tokens of two bytes each if the file is not there. Needs torch and numpy; runs on a CPU in some
seconds. The file stays open and mapped for as long as the training runs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

VOCABULARY, COUNT, LENGTH, BATCH = 64, 4_000_000, 32, 64


def generate(path: Path) -> None:
    """Write tokens in which each mostly follows from the one before."""
    generator = np.random.default_rng(0)
    following = generator.permutation(VOCABULARY).astype(np.uint16)
    tokens = np.empty(COUNT, np.uint16)
    tokens[::4] = generator.integers(0, VOCABULARY, len(tokens[::4]))
    for offset in (1, 2, 3):
        tokens[offset::4] = following[tokens[offset - 1 :: 4][: len(tokens[offset::4])]]
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens.tofile(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on a memory-mapped file of tokens.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    if not given.file.exists():
        generate(given.file)
    tokens = np.memmap(given.file, np.uint16, "r")
    torch.manual_seed(0)
    generator = np.random.default_rng(1)
    model = nn.Sequential(nn.Embedding(VOCABULARY, 32), nn.Linear(32, VOCABULARY))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start, losses = time.perf_counter(), []
    for _ in range(given.steps):
        places = generator.integers(0, len(tokens) - LENGTH - 1, BATCH)
        batch = torch.from_numpy(np.stack([tokens[place : place + LENGTH + 1] for place in places]).astype(np.int64))
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    print(f"{len(tokens)} tokens, {given.steps} steps in {seconds:.2f} s, loss {losses[0]:.2f} -> {losses[-1]:.2f}")


if __name__ == "__main__":
    main()
