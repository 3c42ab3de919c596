"""Arguments that a checkpoint asks its library to load it with: refused where they would change a vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import UnsupportedCheckpointError
from .files import Files
from .json_types import expect_type

__all__ = ["check_arguments"]

# For the model, the tokenizer and the configuration, each by its name in sentence-transformers 6 and the one before.
_LOADING = ("model_kwargs", "model_args", "processor_kwargs", "tokenizer_args", "config_kwargs", "config_args")
# Where things are loaded from and how they are computed, which does not change what is computed.
_HARMLESS = frozenset(
    {"trust_remote_code", "token", "cache_dir", "revision", "subfolder", "local_files_only", "code_revision"}
    | {"attn_implementation", "dtype", "torch_dtype", "device_map", "low_cpu_mem_usage", "use_safetensors"}
    | {"add_pooling_layer", "use_cache", "use_fast", "unpad_inputs", "use_memory_efficient_attention"}
)
_ONLY: Mapping[str, str] = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
_MODALITY = {"method": "forward", "method_output_name": "last_hidden_state"}


def check_arguments(files: Files) -> None:
    """Raise if a checkpoint's library would load it with arguments that change a vector and that are not known here.

    Args:
        files: The checkpoint's files.

    Raises:
        UnsupportedCheckpointError: With the first such argument.
    """
    file = files.transformer_file
    for argument, value in _changes(files.folder.mapping(file), file):
        raise UnsupportedCheckpointError(
            f"{files.name} is to be loaded with {argument}={value!r} ({file}), which is not done here and would change "
            "its vectors. Write what it changes into config.json or the tokenizer's files, and take it out there"
        )


def _changes(said: Mapping[str, Any], file: str) -> Iterator[tuple[str, Any]]:
    processing = expect_type(said.get("processing_kwargs") or {}, dict, f"{file}: processing_kwargs")
    nested = {key: said.get(key) or {} for key in _LOADING}
    nested |= {f"processing_kwargs.{part}": processing.get(part) or {} for part in ("common", "text")}
    for key, given in nested.items():
        arguments = expect_type(given, dict, f"{file}: {key}")
        for name, value in arguments.items():
            if value is not None and name not in _HARMLESS:
                yield f"{key}.{name}", value
    for key, value in _ONLY.items():
        if said.get(key) not in (None, value):
            yield key, said[key]
    if said.get("tokenizer_name_or_path") is not None:
        yield "tokenizer_name_or_path", said["tokenizer_name_or_path"]
    modalities = said.get("modality_config")
    if modalities is not None:
        modalities = expect_type(modalities, dict, f"{file}: modality_config")
    # With "message" every text goes through the chat template.
    if modalities is not None and ("message" in modalities or modalities.get("text") != _MODALITY):
        yield "modality_config", modalities
