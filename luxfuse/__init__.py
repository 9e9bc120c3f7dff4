"""luxfuse: a cloud bucket as a local directory, at local-disk speed."""

__version__ = "0.1.0"
