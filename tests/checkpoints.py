"""Tiny random checkpoints in the layouts of real repositories, written file by file so that every byte is known.

``build(name, folder)`` writes one; ``LAYOUTS`` names them all. Weights are random but fixed, scaled so that attention
matters and a wrong mask, position or token shows in the vectors.
"""

from __future__ import annotations

import json
import string
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HIDDEN, DIM = 32, 16

needs_jina = pytest.mark.skipif(
    not hasattr(transformers, "JinaEmbeddingsV3Model"),
    reason="needs transformers>=5.4 (JinaEmbeddingsV3Model)",
)
# One type of each way in which backbones are run packed.
PACKED = ["bert", "xlm-roberta", pytest.param("jina_embeddings_v3", marks=needs_jina), "modernbert"]

WORDS = """
a an and are at ball berlin bert bird bread capital cat city dog does drive fast flour fly fox france from
germany how in into is it jumps lazy lift lions model much not of on one over paris plane quick rain red
river roads runs sea sky slow sun the they to token vector very was water what where which why wind wings
with words
""".split()  # noqa: SIM905, for one word a line would say no more
SENTENCES = [
    "the quick red fox jumps over the lazy dog, and the cat runs into the city.",
    "Paris is the capital of France; Berlin is the capital of Germany!",
    "how does a plane fly? the wind lifts (both) wings; water runs in the river",
]


# ------------------------------------------------------------------------------------------------------ tokenizers


