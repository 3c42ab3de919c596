"""Virtual environments to try the package in, apart from the one that it is developed in."""

from __future__ import annotations

import os
import re
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
DECLARED = PROJECT[PROJECT.index("\ndependencies = [") : PROJECT.index("\n[tool.")]


class Environment:
    """A virtual environment in a folder, made if there is none."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        if not self.python.exists():
            venv.create(folder, with_pip=True)

    def install(self, *requirements: str) -> None:
        """Install, with the project's constraints."""
        self.run("-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *requirements, cwd=ROOT)

    def run(self, *arguments: str, cwd: Path) -> str:
        """Run Python and return what it prints; raises if it fails."""
        # Nothing of the developer's own environment, and no hub: what is tried must come with the package.
        settings = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HOME", "OMP_", "SSL_"))}
        done = subprocess.run([self.python, *arguments], cwd=cwd, env=kept | settings, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments[:3])} failed:\n{done.stdout[-6000:]}{done.stderr[-6000:]}")
        return done.stdout


def pinned(name: str) -> str:
    """A requirement of pyproject.toml that is pinned to one version."""
    return re.findall(rf'"({re.escape(name)}==[^"]+)"', PROJECT)[0]
