"""The kernels for AArch64 equal the portable ones, under emulation: no such machine is at hand."""

import subprocess
from pathlib import Path
from shutil import which

import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
KERNELS = Path(__file__).parents[2] / "haqsearch/kernels/native"


@pytest.mark.skipif(not (which(COMPILER) and which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}")
def test_equals_portable(tmp_path):
    program = tmp_path / "neon"
    sources = [Path(__file__).parent / "native/neon.cpp", KERNELS / "neon.cpp", KERNELS / "portable.cpp"]
    flags = ["-std=c++17", "-O2", "-static", "-march=armv8.2-a+dotprod", "-DHAQ_NEON", f"-I{KERNELS}"]
    subprocess.run([COMPILER, *flags, *map(str, sources), "-o", str(program)], check=True)
    run = subprocess.run([EMULATOR, "-cpu", "max", str(program)], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
