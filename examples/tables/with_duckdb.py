"""DuckDB on a mount: python examples/tables/with_duckdb.py /mnt/bucket/duckdb

Parquet files are read and written in place. A database file that is written to all the time belongs on a local disk.
"""

import sys
from pathlib import Path

import duckdb

root = Path(sys.argv[1])
root.mkdir(parents=True, exist_ok=True)
trips = "SELECT ['Ulm', 'Bern', 'Linz'][1 + i % 3] AS city, i AS minutes FROM range(3000) t(i)"
duckdb.sql(f"COPY ({trips}) TO '{root}/trips.parquet' (FORMAT parquet)")
totals = duckdb.sql(f"SELECT city, sum(minutes)::BIGINT FROM '{root}/*.parquet' GROUP BY city ORDER BY city").fetchall()
print(dict(totals))
