"""Spark on a mount: python examples/tables/with_spark.py /mnt/bucket/spark (every executor's machine mounts the bucket)

Spark makes files valid by renaming them, which a mount does by copies in the store; the second version of its commit
algorithm renames each of them once only.
"""

import sys

from pyspark.sql import SparkSession

root = sys.argv[1]
spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.ui.enabled", "false")
    .config("spark.hadoop.mapreduce.fileoutputcommitter.algorithm.version", "2")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
spark.range(3000).selectExpr("id AS minutes", "id % 3 AS city").write.mode("overwrite").partitionBy("city").parquet(
    f"file://{root}"
)
totals = spark.read.parquet(f"file://{root}").groupBy("city").sum("minutes").orderBy("city").collect()
print({row[0]: row[1] for row in totals})
spark.stop()
