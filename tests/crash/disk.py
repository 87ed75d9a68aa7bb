"""A file system of a few kilobytes, on tmpfs, which only root may mount."""

import subprocess
from pathlib import Path

import pytest


class Disk:
    """A file system of its own that a test fills up or locks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def mount(self, size: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.root)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a disk of a few kilobytes")

    def fill(self) -> None:
        with (self.root / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(512)):
                    pass
            except OSError:
                return

    def free(self) -> None:
        (self.root / "filler").unlink()

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.root)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.root)], check=False, capture_output=True)
