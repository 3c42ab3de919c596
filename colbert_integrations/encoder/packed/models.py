"""BERT, RoBERTa and its kin, Jina's XLM-RoBERTa and ModernBERT over packed tokens, of transformers' weights."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from .layers import Layers, Rotary, Stream
from .linear import Activation, Linear
from .runs import Runs

__all__ = ["PackedBert", "PackedJina", "PackedModel", "PackedModernBert", "PackedRoberta"]

# Names in a configuration, for what transformers' ACT2FN makes of them.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class PackedModel(Protocol):
    """A backbone over packed tokens."""

    def __init__(self, model: Any, layers: Layers) -> None: ...

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a transformers model of this type is what is computed here."""
        ...

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        """Hidden states, ``(tokens, hidden)`` float32, of token ids ``(tokens,)`` and their positions ``(tokens,)``."""
        ...


# ---------------------------------------------------------------------------------------------- BERT and RoBERTa


class PackedBert:
    """BERT: attention and feed-forward, each added to what came in and normalised.

    Args:
        model: A ``BertModel``.
        layers: Makes its layers.

    Source:
        Devlin et al. 2019, arXiv:1810.04805; transformers/models/bert/modeling_bert.py.
    """

    def __init__(self, model: Any, layers: Layers) -> None:
        embeddings = model.embeddings
        self._word_embeddings = embeddings.word_embeddings.weight
        positions, types = embeddings.position_embeddings.weight, embeddings.token_type_embeddings.weight
        self._position_embeddings = positions.float() + types[0]  # every token is of the first type
        self._norm = layers.norm(embeddings.LayerNorm, self._word_embeddings.dtype)
        self._layers = [_BertLayer(_parts(layer), model.config, layers) for layer in model.encoder.layer]

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether it is an encoder with a table of positions and a known activation."""
        config = model.config
        absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
        return absolute and not getattr(config, "is_decoder", False) and config.hidden_act in _ACTIVATIONS

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        """Hidden states, ``(tokens, hidden)`` float32."""
        stream = self._norm.of_embeddings(self._word_embeddings, ids, self._position_embeddings, positions)
        for layer in self._layers:
            stream = layer(stream, runs)
        return stream[0].float()


class PackedRoberta(PackedBert):
    """RoBERTa, XLM-RoBERTa and CamemBERT: BERT, with positions counted otherwise.

    They count from behind the id of the padding, and leave out tokens of this id, which a text can hold.

    Args:
        model: A ``RobertaModel`` or one of its kind.
        layers: Makes its layers.

    Source:
        Liu et al. 2019, arXiv:1907.11692; ``create_position_ids_from_input_ids`` in
        transformers/models/roberta/modeling_roberta.py.
    """

    def __init__(self, model: Any, layers: Layers) -> None:
        super().__init__(model, layers)
        self._padding: int = model.embeddings.padding_idx

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether BERT fits, and positions can be counted."""
        padding = model.embeddings.padding_idx
        return PackedBert.fits(model) and isinstance(padding, int) and padding >= 0

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        """Hidden states, ``(tokens, hidden)`` float32."""
        padding = ids == self._padding  # (tokens,), as all that follow
        seen = padding.cumsum(0, dtype=torch.int32)
        begins = torch.arange(len(ids), dtype=torch.int32, device=ids.device) - positions
        left_out = seen - (seen - padding.int())[begins]  # since its sequence began
        counted = (positions - left_out + self._padding + 1).masked_fill_(padding, self._padding)
        return super().__call__(ids, counted, runs)


