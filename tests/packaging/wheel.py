"""Builds wheel and sdist, looks into them, and uses the wheel with each extra alone in a clean environment.

Run by ``make test-wheel``; arguments choose extras, such as ``none langchain``.
"""
# ruff: noqa: T201

from __future__ import annotations

import re
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from zipfile import ZipFile

from environment import DECLARED, ROOT, Environment, pinned

PACKAGE = "colbert_integrations"
# What "all" consists of: the other extras are for those who work on the package.
ALONE = re.search(r"all = .*\[(.*)\]\"", DECLARED)[1].split(",")


def build(folder: Path) -> tuple[Path, Path]:
    """Build the sdist, and from it the wheel."""
    builder = Environment(folder / "builder")
    builder.install(pinned("build"))
    builder.run("-m", "build", "--outdir", str(folder / "dist"), str(ROOT), cwd=folder)
    return next((folder / "dist").glob("*.whl")), next((folder / "dist").glob("*.tar.gz"))


def check_wheel(wheel: Path) -> None:
    """The whole package and nothing else."""
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = [path for path in (ROOT / PACKAGE).rglob("*") if path.suffix == ".py" or path.name == "py.typed"]
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    assert f"{PACKAGE}/py.typed" in names
    assert names == expected, f"in the wheel or in the tree only: {sorted(names ^ expected)}"


def check_sdist(sdist: Path) -> None:
    """What it takes to build and to test."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", "tests/checkpoints.py"}
    assert wanted <= names, f"the sdist lacks {sorted(wanted - names)}"
    assert not [name for name in names if "__pycache__" in name or name.startswith(".venv")]


def use(wheel: Path, extra: str, folder: Path) -> str:
    """Install the wheel with one extra and use it, away from the repository."""
    environment = Environment(folder / "venv")
    # pytest beside it, which the builder of the tiny checkpoint imports.
    environment.install(str(wheel) if extra == "none" else f"{wheel}[{extra}]", pinned("pytest"))
    for script in (ROOT / "tests" / "packaging" / "uses.py", ROOT / "tests" / "checkpoints.py"):
        shutil.copy(script, folder)
    return environment.run("uses.py", *{"none": [], "all": ALONE}.get(extra, [extra]), cwd=folder).strip()


def main(chosen: list[str]) -> None:
    """Build, look, use."""
    with tempfile.TemporaryDirectory() as temporary:
        wheel, sdist = build(Path(temporary))
        check_wheel(wheel)
        check_sdist(sdist)
        print(f"{wheel.name} and {sdist.name}: whole", flush=True)
        for extra in chosen or ["none", *ALONE, "all"]:
            started, folder = time.monotonic(), Path(temporary, extra)
            folder.mkdir()
            said = use(wheel, extra, folder)
            shutil.rmtree(folder)  # each holds a torch
            print(f"{extra}: {said} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
