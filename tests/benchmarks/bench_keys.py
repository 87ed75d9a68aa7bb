"""Duplicate keys found among many: CPU and peak memory of the whole proof.

    python tests/benchmarks/bench_keys.py [--keys 2000000]

Keys are hashed as a build hashes them, one of them stands twice, and it must be named. 100 million
keys take 800 MB of the temporary folder.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

_BATCH_ROWS = 16_384


def main() -> None:
    """Prove and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--keys", type=int, default=2_000_000)
    count: int = parser.parse_args().keys
    from batchrouter.manifest.process import own_process, prepare_process

    own_process()
    prepare_process()
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from batchrouter.errors import DuplicateKeyError
    from batchrouter.manifest.keys import SeenKeys, digests_of, refuse_duplicates, typed_keys

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, count, _BATCH_ROWS):
            rows = np.arange(start, min(start + _BATCH_ROWS, count))
            keys = np.where(rows == count - 1, 0, rows)
            texts = pc.binary_join_element_wise("T-", pa.array(keys).cast(pa.string()), "")
            yield pa.RecordBatch.from_arrays([pa.array(rows), texts], ["_row", "id"])

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = "no duplicate"
    with SeenKeys() as seen:
        for batch in batches():
            seen.add(digests_of(typed_keys([batch.column("id")])))
        hashed_s = time.process_time() - cpu_s
        try:
            refuse_duplicates(seen, ("id",), batches)
        except DuplicateKeyError as error:
            found = str(error)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak_mb = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(
        f"{count:,} keys: {cpu_s:.1f} CPU s ({hashed_s:.1f} of it the first pass), {wall_s:.1f} s"
    )
    print(f"peak {peak_mb:.0f} MB; {found}")


if __name__ == "__main__":
    main()
