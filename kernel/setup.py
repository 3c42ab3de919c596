"""Builds the kernel as a plain shared library, for any Python: it is called by ctypes and knows nothing of Python."""

import sys
from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

if sys.platform == "win32":
    sys.exit("The compiled kernel is for Linux and macOS, by GCC or clang. Elsewhere torch does its work.")


class PlainLibrary(build_ext):
    """A library whose name holds no Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        """The file of an extension."""
        return fullname.replace(".", "/") + ".so"


class AnyPython(bdist_wheel):
    """A wheel for one platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Python, ABI and platform that the wheel is for."""
        return "py3", "none", super().get_tag()[2]


# Apple's compiler has no OpenMP of its own; there the kernel runs on one thread.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]

setup(
    ext_modules=[
        Extension(
            "colbert_integrations_kernel.kernel",
            sources=["src/kernel.c"],
            depends=sorted(glob("src/*.h")),
            libraries=["m"],
            extra_compile_args=["-O3", "-std=gnu11", "-fno-strict-aliasing", "-fwrapv", "-Wall", "-Wextra", *OPENMP],
            extra_link_args=OPENMP,
        )
    ],
    cmdclass={"build_ext": PlainLibrary, "bdist_wheel": AnyPython},
)
