"""Runs DLIO: ``mpirun -n N python dlio_run.py OVERRIDE...``, by path and without this project's packages.

Two things of DLIO 2.0 are in the way where only some of its many dependencies are installed: it imports TensorFlow, for a
profiler, before anything else, also where PyTorch loads the data, which takes 7 s of processor time in each process; and
for each TFRecord file it calls NVIDIA DALI's tfrecord2idx, whose index only DALI's loader reads.
"""

from __future__ import annotations

import os
import sys
import types

if os.environ["BENCH_DLIO_LOADER"] != "tensorflow":
    sys.modules["tensorflow"] = types.ModuleType("tensorflow")
else:
    from dlio_benchmark.data_generator import tf_generator

    tf_generator.call = lambda command: 0

from dlio_benchmark.main import main

if __name__ == "__main__":
    main()
