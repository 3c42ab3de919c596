"""Configuration of the documentation site; ``make docs`` builds it, docs/decisions/020-documentation-site.md says why.

The source folder is the root of the repository, so that a link between two files holds in the site as it does in the
repository. Pages are plain Markdown that reads well in either; what only the generator needs is added here.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import object_description

# Before autodoc: it rewrites the annotations of pydantic's base class, after which no framework can be imported.
import colbert_integrations.langchain
import colbert_integrations.llama_index

project = "colbert_integrations"
project_copyright = "the authors of colbert_integrations, Apache-2.0"
release = colbert_integrations.__version__

sys.path.insert(0, str(Path(__file__).parent))
# notebooks.py, which brings MyST-NB, and that MyST-Parser
extensions = ["notebooks", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/data/*/README.md",
    "examples/README.md",
    "examples/*.ipynb",
    "kernel/README.md",
]
exclude_patterns = [".*", "colbert_integrations", "site", "tests"]  # not walked

nb_execution_mode = "off"  # notebooks.py runs them
myst_heading_anchors = 4  # as deep as pages link to; named as GitHub names them

# ------------------------------------------------------------------------------------------------------- API reference

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_custom_sections = ["Source"]
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# ---------------------------------------------------------------------------------------------------------------- HTML

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/logo.svg"
html_theme_options = {
    "light_logo": "logo.svg",
    "dark_logo": "logo.svg",
    "light_css_variables": {
        "color-brand-primary": "#1c5b9e",
        "color-brand-content": "#1c5b9e",
    },
    "dark_css_variables": {"color-brand-primary": "#7fb6ee", "color-brand-content": "#7fb6ee"},
}
templates_path = ["_templates"]
html_additional_pages = {"index": "to_start.html"}  # pages lie as in the repository, below docs/
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# -------------------------------------------------------------------------------------------------------------- sidebar

_LISTS = {"docs/index", "docs/api/README", "docs/coming-from/README", "docs/decisions/README"}
_ENTRY = re.compile(r"^(?:-|\d+\.) \[(.+?)\]\(([^)#:]+)\.(?:md|ipynb)\)", re.MULTILINE)


def _add_sidebar(app: Sphinx, name: str, source: list[str]) -> None:
    """Make each list of links in an index page a part of the sidebar, so that a page is listed once."""
    if name not in _LISTS:
        return
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE):
        entries = "\n".join(f"{title} <{page}>" for title, page in _ENTRY.findall(section))
        if entries:
            heading = section.partition("\n")[0].lstrip("# ")
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n"


# ---------------------------------------------------------------------------------------------------------- docstrings

_attributes: dict[str, list[str]] = {}


def _keep_attribute(
    app: Sphinx, what: str, name: str, documented: object, options: Any, lines: list[str]
) -> None:
    if what in ("attribute", "property"):
        _attributes[name] = list(lines)


def _restore_attribute(
    app: Sphinx, what: str, name: str, documented: object, options: Any, lines: list[str]
) -> None:
    """Undo what napoleon does to the docstring of an attribute: it takes what comes before a colon for a type."""
    lines[:] = _attributes.pop(name, lines)


def _show_fields(
    app: Sphinx,
    what: str,
    name: str,
    documented: Any,
    options: Any,
    signature: str,
    returned: str,
) -> tuple[str, None] | None:
    """The fields of a pydantic model as its arguments, as the source writes them and without those of the framework."""
    if what != "class" or not hasattr(documented, "model_fields"):
        return None
    ours = [base for base in reversed(documented.__mro__) if base.__module__.startswith(project)]
    annotations = {
        field: said for base in ours for field, said in inspect.get_annotations(base).items()
    }
    shown = ["*"]
    for field, info in documented.model_fields.items():
        if field in annotations:
            default = object_description(info.get_default(call_default_factory=True))
            shown.append(f"{field}: {annotations[field]} = {default}")
    return f"({', '.join(shown)})", None


def setup(app: Sphinx) -> None:
    """Connect what this file adds; napoleon runs at the priority of 500."""
    app.connect("source-read", _add_sidebar)
    app.connect("autodoc-process-docstring", _keep_attribute, priority=400)
    app.connect("autodoc-process-docstring", _restore_attribute, priority=600)
    app.connect("autodoc-process-signature", _show_fields)
