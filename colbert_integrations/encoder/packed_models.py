"""BERT and ModernBERT over packed tokens, from the weights of transformers' models."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn import functional

from .attention import Runs, attention
from .linear import Activation, Linear, MakeLinear

__all__ = ["PackedBert", "PackedModel", "PackedModernBert"]

# Names in a configuration, for what transformers' ACT2FN makes of them.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class PackedModel(Protocol):
    """A backbone over packed tokens.

    What goes from layer to layer is float32 in any case. With the weights of all-MiniLM-L6-v2, products in bfloat16
    then keep a cosine of 0.99985 to float32 at least, and 0.99978 if the layers hand over bfloat16, in the same time.
    """

    def __init__(self, model: Any, linear: MakeLinear) -> None: ...

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether a transformers model of this type is what is computed here."""
        ...

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        """Hidden states, ``(tokens, hidden)``, of token ids ``(tokens,)`` and their positions ``(tokens,)``."""
        ...


# ---------------------------------------------------------------------------------------------------------- BERT


class PackedBert:
    """BERT: attention and feed-forward, each added to what came in and normalised.

    Args:
        model: A ``BertModel``.
        linear: Makes its linear layers.

    Source:
        Devlin et al. 2019, arXiv:1810.04805; transformers/models/bert/modeling_bert.py.
    """

    def __init__(self, model: Any, linear: MakeLinear) -> None:
        embeddings = model.embeddings
        self._words = embeddings.word_embeddings.weight
        # Every token is of the first type.
        self._places = embeddings.position_embeddings.weight.float() + embeddings.token_type_embeddings.weight[0]
        self._norm = _Norm(embeddings.LayerNorm)
        self._layers = [_BertLayer(layer, model.config, linear) for layer in model.encoder.layer]

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether it is an encoder with a table of positions and a known activation."""
        config = model.config
        absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
        return absolute and not getattr(config, "is_decoder", False) and config.hidden_act in _ACTIVATIONS

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        """Hidden states, ``(tokens, hidden)``."""
        x = self._norm(self._words[ids].float() + self._places[positions])
        for layer in self._layers:
            x = layer(x, runs)
        return x


class _BertLayer:
    def __init__(self, layer: Any, config: Any, linear: MakeLinear) -> None:
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        self._in = linear(weight, bias, "none")
        self._out = _linear(layer.attention.output.dense, linear)
        self._attention_norm = _Norm(layer.attention.output.LayerNorm)
        self._up = _linear(layer.intermediate.dense, linear, _ACTIVATIONS[config.hidden_act])
        self._down = _linear(layer.output.dense, linear)
        self._norm = _Norm(layer.output.LayerNorm)
        self._heads, self._dtype = config.num_attention_heads, weight.dtype

    def __call__(self, x: torch.Tensor, runs: Runs) -> torch.Tensor:
        mixed = self._in(x.to(self._dtype)).view(len(x), 3, self._heads, -1)
        query, key, value = mixed.unbind(1)  # each (tokens, heads, head_dim)
        x = self._attention_norm(self._out.plus(attention(query, key, value, runs), x))
        return self._norm(self._down.plus(self._up(x.to(self._dtype)), x))


# ---------------------------------------------------------------------------------------------------- ModernBERT


class PackedModernBert:
    """ModernBERT: rotary positions, windows of attention in most layers, gated feed-forward, normalised beforehand.

    Args:
        model: A ``ModernBertModel``.
        linear: Makes its linear layers.

    Source:
        Warner et al. 2024, arXiv:2412.13663; transformers/models/modernbert/modeling_modernbert.py.
    """

    def __init__(self, model: Any, linear: MakeLinear) -> None:
        config = model.config
        self._words = model.embeddings.tok_embeddings.weight
        self._norm, self._final_norm = _Norm(model.embeddings.norm), _Norm(model.final_norm)
        self._layers = [_ModernBertLayer(layer, config, linear) for layer in model.layers]
        self._local = [kind != "full_attention" for kind in _layer_types(config)]
        self._window = config.local_attention // 2
        self._thetas = _thetas(config)
        self._head_dim = config.hidden_size // config.num_attention_heads

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether its rotary positions are the plain ones and its activation is known."""
        config = model.config
        kinds = (getattr(config, "rope_parameters", None) or {}).values()
        plain = all((kind or {}).get("rope_type", "default") == "default" for kind in kinds)
        return plain and config.hidden_activation in _ACTIVATIONS

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor, runs: Runs) -> torch.Tensor:
        """Hidden states, ``(tokens, hidden)``."""
        x = self._norm(self._words[ids].float())
        turns = [_turns(positions, theta, self._head_dim) for theta in self._thetas]
        for layer, local in zip(self._layers, self._local, strict=True):
            x = layer(x, runs, turns[local], self._window if local else None)
        return self._final_norm(x)


