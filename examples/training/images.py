"""Train a small image classifier on plain file paths, such as those of a mounted bucket.

    python examples/training/images.py --generate images      # then upload the directory to the bucket
    python examples/training/images.py /mnt/bucket/images

The directory has one subdirectory per class, with PNG or JPEG files in it. The second epoch shows what a cache does:
its files come from local disk. Where luxfuse is installed in this Python, the mount is told the order of each epoch, and
fetches ahead. Needs torch, numpy and pillow; runs on a CPU within a minute on the generated images.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler

SIZE = 64
CLASSES = ("circle", "square", "stripes", "noise")
SUFFIXES = {".png", ".jpg", ".jpeg"}


def generate(root: Path, count: int) -> None:
    """Write ``count`` images, a quarter of each class, half of them PNG and half JPEG."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = CLASSES[number % len(CLASSES)]
        suffix = "png" if number // len(CLASSES) % 2 else "jpg"
        Image.fromarray(draw(name, generator)).save(root / name / f"{number:05}.{suffix}")


def draw(name: str, generator: np.random.Generator) -> np.ndarray:
    """Return one picture of the class: SIZE x SIZE pixels, three colours."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    y, x = generator.integers(SIZE // 3, 2 * SIZE // 3, 2)
    radius = generator.integers(SIZE // 8, SIZE // 4)
    shape = {
        "circle": (rows - y) ** 2 + (columns - x) ** 2 < radius**2,
        "square": (abs(rows - y) < radius) & (abs(columns - x) < radius),
        "stripes": (rows + columns) % (2 * radius) < radius,
        "noise": generator.random((SIZE, SIZE)) < 0.5,
    }[name]
    picture = generator.integers(0, 80, (SIZE, SIZE, 3))
    picture[shape] += generator.integers(80, 176, 3)
    return picture.astype(np.uint8)


class ImageFolder(Dataset[tuple[torch.Tensor, int]]):
    """The images below ``root``, labelled by their directory."""

    def __init__(self, root: Path) -> None:
        self.classes = sorted(path.name for path in root.iterdir() if path.is_dir())
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((root / name).iterdir())
            if path.suffix.lower() in SUFFIXES
        ]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[index]
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB").resize((SIZE, SIZE)), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255, label


def model_for(classes: int) -> nn.Module:
    """Return a network of two convolutions."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 4 * 4, classes)),
    )


def sampler_of(dataset: ImageFolder) -> Sampler[int]:
    """Return a random order, of which the mount is told if luxfuse is installed here, too, and not only on the host."""
    sampler: Any = RandomSampler(dataset)
    if importlib.util.find_spec("luxfuse") is not None:
        from luxfuse.training import ScheduledSampler

        sampler = ScheduledSampler(sampler, [path for path, _ in dataset.files])
    return sampler


def train(root: Path, epochs: int, workers: int, batch: int) -> None:
    """Train and print a line per epoch."""
    torch.manual_seed(0)
    dataset = ImageFolder(root)
    if not dataset.files:
        sys.exit(f"{root}: no images; make some with --generate")
    loader = DataLoader(dataset, batch_size=batch, sampler=sampler_of(dataset), num_workers=workers)
    model = model_for(len(dataset.classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss()
    print(f"{len(dataset)} images of {len(dataset.classes)} classes, {workers} workers")
    for epoch in range(1, epochs + 1):
        start, correct, total_loss = time.perf_counter(), 0, 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            output = model(images)
            loss = criterion(output, labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(labels)
            correct += int((output.argmax(1) == labels).sum())
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch}: {seconds:.2f} s, {len(dataset) / seconds:.0f} samples/s, "
            f"loss {total_loss / len(dataset):.3f}, accuracy {100 * correct / len(dataset):.0f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small image classifier on plain file paths.")
    parser.add_argument("directory", type=Path, help="one subdirectory per class, with images")
    parser.add_argument("--generate", action="store_true", help="write images into the directory, and do not train")
    parser.add_argument("--count", type=int, default=2000, help="how many images to generate (default 2000)")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--num-workers", type=int, default=2, help="processes that read images (default 2)")
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    if given.generate:
        generate(given.directory, given.count)
    else:
        train(given.directory, given.epochs, given.num_workers, given.batch_size)


if __name__ == "__main__":
    main()
