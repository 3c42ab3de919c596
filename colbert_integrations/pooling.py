"""Token pooling: fewer vectors per document, by merging those that are alike."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize as unit

from .checks import check_pool_factor, check_whole_number
from .devices import no_autocast
from .embeddings import TokenEmbeddings
from .errors import MissingExtraError

__all__ = ["check_pooling", "pool_tokens"]

# As many vectors as the longest texts have that models read whole. Up to here results equal PyLate's, which cuts longer
# texts.
_MOST_ROWS = 8192


def check_pooling() -> None:
    """Refuse to begin with work whose vectors are to be merged, where they can't be.

    Raises:
        MissingExtraError: If scipy is not installed.
    """
    try:
        import scipy.cluster.hierarchy  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Token pooling", "pooling") from error


def pool_tokens(
    embeddings: TokenEmbeddings,
    pool_factor: float,
    *,
    num_protected_tokens: int = 1,
    normalize: bool = False,
    normalized: bool = True,
) -> TokenEmbeddings:
    """Replace groups of similar token vectors by their means, text by text.

    ``clusters = max(1, floor(n / pool_factor))`` for the ``n`` vectors that are not protected, by Ward linkage on the
    cosine distance ``1 - cos``. Time and memory grow with the square of what is clustered, 7 to 15 s and 740 MB for
    8,000 vectors, so those of longer texts are clustered in as few equal stretches of up to 8,192 as possible. A
    stretch with a vector that is not finite is left as it is.

    Args:
        embeddings: Vectors of any number of texts.
        pool_factor: About 1 in ``pool_factor`` vectors is kept; at least 1, which merges nothing.
        num_protected_tokens: Leading vectors of each text that are never merged; 1 is the ``[CLS]`` token.
        normalize: Whether all vectors are brought to unit length afterwards. A mean is shorter than what it was
            made of; PyLate leaves it so.
        normalized: Whether the vectors have unit length, so that their products are cosines. False: they are clustered
            by their directions; by products nearly all would be at distance 0 or 2.

    Returns:
        As many texts, of the same dimension, dtype and device: protected vectors first, then the means.

    Raises:
        InputError: If ``pool_factor`` is no number from 1, or ``num_protected_tokens`` no whole number from 0.
        MissingExtraError: If scipy is not installed.

    Source:
        Clavié, Chaffin & Adams 2024, arXiv:2409.14683, section 3; pylate/models/colbert.py
        ``pool_embeddings_hierarchical`` after release 1.3.4. Earlier releases cluster the rows of the square distance
        matrix and put protected vectors last, so their indexes differ.
    """
    check_pool_factor(pool_factor)
    check_whole_number("num_protected_tokens", num_protected_tokens, least=0)
    check_pooling()
    with no_autocast(embeddings.device):
        pooled = [_pool_text(matrix, pool_factor, num_protected_tokens, normalized) for matrix in embeddings]
    joined = TokenEmbeddings.from_list(pooled, embeddings.dim) if pooled else embeddings
    values = unit(joined.values.float(), dim=-1).to(joined.dtype) if normalize else joined.values
    return TokenEmbeddings(values, joined.offsets)


def _pool_text(matrix: torch.Tensor, pool_factor: float, num_protected_tokens: int, normalized: bool) -> torch.Tensor:
    protected, rest = matrix[:num_protected_tokens], matrix[num_protected_tokens:]
    stretches = torch.tensor_split(rest, -(-len(rest) // _MOST_ROWS) or 1)
    return torch.cat([protected, *(_means(stretch, pool_factor, normalized) for stretch in stretches)])


def _means(rows: torch.Tensor, pool_factor: float, normalized: bool) -> torch.Tensor:
    """Means of the clusters of some rows, ``(clusters, dim)``."""
    clusters = max(1, int(len(rows) // pool_factor))
    # What is not finite is at no distance from anything: it stays as it is, for a store to refuse with its document.
    if clusters >= len(rows) or not torch.isfinite(rows).all():
        return rows
    labels = _ward_labels(rows if normalized else unit(rows, dim=-1), clusters).to(rows.device)
    sums = rows.new_zeros(int(labels.max()) + 1, rows.shape[1]).index_add_(0, labels, rows)
    return sums / labels.bincount()[:, None]


def _ward_labels(rows: torch.Tensor, clusters: int) -> torch.Tensor:
    """Cluster of each row, ``(num_rows,)`` int64 from 0."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    rows = rows.detach().float().cpu()
    distances = (1 - rows @ rows.T).clamp_(0, 2).numpy()
    labels = fcluster(linkage(squareform(distances, checks=False), method="ward"), t=clusters, criterion="maxclust")
    # Ties can leave a label unused; dense labels keep one row per cluster.
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(-1))
