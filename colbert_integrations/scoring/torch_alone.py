"""TorchQueries: MaxSim by torch's own operations, on every device and in float64 too."""

from __future__ import annotations

import torch

from .blocks import Documents, take_maxima
from .stacked import StackedQueries

__all__ = ["TorchQueries"]

# Whole similarities alive at once: 2**20 float32 = 4 MiB, and on a GPU, which pays for each launch, 512 MiB.
_SIMILARITIES, _SIMILARITIES_GPU = 2**20, 2**27
_FEWEST_ROWS, _MOST_ROWS, _MOST_ROWS_GPU = 512, 8192, 2**18


class TorchQueries(StackedQueries):
    """Queries that torch scores: similarities of a block, the best of each document, and their sums."""

    def block_rows(self, dtype: torch.dtype) -> int:
        """See ``StackedQueries``."""
        on_cpu = self.values.device.type == "cpu"
        most, similarities = (_MOST_ROWS, _SIMILARITIES) if on_cpu else (_MOST_ROWS_GPU, _SIMILARITIES_GPU)
        return max(_FEWEST_ROWS, min(most, similarities // max(1, len(self.values))))

    @torch.no_grad()
    def score(self, rows: Documents, lengths: torch.Tensor, row_scales: torch.Tensor | None = None) -> torch.Tensor:
        """See ``StackedQueries``."""
        return self._sums(self._best(rows, lengths, row_scales), lengths)

    @torch.no_grad()
    def score_int8(self, codes: torch.Tensor, lengths: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """See ``StackedQueries``."""
        token_steps = self._int8[1]
        return self._sums(self._best_int8(codes, lengths) * (steps[:, None] * token_steps), lengths)

    def _best(self, rows: Documents, lengths: torch.Tensor, row_scales: torch.Tensor | None) -> torch.Tensor:
        """The best similarity of each query token within each document, ``(documents, query_tokens)``."""
        rows = rows if isinstance(rows, torch.Tensor) else torch.cat(list(rows))
        similarities = rows.to(self.values.dtype) @ self.values.T  # (tokens, query_tokens)
        if row_scales is not None:
            similarities *= row_scales[:, None]
        return _maxima(similarities, lengths)

    def _best_int8(self, codes: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The best product of the codes of each query token, ``(documents, query_tokens)`` float32."""
        # cuBLAS takes only some shapes as int8, and float16 ends at 65,504.
        return _maxima(codes.float() @ self._int8[0].float().T, lengths)

    def _sums(self, best: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Sum the query tokens of each query, ``(queries, documents)``."""
        if len(set(self.lengths)) == 1:
            sums = best.reshape(len(best), len(self.lengths), self.lengths[0]).sum(-1).T
        else:
            sums = torch.stack([part.sum(-1) for part in torch.split(best, self.lengths, dim=1)])
        return sums.to(torch.float32).masked_fill_(lengths == 0, float("-inf"))


def _maxima(similarities: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The largest of each column within each document, ``(documents, query_tokens)``."""
    owner = torch.repeat_interleave(lengths, output_size=len(similarities))
    best = similarities.new_full((len(lengths), similarities.shape[1]), float("-inf"))
    take_maxima(best, owner, similarities)
    return best
