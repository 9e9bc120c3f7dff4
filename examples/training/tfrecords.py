"""Train with TensorFlow from TFRecord files by tf.data.

    python examples/training/tfrecords.py /mnt/bucket/records

Writes 4 files of generated samples if there are none. Needs tensorflow (or tensorflow-cpu); runs on a CPU in some seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf

FILES, SAMPLES, CLASSES, FEATURES = 4, 500, 4, 32
FORMAT = {"features": tf.io.FixedLenFeature([FEATURES], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}


def generate(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    centres = generator.normal(0, 1, (CLASSES, FEATURES))
    for number in range(FILES):
        with tf.io.TFRecordWriter(str(root / f"{number:03}.tfrecord")) as writer:
            for label in generator.integers(0, CLASSES, SAMPLES):
                values = centres[label] + generator.normal(0, 1, FEATURES)
                feature = {
                    "features": tf.train.Feature(float_list=tf.train.FloatList(value=values)),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    example = tf.io.parse_single_example(record, FORMAT)
    return example["features"], example["label"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with TensorFlow from TFRecord files.")
    parser.add_argument("directory", type=Path)
    given = parser.parse_args()
    if not list(given.directory.glob("*.tfrecord")):
        generate(given.directory)
    tf.keras.utils.set_random_seed(0)
    names = sorted(str(path) for path in given.directory.glob("*.tfrecord"))
    data = tf.data.Dataset.from_tensor_slices(names).interleave(
        tf.data.TFRecordDataset, cycle_length=2, num_parallel_calls=tf.data.AUTOTUNE
    )
    data = data.map(parse, num_parallel_calls=2).shuffle(500).batch(50).prefetch(2)
    model = tf.keras.Sequential([tf.keras.layers.Input((FEATURES,)), tf.keras.layers.Dense(CLASSES)])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.Adam(3e-2), loss, metrics=["accuracy"])
    for epoch, accuracy in enumerate(model.fit(data, epochs=2, verbose=0).history["accuracy"], 1):
        print(f"epoch {epoch}: {FILES * SAMPLES} samples, accuracy {100 * accuracy:.0f} %")


if __name__ == "__main__":
    main()
