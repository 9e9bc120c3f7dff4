"""Ray Data on a mount: python examples/tables/with_ray.py /mnt/bucket/ray (each node mounts the bucket)"""

import sys

import ray

root = sys.argv[1]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
ray.data.range(3000).map(lambda row: {"minutes": row["id"], "city": row["id"] % 3}).write_parquet(root)
read = ray.data.read_parquet(root)
print(read.count(), read.sum("minutes"))
ray.shutdown()
