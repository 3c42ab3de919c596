"""Every kernel of Triton is compiled for GPUs that are not there: it multiplies as it should and fits into them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)

CAPABILITIES = [80, 90]  # Ampere and Hopper

# (dim, dtype of the documents, tokens of the query) -> what Hopper is to multiply with
MAXSIM = [(128, "float16", 32, "f32.f16.f16"), (96, "bfloat16", 200, "f32.bf16.bf16"), (128, "int8", 32, "s32.s8.s8")]
MAXSIM += [
    (48, "int8", 32, "f32.f16.f16"),
    (128, "float8_e4m3fn", 200, "f32.f16.f16"),
    (128, "float32", 64, "fma.rn"),
]

# Kernel, its constants, and whether tensor cores multiply in it; for MiniLM and for ModernBERT.
ENCODER: list[tuple[str, dict[str, Any], bool]] = [
    ("add_norm_kernel", {"total": None, "WIDTH": 384, "BLOCK": 512}, False),
    ("add_norm_kernel", {"left_rows": None, "right_rows": None, "total": None, "WIDTH": 384, "BLOCK": 512}, False),
    ("add_norm_kernel", {"left_rows": None, "right_rows": None, "bias": None, "WIDTH": 768, "BLOCK": 1024}, False),
    ("gelu_gate_kernel", {"WIDTH": 1152}, False),
    ("gelu_product_kernel", {"INPUTS": 384, "OUTPUTS": 1536}, True),
    ("rotate_kernel", {"HEADS": 12, "HALF": 32, "BLOCK_HEADS": 32, "BLOCK_HALF": 32}, False),
    ("attention_kernel", {"HEADS": 12, "HEAD_DIM": 32, "WINDOWED": False}, True),
    ("attention_kernel", {"HEADS": 12, "HEAD_DIM": 64, "WINDOWED": True}, True),
    ("attention_kernel", {"HEADS": 6, "HEAD_DIM": 128, "WINDOWED": True}, True),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[bool]]]:
    """What is found of each variant, in a process of its own, since in this one kernels may be interpreted."""
    cache = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    code = "import test_triton_compiles; test_triton_compiles.print_all()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_maxsim_multiplies_as_it_should_keeps_a_nan_and_fits(compiled: dict[str, list[list[bool]]]) -> None:
    assert compiled["maxsim"] == [[True] * 3] * (2 * len(MAXSIM) - 1)


def test_layers_and_attention_multiply_as_they_should_and_fit(compiled: dict[str, list[list[bool]]]) -> None:
    assert compiled["encoder"] == [[True] * 2] * (2 * len(ENCODER))


def print_all() -> None:
    """Compiles, and prints what is found."""
    found = {
        name: [*map(list, found)] for name, found in (("maxsim", compile_maxsim()), ("encoder", compile_encoder()))
    }
    print(json.dumps(found))  # noqa: T201


def compile_maxsim() -> Iterator[tuple[bool, bool, bool]]:
    """For each variant whether it multiplies as it should, keeps a NaN, and fits into a multiprocessor."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from colbert_integrations import TokenEmbeddings
    from colbert_integrations.scoring import triton as triton_scoring
    from colbert_integrations.scoring.triton_kernels import maxsim_kernel

    names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "i8", torch.float32: "fp32"}
    for capability in CAPABILITIES:
        room = {80: 99, 90: 227}[capability] * 2**10  # 99 KiB on the smaller cards
        for dim, name, tokens, instruction in MAXSIM:
            dtype = getattr(torch, name)
            if capability == 80 and dtype == triton_scoring._FLOAT8:
                continue
            queries = triton_scoring.TritonQueries(TokenEmbeddings.from_list([torch.ones(tokens, dim)]), dtype)
            pointers = {"queries": names[queries._factor], "weights": "fp32", "rows": names.get(dtype, "fp8e4nv")}
            pointers |= {"offsets": "i64", "steps": "fp32", "scores": "fp32"}
            types = dict.fromkeys(maxsim_kernel.arg_names, "i32") | {
                key: f"*{value}" for key, value in pointers.items()
            }
            constants = {(maxsim_kernel.arg_names.index(key),): value for key, value in queries._constants().items()}
            types |= dict.fromkeys(queries._constants(), "constexpr")
            aligned = {(position,): [["tt.divisibility", 16]] for position in range(3)}
            source = ASTSource(maxsim_kernel, types, constants, aligned)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=queries._options())
            code, integers = compiled.asm["ptx"], queries._factor == torch.int8
            multiplies = instruction in code and (("wgmma" in code) == (capability == 90 and instruction != "fma.rn"))
            keeps_nan = integers or ("max.NaN.f32" in code and "max.f32" not in code)
            yield multiplies, keeps_nan, compiled.metadata.shared <= room


def compile_encoder() -> Iterator[tuple[bool, bool]]:
    """For each variant whether it multiplies as it should, and fits into a multiprocessor of a smaller card."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from colbert_integrations.encoder.packed import triton_attention, triton_kernels, triton_layers

    types = dict.fromkeys(("cosines", "sines", "weight", "bias"), "*fp32") | dict.fromkeys(("eps", "scale"), "fp32")
    types |= dict.fromkeys(("tokens", "stride", "window"), "i32")
    types |= dict.fromkeys(("left_rows", "right_rows", "bounds", "attended", "places"), "*i32")
    tiles: dict[str, dict[str, Any]] = {
        "add_norm_kernel": {"ROWS": triton_layers._NORM_ROWS},
        "gelu_gate_kernel": {"ROWS": triton_layers._GATE_ROWS, "COLUMNS": triton_layers._GATE_COLUMNS},
        "gelu_product_kernel": dict(triton_layers._PRODUCT_TILE),
        "rotate_kernel": {},
        "attention_kernel": {"BLOCK": triton_attention._BLOCK, "TILE": triton_attention._TILE},
    }
    options = {"gelu_product_kernel": triton_layers._PRODUCT_OPTIONS}
    for capability in CAPABILITIES:
        for name, chosen, multiplies in ENCODER:
            kernel = getattr(triton_kernels, name)
            constants = chosen | tiles[name]
            signature = {key: "constexpr" if key in constants else types.get(key, "*bf16") for key in kernel.arg_names}
            if name == "gelu_product_kernel":
                signature |= {"weight": "*bf16", "bias": "*bf16"}
            aligned = [place for place, key in enumerate(kernel.arg_names) if signature[key] in ("*bf16", "*fp32")]
            aligned += [place for place, key in enumerate(kernel.arg_names) if key == "stride"]
            source = ASTSource(kernel, signature, constants, {(place,): [["tt.divisibility", 16]] for place in aligned})
            if name == "attention_kernel":
                options[name] = triton_attention.options(constants["HEAD_DIM"])
            chosen_options = options.get(name, {"num_warps": triton_layers._WARPS})
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=chosen_options)
            multiplied = ("wgmma" if capability == 90 else "mma.sync") in compiled.asm["ptx"]
            yield multiplied == multiplies, compiled.metadata.shared <= 99 * 2**10
