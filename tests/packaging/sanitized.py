"""Builds the compiled kernel with GCC's sanitizers, and runs what tests it: a row read too many stops them.

Run by ``make test-sanitized``, in the environment of the tests; arguments go to pytest.
"""
# ruff: noqa: T201

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "colbert_integrations_kernel"
# Those whose jobs are of all shapes, and the stores that score by it.
TESTS = ["tests/test_kernel.py", "tests/scoring", "tests/encoder/test_packed.py", "tests/index/test_search.py"]
TESTS += ["--ignore=tests/scoring/test_triton.py"]
FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-std=gnu11", "-fno-strict-aliasing", "-fwrapv", "-fopenmp"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# Reads one row more than there are.
TOO_FAR = """
import torch
from colbert_integrations import TokenEmbeddings
from colbert_integrations.scoring import stack_queries
queries = stack_queries(TokenEmbeddings.from_list([torch.ones(5, 64)]))
queries.score(torch.ones(10, 64), torch.tensor([11]))
"""


def build(folder: Path) -> None:
    """Build the kernel as an importable package in a folder."""
    shutil.copytree(ROOT / "kernel" / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library, source = str(folder / PACKAGE / "kernel.so"), str(ROOT / "kernel" / "src" / "kernel.c")
    subprocess.run(["gcc", "-shared", "-fPIC", *FLAGS, *SANITIZERS, "-o", library, source, "-lm"], check=True)


def settings(folder: Path) -> dict[str, str]:
    """Environment variables of a Python that takes this kernel, and whose memory is watched."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = [subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip() for name in names]
    return {
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python's own are not ours to mend
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
    }


def main() -> int:
    """Build, see that the sanitizers see anything, then test."""
    if shutil.which("gcc") is None:
        print("needs gcc")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        environment = {**os.environ, **settings(Path(folder))}
        trial = subprocess.run([sys.executable, "-c", TOO_FAR], env=environment, capture_output=True, text=True)
        if "heap-buffer-overflow" not in trial.stderr:
            print(f"The sanitizers did not see a row that was read too many:\n{trial.stderr[-2000:]}")
            return 1
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(sys.argv[1:] or TESTS)]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    raise SystemExit(main())
