"""The fsspec file system ``lux://``: files of an under-store, through this machine's mount of it where there is one.

    lux://s3/bucket/key, lux://gs/bucket/key, lux://az/container/key, lux://sftp/host/path, lux://file/absolute/path

The first part is the protocol that fsspec knows the store by, the rest what follows ``://`` in its own URLs. Where this
user has mounted the bucket, or a part of it that the path is in, the file is read and written through the mount, and so
comes from the cache; else the store is asked, by the fsspec driver of the protocol. Storage options are those of that
driver:

    pandas.read_parquet("lux://s3/bucket/table", storage_options={"endpoint_url": "https://minio.example"})
"""

from luxfuse.lux.filesystem import LuxFileSystem

__all__ = ["LuxFileSystem"]
