"""Dask on a mount: python examples/tables/with_dask.py /mnt/bucket/dask"""

import sys

import dask
import dask.dataframe as dd
import pandas as pd

root = sys.argv[1]
trips = pd.DataFrame({"city": ["Ulm", "Bern", "Linz"] * 1000, "minutes": range(3000)})
with dask.config.set(scheduler="threads"):
    dd.from_pandas(trips, npartitions=4).to_parquet(root, overwrite=True)
    print(dd.read_parquet(root).groupby("city")["minutes"].sum().compute().sort_index().to_dict())
