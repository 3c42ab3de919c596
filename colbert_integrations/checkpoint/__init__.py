"""From a name or a folder to data: what a checkpoint says of itself, and the weights of its head.

``hub.py`` finds the folder, ``read.py`` reads the checkpoint in it: ``folder.py`` reads single files, ``files.py``
those that formats look at, ``json_types.py`` checks of what kind their values are, ``head.py`` reads the layers of the
projection. ``formats.py`` is the table of on-disk formats, ``module_checks.py`` checks the modules of the native one,
``loading_checks.py`` what a library is to load them with; ``refusals.py`` is the table of what else is refused and why,
``spec.py`` the result, ``digest.py`` what tells one model from another.
"""

from __future__ import annotations

from .digest import WeightFiles, model_digest, weights_digest
from .hub import HubOptions, locate
from .read import read_checkpoint
from .spec import Checkpoint, ColBERTSpec, DenseSpec, PoolingSpec, SpecOverrides

__all__ = [
    "Checkpoint",
    "ColBERTSpec",
    "DenseSpec",
    "HubOptions",
    "PoolingSpec",
    "SpecOverrides",
    "WeightFiles",
    "locate",
    "model_digest",
    "read_checkpoint",
    "weights_digest",
]
