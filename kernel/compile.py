"""Compiles `lines.c` for a wheel, by the clang inside the `ziglang` package.

It holds the C libraries of every target, so any machine builds for all of them. The one that is
built for is this machine's, or what `BATCHROUTER_KERNEL_PLATFORM` names.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLATFORM_VARIABLE = "BATCHROUTER_KERNEL_PLATFORM"
TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "musllinux_1_2_aarch64": "aarch64-linux-musl",
    "macosx_11_0_x86_64": "x86_64-macos.11.0",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
}
"""The platform in a wheel's name → what the compiler calls it."""

_FLAGS = ["-std=c11", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-s"]
_WARNINGS = ["-Wall", "-Wextra", "-Werror"]


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the library beside its Python: into a wheel, or into the checkout of an editable one."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say which machines the wheel is for."""
        name = os.environ.get(PLATFORM_VARIABLE) or this_platform()
        if name not in TARGETS:
            known = ", ".join(TARGETS)
            raise SystemExit(
                f"batchrouter-kernel has no target {name!r}; set {PLATFORM_VARIABLE} to one of"
                f" {known}, or do without: batchrouter-core needs no kernel"
            )
        self._scratch = tempfile.mkdtemp()
        package = Path(self.root, "src", "batchrouter_kernel")
        library = Path(package if version == "editable" else self._scratch, "lines.so")
        compile_library(package / "lines.c", library, TARGETS[name], self._scratch)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{name}"
        if version != "editable":
            build_data["force_include"][str(library)] = "batchrouter_kernel/lines.so"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the compiler left."""
        del version, build_data, artifact_path
        shutil.rmtree(self._scratch, ignore_errors=True)


def this_platform() -> str:
    """Name this machine as a wheel does."""
    machine = platform.machine().lower()
    if sys.platform == "darwin":
        return f"macosx_11_0_{machine}"
    libc = "manylinux_2_17" if platform.libc_ver()[0] == "glibc" else "musllinux_1_2"
    return f"{libc}_{machine}" if sys.platform == "linux" else f"{sys.platform}_{machine}"


def compile_library(source: Path, library: Path, target: str, scratch: str) -> None:
    """Compile; what the compiler keeps between runs stands in a folder that goes."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, *_FLAGS, *_WARNINGS]
    caches = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), scratch)
    subprocess.run([*command, "-o", str(library), str(source)], env=os.environ | caches, check=True)


if __name__ == "__main__":
    print(*TARGETS, sep="\n")