class _ModernBertLayer:
    def __init__(self, layer: Any, config: Any, linear: MakeLinear) -> None:
        self._attention_norm = _Norm(layer.attn_norm) if hasattr(layer.attn_norm, "weight") else None
        self._in, self._out = _linear(layer.attn.Wqkv, linear), _linear(layer.attn.Wo, linear)
        self._norm = _Norm(layer.mlp_norm)
        # The two halves apart: each can then be fused with what follows it.
        weight, bias = layer.mlp.Wi.weight.chunk(2), layer.mlp.Wi.bias
        biases = (None, None) if bias is None else bias.chunk(2)
        self._up = linear(weight[0].contiguous(), biases[0], _ACTIVATIONS[config.hidden_activation])
        self._gate = linear(weight[1].contiguous(), biases[1], "none")
        self._down = _linear(layer.mlp.Wo, linear)
        self._heads, self._dtype = config.num_attention_heads, weight[0].dtype

    def __call__(
        self, x: torch.Tensor, runs: Runs, turns: tuple[torch.Tensor, torch.Tensor], window: int | None
    ) -> torch.Tensor:
        normed = x if self._attention_norm is None else self._attention_norm(x)
        mixed = self._in(normed.to(self._dtype)).view(len(x), 3, self._heads, -1)  # (tokens, 3, heads, head_dim)
        query, key = _rotate(mixed[:, :2], turns).unbind(1)
        x = self._out.plus(attention(query, key, mixed[:, 2], runs, window), x)
        normed = self._norm(x).to(self._dtype)
        return self._down.plus(self._gate.times(normed, self._up(normed)), x)


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


def _turns(positions: torch.Tensor, theta: float, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the angles by which pairs of coordinates turn, each ``(tokens, 1, 1, head_dim / 2)``."""
    halves = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / theta ** (halves / head_dim)
    angles = (positions[:, None].float() * frequencies)[:, None, None, :]
    return angles.cos(), angles.sin()


def _rotate(x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn ``(tokens, 2, heads, head_dim)``; coordinate i pairs with i + head_dim / 2."""
    cosines, sines = turns
    wide = x.float()
    turned = torch.empty_like(wide, memory_format=torch.contiguous_format)
    (left, right), (new_left, new_right) = wide.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    # In place: sums of products that are then put side by side took 1.4 to 1.5 times as long (2,048 tokens, 12 heads).
    torch.mul(left, cosines, out=new_left).addcmul_(right, sines, value=-1)
    torch.mul(right, cosines, out=new_right).addcmul_(left, sines)
    return turned.to(x.dtype)


# ------------------------------------------------------------------------------------------------------- shared


def _linear(module: Any, linear: MakeLinear, activation: Activation = "none") -> Linear:
    return linear(module.weight, module.bias, activation)


class _Norm:
    def __init__(self, module: Any) -> None:
        self._shape, self._eps = module.normalized_shape, module.eps
        self._weight = module.weight.float()
        self._bias = None if module.bias is None else module.bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self._shape, self._weight, self._bias, self._eps)