def _save_tokenizer(folder: Path, tokenizer: Tokenizer, special: dict[str, str], **config: Any) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast", **special, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def wordpiece(folder: Path, *, unused: int = 10) -> int:
    """BERT's kind: lower-casing word pieces with ``[unusedN]`` slots. Returns the size of the vocabulary."""
    vocabulary = ["[PAD]", *(f"[unused{i}]" for i in range(unused)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary += [*string.punctuation, *string.ascii_lowercase, *string.digits]
    vocabulary += [f"##{character}" for character in string.ascii_lowercase + string.digits]
    vocabulary += [word for word in WORDS if word not in vocabulary]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    _save_tokenizer(folder, tokenizer, {**names, "mask_token": "[MASK]"})
    return len(vocabulary)


def byte_bpe(
    folder: Path,
    markers: tuple[str, ...] = ("[Q] ", "[D] "),
    *,
    specials: bool = True,
    mask: bool = True,
    texts: Sequence[str] = (),
) -> dict[str, int]:
    """ModernBERT's kind: byte-level pairs with the markers as added tokens. Returns the vocabulary.

    With ``texts`` of its own to learn from, there are pairs of bytes that belong to different characters.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    names |= {"mask_token": "[MASK]"} if mask else {"eos_token": "[SEP]"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    known = list(dict.fromkeys(names.values()))
    size = 1200 if texts else 380
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=known, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts or [*SENTENCES, " ".join(WORDS)] * 3, trainer)
    around = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    template = "[CLS] $A [SEP]" if specials else "$A"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    tokenizer.add_tokens([AddedToken(marker, normalized=True, special=False) for marker in markers])
    _save_tokenizer(folder, tokenizer, names)
    return tokenizer.get_vocab()


def unigram(folder: Path, markers: tuple[str, ...] = (), *, texts: Sequence[str] = ()) -> int:
    """XLM-RoBERTa's kind: sentence pieces, padding id 1, no ``[unusedN]``. Returns the size of the vocabulary.

    With ``texts``, their characters are pieces too, characters are made compatible, and a piece may hold its space.
    """
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(f"▁{word}", -5.0) for word in WORDS] + [(character, -8.0) for character in string.ascii_letters]
    pieces += [(character, -6.0) for character in string.punctuation] + [("▁(", -7.0), ("<mask>", 0.0)]
    compatible = unicodedata.normalize("NFKC", "".join(texts))
    known = {piece for piece, _ in pieces}
    pieces += [(letter, -9.0) for letter in sorted(set(compatible)) if not letter.isspace() and letter not in known]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    if texts:
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), metaspace
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *markers]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _save_tokenizer(folder, tokenizer, {**names, "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"})
    return tokenizer.get_vocab_size()


def python_bpe(folder: Path) -> int:
    """PhoBERT's kind, which is Python and has no fast twin. Returns the size of the vocabulary."""
    pieces = dict.fromkeys([*WORDS, *(letter + end for letter in string.printable[:94] for end in ("", "@@"))])
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    (folder / "bpe.codes").write_text("t h 2\nth e</w> 1\n")
    tokenizer = transformers.PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PhobertTokenizer"}))
    return len(tokenizer)


# ------------------------------------------------------------------------------------------------------- backbones


def _randomised(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            norm = tensor.ndim == 1 and "norm" in name.lower() and name.endswith("weight")
            state[name] = 1 + 0.1 * noise if norm else noise * (0.25 if tensor.ndim > 1 else 0.05)
    return state


def head_weight(rows: int = DIM, columns: int = HIDDEN, seed: int = 5) -> torch.Tensor:
    """A random projection, ``(rows, columns)``."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.3


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


_SMALL = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-12,
}


def _backbone(model_type: str, **settings: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A configuration and random weights of a model type, without its pooler."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(model_type, **settings)
    tensors = _randomised(AutoModel.from_config(config))
    tensors = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    return {"model_type": model_type, **settings, "torch_dtype": "float32"}, tensors


def _prefixed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _bert(vocabulary: int, **settings: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return _backbone(
        "bert",
        vocab_size=vocabulary,
        max_position_embeddings=512,
        type_vocab_size=2,
        pad_token_id=0,
        **{**_SMALL, **settings},
    )


def _roberta(model_type: str, vocabulary: int, **settings: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    positions = {"max_position_embeddings": 130, "type_vocab_size": 1}
    return _backbone(model_type, vocab_size=vocabulary, **positions, **ids, **_SMALL, **settings)


def _modernbert(vocabulary: dict[str, int], **changed: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    settings = {key: value for key, value in {**_SMALL, **changed}.items() if key != "layer_norm_eps"}
    ids = {"cls_token_id": "[CLS]", "sep_token_id": "[SEP]", "bos_token_id": "[CLS]", "eos_token_id": "[SEP]"}
    return _backbone(
        "modernbert",
        vocab_size=len(vocabulary),
        max_position_embeddings=512,
        global_attn_every_n_layers=2,
        local_attention=16,
        pad_token_id=vocabulary["[PAD]"],
        **{name: vocabulary[token] for name, token in ids.items()},
        **settings,
    )


# --------------------------------------------------------------------------------------------------------- layouts


def metadata(**changed: Any) -> dict[str, Any]:
    """What colbert-ai writes into ``artifact.metadata``."""
    return {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_maxlen": 16,
        "doc_maxlen": 40,
        "mask_punctuation": True,
        "attend_to_mask_tokens": False,
        "dim": DIM,
        "similarity": "cosine",
        **changed,
    }


def stanford(
    folder: Path, *, bias: bool = False, head: str = "linear.weight", attention_heads: int = 4, **changed: Any
) -> None:
    """Layout S: backbone with its prefix, head at the root, ``artifact.metadata``."""
    config, tensors = _bert(wordpiece(folder), num_attention_heads=attention_heads)
    heads = {head: head_weight()} | ({head.replace("weight", "bias"): torch.linspace(-1, 1, DIM)} if bias else {})
    _write(folder, {**config, "architectures": ["HF_ColBERT"]}, {**_prefixed(tensors, "bert"), **heads})
    (folder / "artifact.metadata").write_text(json.dumps(metadata(**changed)))


def stanford_deberta(folder: Path) -> None:
    """Layout S on DeBERTa-v2, where expansion tokens that nobody sees attend to nothing themselves."""
    positions = {"relative_attention": True, "position_buckets": 8, "position_biased_input": False}
    attention = {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    others(folder, "deberta-v2", type_vocab_size=0, **positions, **attention)


def others(folder: Path, model_type: str, **settings: Any) -> None:
    """Layout S on any backbone of transformers with word pieces."""
    vocabulary = wordpiece(folder)
    settings = {"max_position_embeddings": 512, **_SMALL, **settings}
    config, tensors = _backbone(model_type, vocab_size=vocabulary, **settings)
    _write(folder, {**config, "architectures": ["HF_ColBERT"]}, {**tensors, "linear.weight": head_weight()})
    (folder / "artifact.metadata").write_text(json.dumps(metadata()))


def stanford_xlmr(
    folder: Path, *, markers: tuple[str, ...] = ("[QueryMarker]", "[DocumentMarker]"), texts: Sequence[str] = ()
) -> None:
    """Layout S on sentence pieces; without ``markers`` like colbert-xm, whose markers are unknown tokens."""
    config, tensors = _roberta("xlm-roberta", unigram(folder, markers, texts=texts))
    _write(
        folder,
        {**config, "architectures": ["HF_ColBERT"]},
        {**_prefixed(tensors, "roberta"), "linear.weight": head_weight()},
    )
    names = dict(zip(("query_token_id", "doc_token_id"), markers, strict=False))
    (folder / "artifact.metadata").write_text(json.dumps(metadata(**names)))


def stanford_python(folder: Path) -> None:
    """Layout S with a tokenizer in Python, whose markers are unknown tokens."""
    config, tensors = _roberta("roberta", python_bpe(folder))
    _write(
        folder,
        {**config, "architectures": ["HF_ColBERT"]},
        {**_prefixed(tensors, "roberta"), "linear.weight": head_weight()},
    )
    (folder / "artifact.metadata").write_text(json.dumps(metadata()))


def xmod(folder: Path) -> None:
    """Layout X: Stanford's files on a backbone with an adapter for each language."""
    languages = ["en_XX", "de_DE"]
    spoken = {"languages": languages, "default_language": "en_XX"}
    config, tensors = _roberta("xmod", unigram(folder), **spoken, adapter_reduction_factor=2)
    _write(
        folder,
        {**config, "architectures": ["HF_ColBERT"]},
        {**_prefixed(tensors, "roberta"), "linear.weight": head_weight()},
    )
    (folder / "artifact.metadata").write_text(json.dumps(metadata()))


def jina(folder: Path, **changed: Any) -> None:
    """Layout J2: rotary XLM-R under the plain one's name, with the key names of its flash implementation."""
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

    vocabulary = unigram(folder, ("[QueryMarker]", "[DocumentMarker]"))
    shape = {
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        **_SMALL,
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    tensors = _randomised(JinaEmbeddingsV3Model(JinaEmbeddingsV3Config(**shape, rope_parameters=rope)))
    renamed = {
        _flash_name(name): tensor
        for name, tensor in tensors.items()
        if "pooler" not in name and "_proj" not in name.replace("o_proj", "")
    }
    for name in tensors:
        if ".self_attn.q_proj." in name:
            parts = [tensors[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            renamed[_flash_name(name).replace("self_attn.q_proj", "mixer.Wqkv")] = torch.cat(parts)
    config = {
        "model_type": "xlm-roberta",
        "architectures": ["HF_ColBERT"],
        "position_embedding_type": "rotary",
        "rotary_emb_base": 10_000.0,
        "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_xlm_roberta.XLMRobertaModel"},
        **shape,
        **changed,
    }
    _write(folder, config, {**_prefixed(renamed, "roberta"), "linear.weight": head_weight()})
    markers = {"query_token_id": "[QueryMarker]", "doc_token_id": "[DocumentMarker]"}
    (folder / "artifact.metadata").write_text(json.dumps(metadata(**markers, attend_to_mask_tokens=True)))


def _flash_name(name: str) -> str:
    replaced = {
        "embeddings.LayerNorm": "emb_ln",
        "self_attn.o_proj": "mixer.out_proj",
        "post_attention_layernorm": "norm1",
        "post_mlp_layernorm": "norm2",
    }
    for ours, theirs in replaced.items():
        name = name.replace(ours, theirs)
    return f"encoder.{name}" if name.startswith("layers.") else name


def dense(folder: Path, index: int, rows: int, columns: int, **config: Any) -> None:
    """A folder ``N_Dense`` of a projection from ``columns`` to ``rows``."""
    path = folder / f"{index}_Dense"
    path.mkdir()
    settings = {
        "in_features": columns,
        "out_features": rows,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
        **config,
    }
    tensors = {"linear.weight": head_weight(rows, columns, seed=20 + index)}
    if settings["bias"]:
        tensors["linear.bias"] = torch.linspace(-0.5, 0.5, rows)
    if settings.get("use_residual") and rows != columns:
        tensors["residual.weight"] = head_weight(rows, columns, seed=40 + index)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(settings))


def modules(folder: Path, *entries: tuple[str, str]) -> None:
    """``modules.json`` of ``(path, type)`` pairs."""
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(entries)]
    (folder / "modules.json").write_text(json.dumps(listed))


_ST_TRANSFORMER = ("", "sentence_transformers.models.Transformer")


def pylate(
    folder: Path,
    *,
    markers: tuple[str, ...] = ("[Q] ", "[D] "),
    specials: bool = True,
    mask: bool = True,
    dense_type: str = "pylate.models.Dense.Dense",
    lower: bool = False,
    attention_heads: int = 4,
    texts: Sequence[str] = (),
    **changed: Any,
) -> None:
    """Layout P: a backbone, ``1_Dense``, and PyLate's keys; ``changed`` keys set to ``...`` are left out."""
    vocabulary = byte_bpe(folder, markers, specials=specials, mask=mask, texts=texts)
    config, tensors = _modernbert(vocabulary, num_attention_heads=attention_heads)
    _write(folder, config, tensors)
    dense(folder, 1, DIM, HIDDEN)
    modules(folder, _ST_TRANSFORMER, ("1_Dense", dense_type))
    settings = {
        "model_type": "ColBERT",
        "prompts": {"query": "", "document": ""},
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 16,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        "do_query_expansion": True,
        **changed,
    }
    kept = {key: value for key, value in settings.items() if value is not ...}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(kept))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 39, "do_lower_case": lower}))


