"""What goes wrong while writing, as an error that names the file."""

import contextlib
from collections.abc import Generator

from batchrouter.errors import StorageError


@contextlib.contextmanager
def storing(path: str) -> Generator[None, None, None]:
    """Turn what goes wrong while writing into a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        told = error.strerror or str(error)
        raise StorageError(f"{path} cannot be written: {told}; nothing of it was kept") from error
