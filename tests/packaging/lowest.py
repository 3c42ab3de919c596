"""Runs the everyday tests with the lowest versions of everything that pyproject.toml admits, torch aside.

Run by ``make test-lowest``; arguments go to pytest.
"""

# ruff: noqa: T201

from __future__ import annotations

import re
import subprocess
import sys

from environment import DECLARED, ROOT, Environment


def lowest_versions() -> list[str]:
    """Every lower bound as a pin; also those of the frameworks' companions, whose new releases need new frameworks."""
    bounds = dict(re.findall(r'"([A-Za-z0-9-]+)>=([\d.]+)[",]', DECLARED))
    del bounds["torch"]  # constraints.txt pins that
    del bounds["colbert-integrations-kernel"]  # in no registry yet
    return [f"{name}=={version}" for name, version in bounds.items()]


def main() -> int:
    """Install, then test."""
    versions = lowest_versions()
    print("Lowest versions:", *versions)
    environment = Environment(ROOT / ".venv-lowest")
    environment.install("-e", ".[dev]", *versions)
    # Warnings are no errors here: old libraries on a new torch and pydantic give some that nobody will mend.
    # The examples are left out, which run with warnings as errors.
    quiet = [
        "-W",
        "default",
        "--disable-warnings",
        "-p",
        "no:cacheprovider",
        "--ignore=tests/examples/test_examples.py",
    ]
    command = [str(environment.python), "-m", "pytest", *quiet, *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main())
