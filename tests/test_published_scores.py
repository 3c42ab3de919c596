"""Scores that other libraries published for real checkpoints; needs the hub."""

from __future__ import annotations

import pytest

from colbert_integrations import ColBERT

QUERY = "Which planet is known as the Red Planet?"
DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
# Made with PyLate in float32, LFM2's with sentence-transformers (PyLate sums it in bfloat16). Origin:
# huggingface/sentence-transformers, tests/multi_vector_encoder/test_pretrained.py, MODELS_TO_MAXSIM.
PUBLISHED = {
    "lightonai/Reason-ModernColBERT": [9.05118, 10.18419, 9.12381, 9.39101],
    "answerdotai/answerai-colbert-small-v1": [30.56916, 31.48954, 31.30291, 31.30716],
    "colbert-ir/colbertv2.0": [12.79703, 27.19449, 23.8495, 24.56564],
    "lightonai/colbertv2.0": [12.79703, 27.19449, 23.8495, 24.56564],
    "LiquidAI/LFM2-ColBERT-350M": [30.42596, 30.66987, 30.55955, 30.61758],
    "perplexity-ai/pplx-embed-v1-late-0.6b": [31.56128, 31.80504, 31.67393, 31.74072],
    "lightonai/GTE-ModernColBERT-v1": [11.25772, 11.51133, 11.34575, 11.4518],
    "lightonai/LateOn": [10.79417, 11.11042, 10.97427, 11.08107],
    "mixedbread-ai/mxbai-edge-colbert-v0-17m": [11.56932, 11.75844, 11.70989, 11.72288],
    "lightonai/mLateOn": [11.3486, 11.5170, 11.4391, 11.4867],
}
# Its backbone is code in the repository.
REMOTE_CODE = {"perplexity-ai/pplx-embed-v1-late-0.6b"}
# LFM2's origin ran in the dtype of the checkpoint.
DTYPES = {"LiquidAI/LFM2-ColBERT-350M": "bfloat16"}


@pytest.mark.hub
@pytest.mark.parametrize("name", PUBLISHED)
def test_scores_are_the_published_ones(name: str) -> None:
    dtype = DTYPES.get(name, "float32")
    with ColBERT(name, device="cpu", dtype=dtype, trust_remote_code=name in REMOTE_CODE) as model:
        scores = {entry.index: entry.score for entry in model.rank(QUERY, DOCUMENTS)}
    # The tolerance of the origin: other hardware and library versions gave these numbers.
    assert [scores[index] for index in range(4)] == pytest.approx(PUBLISHED[name], rel=1e-3, abs=1e-3)
