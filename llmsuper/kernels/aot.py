"""Compiles Triton's kernels for GPUs that need not be here, and reads from the machine code what a GPU will run.

A spill (registers kept in memory) or a product that is not made on tensor cores costs a kernel most of its speed and shows
in no result; both show here. `llmsuper backends --compile` prints the report.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsuper.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

TENSOR_CORES = {80: "HMMA", 89: "HMMA", 90: "HGMMA"}
"""By compute capability × 10 (A100; RTX 4090 and L40; H100 and H200): the instruction that multiplies on tensor cores."""

BLOCK = 16
"""What sizes and addresses are told to be multiples of, as they are where columns are; Triton finds that out at each call."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way a kernel is compiled: which kernel, the dtype it reads, and its compile-time arguments."""

    kernel: str
    dtype: str
    """Triton's name for it: bf16, fp16, fp32."""
    columns: int
    centred: bool = False
    bins: int = 0
    diagonal: bool = False

    @property
    def name(self) -> str:
        shape = f"{self.bins} bins" if self.bins else f"{self.columns:,} columns"
        return ", ".join([self.dtype, shape, *["centred"] * self.centred, *["diagonal"] * self.diagonal])


VARIANTS = (
    Variant("unit_rows", "fp32", 768),
    Variant("unit_rows", "bf16", 8192, centred=True),
    Variant("overlap_sums", "fp16", 4096, bins=512),
    Variant("overlap_sums", "fp16", 4096, bins=512, diagonal=True),
    Variant("overlap_sums", "fp32", 4096, bins=512),
)
"""What the report compiles for each GPU."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the machine code of one kernel takes and does."""

    kernel: str
    variant: str
    capability: int
    """Compute capability × 10."""
    registers: int
    """Per thread; 255 is all there are."""
    spilled: int
    """Bytes of registers kept in memory, per thread."""
    shared: int
    """Bytes of shared memory, per program."""
    threads: int
    instructions: int
    tensor_core: int
    """Instructions that multiply on tensor cores."""
    multiplies: bool
    """Whether tensor cores are what this kernel is for: a product of half-precision rows."""

    @property
    def fault(self) -> str | None:
        """What makes it slow; None where nothing does."""
        if self.spilled:
            return f"spills {self.spilled} bytes"
        if self.multiplies and not self.tensor_core:
            return f"no {TENSOR_CORES[self.capability]}"
        return None


def compile_kernels(
    capabilities: tuple[int, ...] = tuple(TENSOR_CORES), variants: tuple[Variant, ...] = VARIANTS
) -> Iterator[Compiled]:
    """Each variant for each compute capability, one after the other (a second or so each, unless Triton has it cached).

    Raises `BackendError` where Triton is missing or its interpreter is switched on.
    """
    if importlib.util.find_spec("triton") is None:
        raise BackendError("kernels are compiled by Triton, which is not installed. Install it (pip install triton).")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise BackendError("TRITON_INTERPRET=1 is set, so Triton interprets and compiles nothing. Unset it.")
    for capability in capabilities:
        for variant in variants:
            yield _read(variant, capability, _compile(variant, capability))


def _compile(variant: Variant, capability: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as build

    kernels = importlib.import_module("llmsuper.kernels.triton_kernels")
    layouts = importlib.import_module("llmsuper.kernels.triton_ops")
    kernel = getattr(kernels, f"{variant.kernel}_kernel")
    if variant.kernel == "unit_rows":
        constants = layouts.row_shape(variant.columns) | {"CENTRED": variant.centred, "HALF": True}
    else:
        constants = layouts.layout_for(capability // 10, half=variant.dtype == "fp16")
        constants |= {"BINS": variant.bins, "DIAGONAL": variant.diagonal, "WIDEN": False}
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    types = {name: "constexpr" if name in constants else _type(name, variant.dtype) for name in kernel.arg_names}
    aligned = [
        (at,) for at, name in enumerate(kernel.arg_names) if types[name].startswith("*") or name in ("m", *_STRIDES)
    ]
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={place: [["tt.divisibility", BLOCK]] for place in aligned},
    )
    return build(source, target=GPUTarget("cuda", capability, 32), options=options)


_STRIDES = ("row_stride", "unit_stride", "left_stride", "right_stride")
_FLOATS = ("least", "most", "floor", "scale", "half_bins", "shift")
_POINTERS = {"tiles": "*i32", "counts": "*i32", "left_code": "*i32", "right_code": "*i32", "usual": "*i8"}


def _type(argument: str, dtype: str) -> str:
    """Triton's name for the type of a kernel's argument."""
    if argument in ("rows", "left", "right"):
        return f"*{dtype}"
    if argument in _FLOATS:
        return "fp32"
    if argument in ("n", "m", "a", "b", "bins", *_STRIDES):
        return "i32"
    return _POINTERS.get(argument, "*fp32")


def _read(variant: Variant, capability: int, compiled: Any) -> Compiled:
    """Ask the tools that come with Triton what is in the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(binary))
        listing = _tool("nvdisasm", "-c", str(binary))
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    if found is None:
        raise BackendError(
            f"cuobjdump said nothing of registers: {usage.strip()[:200]!r}. Is this another version of it?"
        )
    operations = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", listing, re.MULTILINE)
    return Compiled(
        kernel=variant.kernel,
        variant=variant.name,
        capability=capability,
        registers=int(found[1]),
        spilled=max(int(found[2]), int(found[3]), sum(op in ("STL", "LDL") for op in operations)),
        shared=int(compiled.metadata.shared),
        threads=32 * int(compiled.metadata.num_warps),
        instructions=len(operations),
        tensor_core=operations.count(TENSOR_CORES[capability]),
        multiplies=variant.kernel == "overlap_sums" and variant.dtype == "fp16",
    )


def _tool(name: str, *arguments: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"{program} failed: {done.stderr.strip()[:300]}. Reinstall Triton.")
    return done.stdout
