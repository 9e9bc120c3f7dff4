"""pandas on a mount: python examples/tables/with_pandas.py /mnt/bucket/tables"""

import sys
from pathlib import Path

import pandas as pd

root = Path(sys.argv[1])
root.mkdir(parents=True, exist_ok=True)
trips = pd.DataFrame({"city": ["Ulm", "Bern", "Linz"] * 1000, "minutes": range(3000)})
trips.to_parquet(root / "trips.parquet")
trips.to_csv(root / "trips.csv", index=False)
read = pd.read_parquet(root / "trips.parquet")
assert read.equals(pd.read_csv(root / "trips.csv"))
print(read.groupby("city")["minutes"].sum().to_dict())