def pylate_layers(folder: Path) -> None:
    """Layout P+: four layers, with residuals, a bias and an activation."""
    pylate(folder, lower=True)
    dense(folder, 2, 24, DIM, use_residual=True)
    dense(folder, 3, 24, 24, use_residual=True, bias=True, activation_function="torch.nn.modules.activation.GELU")
    dense(folder, 4, 8, 24)
    paths = [(f"{index}_Dense", "pylate.models.Dense.Dense") for index in (1, 2, 3, 4)]
    modules(folder, _ST_TRANSFORMER, *paths)


def native(
    folder: Path,
    *,
    expansion: dict[str, Any] | None = None,
    pooling: dict[str, Any] | None = None,
    normalize: bool = True,
    query_length: int | None = 16,
    document_length: int | None = 40,
    attention_heads: int = 4,
) -> None:
    """Layout N: as sentence-transformers 6 saves it, markers as text in the prompts."""
    config, tensors = _modernbert(byte_bpe(folder), num_attention_heads=attention_heads)
    _write(folder, config, tensors)
    dense(folder, 1, DIM, HIDDEN, module_input_name="token_embeddings", module_output_name="token_embeddings")
    base, multi = "sentence_transformers.base.modules", "sentence_transformers.multi_vector_encoder.modules"
    listed = [
        ("", f"{base}.transformer.Transformer"),
        ("1_Dense", f"{base}.dense.Dense"),
        ("2_MultiVectorMask", f"{multi}.multi_vector_mask.MultiVectorMask"),
    ]
    listed += [("3_Normalize", f"{base}.normalize.Normalize")] * normalize
    if pooling is not None:
        listed.append(("4_HierarchicalTokenPooling", f"{multi}.token_pooling.HierarchicalTokenPooling"))
    modules(folder, *listed)
    configs = {
        "2_MultiVectorMask": {"skiplist_words": list(string.punctuation), "skiplist_tasks": ["document"]},
        "3_Normalize": {"module_input_name": "token_embeddings"},
        "4_HierarchicalTokenPooling": pooling,
    }
    for path, _ in listed[2:]:
        (folder / path).mkdir()
        (folder / path / "config.json").write_text(json.dumps(configs[path]))
    st = {"model_type": "MultiVectorEncoder", "prompts": {"query": "[Q] ", "document": "[D] "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({**st, "similarity_fn_name": "maxsim"}))
    transformer = {"query_length": query_length, "document_length": document_length, "query_expansion": expansion}
    said = {key: value for key, value in transformer.items() if value is not None}
    (folder / "sentence_bert_config.json").write_text(json.dumps(said))


def hybrid_modules(folder: Path) -> None:
    """Layout H1 (answerai-colbert-small-v1): Stanford's files at the root, the backbone in ``0_Transformer``."""
    stanford(folder)
    inner = folder / "0_Transformer"
    inner.mkdir()
    config, tensors = _bert(wordpiece(inner))
    _write(inner, config, tensors)
    (inner / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 39, "do_lower_case": False}))
    dense(folder, 1, DIM, HIDDEN)
    transformer = ("0_Transformer", "sentence_transformers.models.Transformer")
    modules(folder, transformer, ("1_Dense", "pylate.models.Dense.Dense"))
    st = {"model_type": "ColBERT", "query_prefix": "[unused0]", "document_prefix": "[unused1]", "document_length": 48}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(st))


