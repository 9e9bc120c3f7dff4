"""luxfuse: a cloud bucket as a local directory, at local-disk speed."""

import os

__version__ = "0.1.0"
PACKAGE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 (the keeper imports this, and pathlib is large)
"""Where this luxfuse is."""