class PackedJina:
    """Jina's XLM-RoBERTa, as in jina-colbert-v2: BERT with rotary positions.

    Args:
        model: A ``JinaEmbeddingsV3Model``.
        layers: Makes its layers.

    Source:
        Sturua et al. 2024, arXiv:2409.10173; transformers/models/jina_embeddings_v3/modeling_jina_embeddings_v3.py.
    """

    def __init__(self, model: Any, layers: Layers) -> None:
        config, embeddings = model.config, model.embeddings
        self._word_embeddings = embeddings.word_embeddings.weight
        self._type_embedding = embeddings.token_type_embeddings.weight[:1].float()  # of the first, which every token is
        self._norm = layers.norm(embeddings.LayerNorm, self._word_embeddings.dtype)
        self._layers = [_BertLayer(_jina_parts(layer), config, layers) for layer in model.layers]
        self._theta = config.rope_parameters["rope_theta"]
        self._head_dim = config.hidden_size // config.num_attention_heads

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether its rotary positions are plain and its activation known."""
        config = model.config
        return config.rope_parameters.get("rope_type") == "default" and config.hidden_act in _ACTIVATIONS

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        """Hidden states, ``(tokens, hidden)`` float32."""
        first = torch.zeros_like(positions)
        stream = self._norm.of_embeddings(self._word_embeddings, ids, self._type_embedding, first)
        rotary = _rotary(positions, self._theta, self._head_dim)
        for layer in self._layers:
            stream = layer(stream, runs, rotary)
        return stream[0].float()


class _Parts(NamedTuple):
    """The modules of a layer, whatever a class calls them."""

    query: Any
    key: Any
    value: Any
    out: Any
    attention_norm: Any
    up: Any
    down: Any
    norm: Any


def _parts(layer: Any) -> _Parts:
    attention, out, up, down = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    qkv = (attention.query, attention.key, attention.value)
    return _Parts(*qkv, out.dense, out.LayerNorm, up.dense, down.dense, down.LayerNorm)


def _jina_parts(layer: Any) -> _Parts:
    attention, mlp = layer.self_attn, layer.mlp
    qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
    norms = (layer.post_attention_layernorm, layer.post_mlp_layernorm)
    return _Parts(*qkv, attention.o_proj, norms[0], mlp.fc1, mlp.fc2, norms[1])


class _BertLayer:
    def __init__(self, parts: _Parts, config: Any, layers: Layers) -> None:
        qkv = (parts.query, parts.key, parts.value)
        weight, bias = torch.cat([part.weight for part in qkv]), torch.cat([part.bias for part in qkv])
        self._qkv = layers.linear(weight, bias, "none")
        self._out = _linear(parts.out, layers)
        self._attention_norm = layers.norm(parts.attention_norm, weight.dtype)
        self._up = _linear(parts.up, layers, _ACTIVATIONS[config.hidden_act])
        self._down = _linear(parts.down, layers)
        self._norm = layers.norm(parts.norm, weight.dtype)
        self._heads, self._attend = config.num_attention_heads, layers.attend

    def __call__(self, stream: Stream, runs: Runs, rotary: Rotary | None = None) -> Stream:
        x, normed = stream
        qkv = self._qkv(normed).view(len(x), 3, self._heads, -1)  # (tokens, 3, heads, head_dim)
        x, normed = self._attention_norm.post_norm(self._out, self._attend(qkv, runs, None, rotary), x)
        return self._norm.post_norm(self._down, self._up(normed), x)


# ---------------------------------------------------------------------------------------------------- ModernBERT


class PackedModernBert:
    """ModernBERT: rotary positions, windows of attention in most layers, gated feed-forward, normalised beforehand.

    Args:
        model: A ``ModernBertModel``.
        layers: Makes its layers.

    Source:
        Warner et al. 2024, arXiv:2412.13663; transformers/models/modernbert/modeling_modernbert.py.
    """

    def __init__(self, model: Any, layers: Layers) -> None:
        config = model.config
        self._word_embeddings = model.embeddings.tok_embeddings.weight
        self._norm = layers.norm(model.embeddings.norm, self._word_embeddings.dtype)
        self._layers = [_ModernBertLayer(layer, config, layers) for layer in model.layers]
        # The norm that follows a layer is the first of the next one.
        self._norms = [layers.norm(layer.attn_norm, self._word_embeddings.dtype) for layer in model.layers[1:]]
        self._final_norm = layers.norm(model.final_norm, self._word_embeddings.dtype)
        self._local = [kind != "full_attention" for kind in _layer_types(config)]
        self._window = config.local_attention // 2
        self._thetas = _thetas(config)
        self._head_dim = config.hidden_size // config.num_attention_heads

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether its rotary positions are plain, its activation known, and all its layers but the first normalise."""
        config = model.config
        normed = [hasattr(layer.attn_norm, "weight") for layer in model.layers]
        kinds = (getattr(config, "rope_parameters", None) or {}).values()
        plain = all((kind or {}).get("rope_type", "default") == "default" for kind in kinds)
        return plain and config.hidden_activation in _ACTIVATIONS and not normed[0] and all(normed[1:])

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        """Hidden states, ``(tokens, hidden)`` float32."""
        x, normed = self._norm.of_embeddings(self._word_embeddings, ids)
        rotary = [_rotary(positions, theta, self._head_dim) for theta in self._thetas]
        follow = [*(norm.pre_norm for norm in self._norms), self._final_norm.post_norm]
        for layer, local, norm in zip(self._layers, self._local, follow, strict=True):
            x, gated = layer(x, normed, runs, rotary[local], self._window if local else None)
            x, normed = norm(layer.down, gated, x)
        return x.float()


class _ModernBertLayer:
    """All but the sum at its end, which is taken together with the norm that follows."""

    def __init__(self, layer: Any, config: Any, layers: Layers) -> None:
        self._qkv, self._out = _linear(layer.attn.Wqkv, layers), _linear(layer.attn.Wo, layers)
        up = layer.mlp.Wi  # of gate and value
        self._norm = layers.norm(layer.mlp_norm, up.weight.dtype)
        self._gated = layers.gated(up.weight, up.bias, _ACTIVATIONS[config.hidden_activation])
        self.down = _linear(layer.mlp.Wo, layers)
        self._heads, self._attend = config.num_attention_heads, layers.attend

    def __call__(self, x: torch.Tensor, normed: torch.Tensor, runs: Runs, rotary: Rotary, window: int | None) -> Stream:
        """The sum after attention, and what ``down`` is to read."""
        qkv = self._qkv(normed).view(len(x), 3, self._heads, -1)  # (tokens, 3, heads, head_dim)
        x, normed = self._norm.pre_norm(self._out, self._attend(qkv, runs, window, rotary), x)
        return x, self._gated(normed)


def _layer_types(config: Any) -> list[str]:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return list(kinds)
    every = config.global_attn_every_n_layers  # transformers 4
    return ["sliding_attention" if layer % every else "full_attention" for layer in range(config.num_hidden_layers)]


def _thetas(config: Any) -> tuple[float, float]:
    """Bases of the rotary positions, of layers that see everything and of those that see a window."""
    parameters = getattr(config, "rope_parameters", None)
    if parameters:
        return parameters["full_attention"]["rope_theta"], parameters["sliding_attention"]["rope_theta"]
    everything = config.global_rope_theta  # transformers 4
    local = config.local_rope_theta
    return everything, everything if local is None else local


def _rotary(positions: torch.Tensor, theta: float, head_dim: int) -> Rotary:
    """Cosines and sines of the angles by which pairs are rotated, each ``(tokens, 1, 1, head_dim / 2)``."""
    halves = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / theta ** (halves / head_dim)
    angles = (positions[:, None].float() * frequencies)[:, None, None, :]
    return angles.cos(), angles.sin()


# ------------------------------------------------------------------------------------------------------- shared


def _linear(module: Any, layers: Layers, activation: Activation = "none") -> Linear:
    return layers.linear(module.weight, module.bias, activation)
