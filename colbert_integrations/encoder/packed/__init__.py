"""The forward pass of known transformers over real tokens only: no padding, no mask, and what follows a product fused.

``forward.py`` is the door. ``models.py`` says what each family computes, ``layers.py`` makes its layers in torch, of
``linear.py``, ``attention.py``, and ``runs.py``, which says what tokens belong together. Others make the same layers
faster: on a CPU ``compiled_layers.py`` and ``compiled_product.py`` by the compiled kernel, on a GPU
``triton_layers.py`` and ``triton_attention.py`` by the kernels of ``triton_kernels.py``. ``short_forward.py`` replays
one short text as a CUDA graph.
"""

from __future__ import annotations

from .forward import PackedForward, can_pack

__all__ = ["PackedForward", "can_pack"]
