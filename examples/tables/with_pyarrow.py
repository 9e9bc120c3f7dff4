"""A partitioned data set of pyarrow on a mount: python examples/tables/with_pyarrow.py /mnt/bucket/arrow"""

import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

root = sys.argv[1]
trips = pa.table({"city": ["Ulm", "Bern", "Linz"] * 1000, "minutes": list(range(3000))})
partitioning = ds.partitioning(pa.schema([("city", pa.string())]), flavor="hive")
ds.write_dataset(trips, root, format="parquet", partitioning=partitioning, existing_data_behavior="delete_matching")
read = ds.dataset(root, format="parquet", partitioning=partitioning)
print(read.to_table(filter=pc.field("city") == "Bern")["minutes"].to_pylist()[:3], read.count_rows())
