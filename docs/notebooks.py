"""Runs the notebooks of examples/: for the site, which shows what they print, and for the tests.

In git they have no outputs: ``python docs/notebooks.py`` takes them out. As an extension of Sphinx this module runs
each notebook when its page is read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

if TYPE_CHECKING:
    from sphinx.application import Sphinx

EXAMPLES = Path(__file__).parents[1] / "examples"
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_BAR = "application/vnd.jupyter.widget-view+json"


def run(path: Path, environment: Mapping[str, str] | None = None) -> nbformat.NotebookNode:
    """Run a notebook where it lies, in an interpreter of its own.

    Args:
        path: The notebook; the file stays as it is.
        environment: Variables of that interpreter. None: those of this one.

    Returns:
        The notebook with its outputs, without progress bars, which are for who waits.

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        # By files in a folder, not by ports that others could listen at, of which the kernel would warn.
        settings = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        place = {"metadata": {"path": str(path.parent)}}
        client = NotebookClient(
            notebook, config=settings, resources=place, timeout=300, store_widget_state=False
        )
        client.execute(env=dict(os.environ if environment is None else environment))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _BAR not in output.get("data", {})]
    return notebook


def cleared(path: Path) -> str:
    """Read a notebook as it is to be in git.

    Args:
        path: The notebook.

    Returns:
        Its text, without outputs, numbers of runs and what an editor keeps about it.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {"kernelspec": _KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    return f"{nbformat.writes(notebook)}\n"


def _run_page(app: Sphinx, page: str, source: list[str]) -> None:
    path = Path(app.env.doc2path(page))
    if app.config.run_notebooks and path.suffix == ".ipynb":
        source[0] = nbformat.writes(run(path))


def setup(app: Sphinx) -> dict[str, Any]:
    """Show notebooks by MyST-NB, run before unless ``run_notebooks`` is off."""
    app.setup_extension("myst_nb")
    # It says that each notebook is run, and the colours that furo brings let the root logger print that.
    logging.getLogger("traitlets").setLevel(logging.WARNING)
    app.add_config_value("run_notebooks", True, "env", bool)
    app.connect("source-read", _run_page)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        path.write_text(cleared(path), encoding="utf-8")
