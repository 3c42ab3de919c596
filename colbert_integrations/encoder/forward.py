"""The forward pass: token ids in, one projected vector per token out. The seam where another engine can step in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ..devices import no_autocast, send
from .backbone import embedding_rows, position_limit
from .batching import next_size
from .tokens import TokenSequence

__all__ = ["Forward", "TorchForward", "count_parameters"]

# To how many widths between a power of 2 and the next a batch is padded where each costs memory; see ``next_size``.
_WIDTHS = 8


class Forward(Protocol):
    """What runs the model on token ids; tokenisation, markers, skiplist and normalisation stay with the encoder.

    One with an attribute ``packed`` that is true does not pad, so batches for it are counted in real tokens. One with
    an attribute ``device`` says where its vectors are. ``ColBERT.num_parameters`` is its attribute of that name, or
    None where it has none.
    """

    def __call__(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """Run a batch.

        Args:
            sequences: At least one sequence; ``attended`` says how many of its tokens may be attended to, and
                ``unseen_first`` how many that may not come first.

        Returns:
            The projected vector of every token of every sequence, one after another, without padding and not
            normalised: ``(sum of len(ids), dim)``, any float dtype.
        """
        ...


class TorchForward:
    """The forward pass by transformers: any backbone, any device, with padding where it does not show.

    Args:
        backbone: A transformers model.
        projection: The layers between hidden states and vectors.
        device: Where both are.

    Attributes:
        num_parameters: Number of parameters of both.
        pads: Whether sequences of different length share a pass; see ``probe``.
    """

    def __init__(self, backbone: Any, projection: nn.Module, device: torch.device) -> None:
        self.pads = True
        self.backbone, self.projection, self.device = backbone, projection, device
        self.num_parameters = count_parameters(backbone, projection)
        self._takes_cache = "use_cache" in self.backbone.config.to_dict()
        # Some releases of transformers (5.3 is one) hide unattended tokens from LFM2's convolutions, but not in a batch
        # of one.
        self._needs_two = self.backbone.config.model_type == "lfm2"
        # 0 where neither is known: sequences are then padded to no more than the longest of them.
        limits = (position_limit(backbone), getattr(backbone.config, "max_position_embeddings", None))
        self._positions = min((limit for limit in limits if limit), default=0)
        # In float32 torch multiplies by MKL, which compiles nothing.
        self._few_widths = device.type == "cpu" and backbone.dtype != torch.float32
        # Only the backbone's own padding id is padding: PyLate saves the tokenizer's as the mask token, and RoBERTa
        # counts positions by comparing ids with this one. Old exports of Llama say -1, which no model has a row for.
        pad, rows = getattr(self.backbone.config, "pad_token_id", None), embedding_rows(backbone)
        self._pad_id = pad if isinstance(pad, int) and pad >= 0 and (rows is None or pad < rows) else 0

    @torch.no_grad()
    def probe(self, sequence: TokenSequence, length: int) -> None:
        """Find out whether padding shows in the vectors of the others, and never pad again if it does.

        Convolutions and Fourier transforms mix in what stands beside a token, whatever the attention mask says. Tokens
        that a mask hides stand for the padding here: if they don't show, padding does not.

        Args:
            sequence: A sequence of the checkpoint, all of it attended to.
            length: Where to cut it.
        """
        if getattr(self.backbone, "attention_type", None) == "block_sparse":
            return  # of BigBird, which gives up this kind of attention for good once it meets a short batch
        short = replace(sequence, ids=sequence.ids[:length], attended=length)
        hidden = replace(sequence, attended=length)
        with no_autocast(self.device):
            alone, beside = self._padded([short], length), self._padded([hidden, sequence], len(sequence.ids))[:length]
        # Measured in float32 and bfloat16: rounding at most 1e-6 and 0.02, what padding does at least 0.2; bounds
        # between are 3e-4 and 0.09. Rounding beyond that costs speed, no exactness.
        bound = torch.finfo(alone.dtype).eps ** 0.5
        difference = (alone.float() - beside.float()).norm(dim=-1)
        self.pads = not bool((difference > bound * alone.float().norm(dim=-1)).any())

    @torch.no_grad()
    def __call__(self, sequences: Sequence[TokenSequence]) -> torch.Tensor:
        """Run a batch, those sequences that padding would change in groups of one length."""
        groups = self._groups(sequences)
        if len(groups) == 1:
            [(width, group)] = groups
            return self._padded([sequences[place] for place in group], width)
        vectors: dict[int, torch.Tensor] = {}
        for width, group in groups:
            packed = self._padded([sequences[place] for place in group], width)
            vectors.update(zip(group, torch.split(packed, [len(sequences[place].ids) for place in group]), strict=True))
        return torch.cat([vectors[place] for place in sorted(vectors)])

    def _groups(self, sequences: Sequence[TokenSequence]) -> list[tuple[int, list[int]]]:
        """Widths, and places of the sequences that are padded to each; those without tokens need no run."""
        alike, others = dict[int, list[int]](), list[int]()
        for place, sequence in enumerate(sequences):
            length = len(sequence.ids)
            # Expansion tokens that nobody sees attend to nothing in transformers' DeBERTa either: each gets the mean
            # over all columns, padding included. In training queries are never padded beyond their expansion.
            if length:
                paddable = sequence.attended == length and self.pads
                (others if paddable else alike.setdefault(length, [])).append(place)
        groups = list(alike.items())
        if others:
            groups.append((self._width([len(sequences[place].ids) for place in others]), others))
        return groups

    def _padded(self, sequences: Sequence[TokenSequence], width: int) -> torch.Tensor:
        """Pad sequences to a width, run them, and drop the padding again."""
        ids = [sequence.ids + [self._pad_id] * (width - len(sequence.ids)) for sequence in sequences]
        seen = [(s.unseen_first, s.attended) for s in sequences]
        mask = [[0] * lead + [1] * attended + [0] * (width - lead - attended) for lead, attended in seen]
        if self._needs_two and len(ids) == 1 and not all(mask[0]):
            ids, mask = ids * 2, mask * 2
        real = [row * width + column for row, s in enumerate(sequences) for column in range(len(s.ids))]
        hidden = self._hidden(self._tensor(ids), self._tensor(mask))  # (batch, width, hidden)
        # Of the padding too: numbers of real tokens would be as many sizes as there are batches (see ``next_size``).
        projected: torch.Tensor = self.projection(hidden.flatten(0, 1))  # (batch * width, dim)
        return projected[self._tensor(real)]  # (tokens, dim)

    def _width(self, lengths: list[int]) -> int:
        """To what sequences are padded: on a CPU in half precision to one of a few widths."""
        longest = max(lengths)
        # Padded, one alone would be run twice where that is needed to hide the padding.
        if not self._few_widths or (self._needs_two and len(lengths) == 1):
            return longest
        return max(longest, min(next_size(longest, _WIDTHS), self._positions))

    def _hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        extra: dict[str, Any] = {"use_cache": False} if self._takes_cache else {}
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **extra)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return send(np.array(values, dtype=np.int64), self.device)


def count_parameters(backbone: nn.Module, projection: nn.Module) -> int:
    """Count the parameters of a model.

    Args:
        backbone: A transformers model.
        projection: The layers between hidden states and vectors.

    Returns:
        The parameters of both, less a pooler, which no vector comes from.
    """
    own = [parameter for name, parameter in backbone.named_parameters() if not name.startswith("pooler.")]
    return sum(parameter.numel() for parameter in [*own, *projection.parameters()])
