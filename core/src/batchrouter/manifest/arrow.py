"""Arrow's names as type checkers may take them.

The published stubs describe an older pyarrow: classes generic that are not at run time, kernels
without the arguments that they accept. So a checker sees `Any` here, and the run time the class.
"""

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

if TYPE_CHECKING:
    Array = Any
    DataType = Any
    Field = Any
    Scalar = Any
else:
    Array, DataType, Field, Scalar = pa.Array, pa.DataType, pa.Field, pa.Scalar

pc: Any = pyarrow.compute
pq: Any = pyarrow.parquet
csv: Any = pyarrow.csv
py_buffer: Any = pa.py_buffer

__all__ = ["Array", "DataType", "Field", "Scalar", "csv", "pc", "pq", "py_buffer"]
