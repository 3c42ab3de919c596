"""What indexes and collections that exist already hold: literals that no version may change without a new format."""

from __future__ import annotations

import pytest
import torch

from colbert_integrations.index.quantization import PackedBits
from colbert_integrations.loading import _content_id
from colbert_integrations.qdrant.points import point_id


def test_the_point_of_an_id() -> None:
    assert point_id("a") == "4629dd3b-8472-5559-ae5f-8b31527b2d9f"


def test_the_id_of_a_content_which_the_order_of_metadata_does_not_change() -> None:
    assert _content_id("a", {"n": 1}) == "423e7dc534002d665a438ec9212d2524"
    assert _content_id("a", {"a": 1, "b": 2}) == _content_id("a", {"b": 2, "a": 1})


@pytest.mark.parametrize(("nbits", "codes"), [(4, [82, 50, 90, 87, 115, 64]), (2, [4, 86, 163, 64])])
def test_codes_of_few_bits(nbits: int, codes: list[int]) -> None:
    encoded = PackedBits(nbits, 8).encode(torch.arange(8.0)[None] - 3.3)
    packed = encoded if isinstance(encoded, torch.Tensor) else encoded[0]
    assert packed.tolist() == [codes]
