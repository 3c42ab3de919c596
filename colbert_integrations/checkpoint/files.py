"""The files of a checkpoint that formats look at, read once: configurations, metadata, list of modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..errors import CheckpointNotFoundError
from .folder import Folder
from .refusals import refuse_unsupported

__all__ = ["BGE_HEAD", "METADATA", "MODULES", "ROOT_HEADS", "ST_CONFIG", "Files", "Module", "read_files"]

ST_CONFIG = "config_sentence_transformers.json"
METADATA = "artifact.metadata"
MODULES = "modules.json"
BGE_HEAD = "colbert_linear.pt"
# The names under which a head lies among the backbone's weights: Stanford's and, second, one that vLLM also reads.
ROOT_HEADS = ("linear.weight", "colbert_linear.weight")


@dataclass(frozen=True)
class Module:
    """One entry of ``modules.json``: its type as a dotted path, and its folder."""

    type: str
    path: str

    @property
    def kind(self) -> str:
        """The last part of its type."""
        return self.type.rsplit(".", 1)[-1]

    @property
    def config_file(self) -> str:
        """Path of its ``config.json``, from the root of the checkpoint."""
        return str(PurePosixPath(self.path, "config.json"))


@dataclass(frozen=True)
class Files:
    """The files of a checkpoint that formats look at."""

    name: str
    folder: Folder
    config: Mapping[str, Any]
    st_config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    modules: tuple[Module, ...]
    backbone: str

    @property
    def transformer_file(self) -> str:
        """Path of what sentence-transformers is told of the backbone, from the root of the checkpoint."""
        return str(PurePosixPath(self.backbone, "sentence_bert_config.json"))

    @property
    def has_fused_attention(self) -> bool:
        """Whether the backbone is Jina's rotary XLM-R: saved as plain "xlm-roberta", only its weights say so."""
        return any(".mixer.Wqkv." in name for name in self.folder.weight_names(self.backbone))

    def modules_of(self, kind: str) -> list[Module]:
        """Modules with a class whose name ends with ``kind``."""
        return [module for module in self.modules if module.kind.endswith(kind)]


def read_files(name: str, folder: Folder) -> Files:
    """Read what formats look at, and refuse what can't be run.

    Args:
        name: What the user asked for, for messages.
        folder: The checkpoint.

    Returns:
        Its files.

    Raises:
        CheckpointNotFoundError: If the folder holds no model.
        UnsupportedCheckpointError: If it is of a kind that is not run here.
        CheckpointError: If a file is damaged.
    """
    root_config = folder.mapping("config.json")
    refuse_unsupported(name, folder, root_config)
    modules = tuple(Module(str(entry.get("type", "")), str(entry.get("path", ""))) for entry in folder.objects(MODULES))
    backbone = next((module.path for module in modules if module.kind.endswith("Transformer")), "")
    config = folder.mapping(str(PurePosixPath(backbone, "config.json")))
    if not config:
        raise CheckpointNotFoundError(
            f"{folder.path / backbone} has no config.json, so it holds no model. A checkpoint is a folder with "
            "config.json, a tokenizer and weights, as saved by PyLate, colbert-ai or sentence-transformers"
        )
    refuse_unsupported(name, folder, config)
    metadata = folder.mapping(METADATA)
    # Some releases of colbert-ai nest the settings one level down.
    metadata = metadata["config"] if isinstance(metadata.get("config"), dict) else metadata
    return Files(name, folder, config, folder.mapping(ST_CONFIG), metadata, modules, backbone)