def hybrid_root_head(folder: Path) -> None:
    """Layout H2 (mxbai-colbert-large-v1): a list of modules without a Dense, the head at the root."""
    stanford(folder)
    modules(folder, _ST_TRANSFORMER)


def bge(folder: Path) -> None:
    """Layout B (BGE-M3): the head in a pickled file of its own, with a bias; no markers."""
    config, tensors = _roberta("xlm-roberta", unigram(folder))
    _write(folder, config, tensors)
    torch.save(
        {"weight": head_weight(HIDDEN, HIDDEN), "bias": torch.linspace(-1, 1, HIDDEN)}, folder / "colbert_linear.pt"
    )


def plain(folder: Path, model_type: str = "bert") -> None:
    """Layout F: an encoder without any head."""
    if model_type == "modernbert":
        _write(folder, *_modernbert(byte_bpe(folder)))
    else:
        _write(folder, *_bert(wordpiece(folder)))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "stanford": stanford,
    "stanford_attend": lambda folder: stanford(folder, attend_to_mask_tokens=True),
    "stanford_nopunct": lambda folder: stanford(folder, mask_punctuation=False),
    "stanford_deberta": stanford_deberta,
    "stanford_xlmr": stanford_xlmr,
    "stanford_xlmr_nomarker": lambda folder: stanford_xlmr(folder, markers=()),
    "stanford_python": stanford_python,
    "xmod": xmod,
    "jina": jina,
    "pylate": pylate,
    "pylate_noexp": lambda folder: pylate(folder, do_query_expansion=False),
    "pylate_attend": lambda folder: pylate(folder, attend_to_expansion_tokens=True),
    "pylate_oldkeys": lambda folder: pylate(folder, do_query_expansion=..., model_type=...),
    "pylate_noskip": lambda folder: pylate(folder, skiplist_words=[]),
    "pylate_noprefix": lambda folder: pylate(folder, markers=(), query_prefix="", document_prefix=""),
    "pylate_nobos": lambda folder: pylate(folder, specials=False),
    "pylate_eos": lambda folder: pylate(folder, mask=False),
    "pylate_prompts": lambda folder: pylate(folder, prompts={"query": "ask: ", "document": "text: "}),
    "pylate_layers": pylate_layers,
    "pylate_st_dense": lambda folder: pylate(folder, dense_type="sentence_transformers.models.Dense"),
    "native": native,
    "native_fixed": lambda folder: native(folder, expansion={"strategy": "fixed", "attend": False, "length": 16}),
    "native_min": lambda folder: native(folder, expansion={"strategy": "min", "attend": True, "length": 8}),
    "hybrid_modules": hybrid_modules,
    "hybrid_root_head": hybrid_root_head,
    "bge": bge,
    "plain": plain,
}


def marks(name: str) -> list[pytest.MarkDecorator]:
    """What a test of a layout needs."""
    return [needs_jina] if name == "jina" else []


def build(name: str, folder: Path) -> Path:
    """Write a checkpoint of ``LAYOUTS`` into a folder of its own, and return that."""
    path = folder / name
    path.mkdir(parents=True)
    LAYOUTS[name](path)
    return path
