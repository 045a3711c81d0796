"""Finds the dense tensors of a state dict among the symbols of its pickle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from llmsuper.hub.formats.pickle_symbols import MAX_NAME, Call, MalformedError, Pairs, Reference, Symbol

if TYPE_CHECKING:
    from collections.abc import Iterator

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training programs put the state dict, among epochs and optimizers, best first."""
MAX_DEPTH = 8
"""Of dictionaries in dictionaries, whose keys are joined by dots."""
MAX_DIMENSIONS = 64
"""torch's own limit."""
MAX_SIZE = 1 << 63

STORAGES: dict[str, tuple[str, int]] = {
    "DoubleStorage": ("F64", 8), "FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1), "UntypedStorage": ("U8", 1),
    "ComplexFloatStorage": ("C64", 8), "ComplexDoubleStorage": ("C128", 16),
    "QInt8Storage": ("QI8", 1), "QUInt8Storage": ("QU8", 1), "QInt32Storage": ("QI32", 4),
    "QUInt4x2Storage": ("QU4", 1), "QUInt2x4Storage": ("QU2", 1),
}  # fmt: skip
"""Class of a storage: safetensors' name of its dtype (where there is one), and bytes of an element."""

DTYPES: dict[str, tuple[str, int]] = {
    "torch.float8_e4m3fn": ("F8_E4M3", 1), "torch.float8_e5m2": ("F8_E5M2", 1),
    "torch.float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "torch.float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "torch.float8_e8m0fnu": ("F8_E8M0", 1),
    "torch.uint16": ("U16", 2), "torch.uint32": ("U32", 4), "torch.uint64": ("U64", 8),
}  # fmt: skip
"""The same for dtypes that came after torch gave up a storage class for each; their storages are untyped."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements outside the pickle."""

    key: str
    dtype: str
    itemsize: int
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True, slots=True)
class Strided:
    """A dense tensor as a view of a storage; `offset` and `stride` count elements of `itemsize` bytes."""

    storage: Storage
    dtype: str
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def rows(self) -> tuple[int, int]:
        """Bytes of a row, the run that one index of the first dimension takes, and bytes from one row to the next.

        Raises `MalformedError` where a row is not such a run (a transposed matrix), where rows overlap, and where the
        tensor is not within its storage.
        """
        if 0 in self.shape:
            return 0, 0
        count, run = (self.shape[0] if self.shape else 1), 1
        for size, step in zip(reversed(self.shape[1:]), reversed(self.stride[1:]), strict=True):
            if size > 1 and step != run:
                raise self._not_by_rows()
            run *= size
        step = self.stride[0] if count > 1 else run
        if step < run:
            raise self._not_by_rows()
        if (self.offset + (count - 1) * step + run) * self.itemsize > self.storage.nbytes:
            raise MalformedError(f"its elements reach beyond its storage of {self.storage.nbytes:,} bytes")
        return run * self.itemsize, step * self.itemsize

    def _not_by_rows(self) -> MalformedError:
        return MalformedError(
            f"its shape {list(self.shape)} has stride {list(self.stride)}, so that its rows are not separate runs of bytes",
            "Save it again after .contiguous(), or convert the checkpoint to safetensors",
        )


def tensors(root: object) -> dict[str, Strided | MalformedError]:
    """Every tensor under its name, or why it is not a dense one.

    Nested dictionaries give dotted names; the one under a key of `WRAPPERS` stands for the whole where there is no
    tensor beside it. Raises `MalformedError` where the pickle is not of a dictionary.
    """
    if not isinstance(root, Pairs | Call) or (isinstance(root, Call) and not root.pairs and not _is_dict(root)):
        what = root.function.name if isinstance(root, Call) and isinstance(root.function, Symbol) else "no dictionary"
        raise MalformedError(
            f"its pickle holds {what}, not a state dict", "Save the result of model.state_dict() instead"
        )
    state: object = root
    for _ in range(MAX_DEPTH):
        found = dict(_items(state))
        if any(_is_tensor(value) for value in found.values()):
            break
        state = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Pairs | Call)), state)
    named: dict[str, Strided | MalformedError] = {}
    for name, call in _flat(state, (), set()):
        if name in named:
            raise MalformedError(f"its state dict has {name!r} twice")
        try:
            named[name] = _strided(call)
        except MalformedError as error:
            named[name] = error
    return named


def storage(reference: Reference) -> Storage:
    """The storage that a persistent id names; `MalformedError` for any other."""
    match reference.value:
        case ["storage", Symbol(name=name), str() | int() as key, _, numel, *view] if _is_name(key) and _is_size(numel):
            kind = STORAGES.get(name.rpartition(".")[2]) if name.startswith("torch.") else None
            if kind is None:
                raise MalformedError(f"a storage is of the class {name}, which is unknown")
            if any(part is not None for part in view):
                raise MalformedError(
                    "a storage is a view of another (torch 0.3)", "Load and save it with a newer torch"
                )
            return Storage(str(key), *kind, numel)
    raise MalformedError("a persistent id is not that of a storage")


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < MAX_SIZE


def _is_name(value: object) -> TypeGuard[str | int]:
    return isinstance(value, str) or _is_size(value)


def _is_dict(call: Call) -> bool:
    return isinstance(call.function, Symbol) and call.function.name == "collections.OrderedDict"


def _is_tensor(node: object) -> TypeGuard[Call]:
    return (
        isinstance(node, Call)
        and isinstance(node.function, Symbol)
        and node.function.name.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_"))
    )


def _items(node: object) -> Iterator[tuple[str, object]]:
    """Items of a dictionary with names for keys. Any other key is no name, and must not be hashed."""
    pairs = node.pairs if isinstance(node, Call) else node
    if isinstance(pairs, Pairs):
        yield from ((str(key), value) for key, value in zip(pairs[::2], pairs[1::2], strict=False) if _is_name(key))


def _flat(node: object, above: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Call]]:
    """Tensors by dotted name. Each dictionary is entered once: a few that hold each other have endless paths."""
    if id(node) in seen or len(above) > MAX_DEPTH:
        return
    seen.add(id(node))
    for key, value in dict(_items(node)).items():
        if sum(map(len, keys := (*above, key))) > MAX_NAME:
            raise MalformedError(f"its state dict has a name of more than {MAX_NAME:,} letters")
        if _is_tensor(value):
            yield ".".join(keys), value
        else:
            yield from _flat(value, keys, seen)


def _strided(call: Call) -> Strided:
    for _ in range(MAX_DEPTH):
        function = call.function.name if isinstance(call.function, Symbol) else "the result of another call"
        match function.rpartition(".")[2], call.arguments:
            case "_rebuild_parameter" | "_rebuild_parameter_with_state", [Call() as inner, *_]:
                call = inner
            case "_rebuild_from_type_v2", [Symbol() as rebuild, _, arguments, *_]:
                call = Call(rebuild, arguments)
            case "_rebuild_tensor" | "_rebuild_tensor_v2", [Reference() as reference, offset, shape, stride, *_]:
                where = storage(reference)
                return _checked(where, where.dtype, where.itemsize, offset, shape, stride)
            case "_rebuild_tensor_v3", [Reference() as reference, offset, shape, stride, _, _, Symbol(name=dtype), *_]:
                if dtype not in DTYPES:
                    raise MalformedError(f"its dtype is {dtype}, which is not read", "Name another tensor")
                return _checked(storage(reference), *DTYPES[dtype], offset, shape, stride)
            case _:
                break
    raise MalformedError(f"it is made by {function}: not a dense tensor", "Name another one, or use another revision")


def _checked(where: Storage, dtype: str, itemsize: int, offset: object, shape: object, stride: object) -> Strided:
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= MAX_DIMENSIONS):
        raise MalformedError("its shape and stride are not tuples of one length")
    if not (_is_size(offset) and all(map(_is_size, shape + stride))):
        raise MalformedError("its offset, shape or stride has something other than whole numbers from 0 to 2^63")
    return Strided(where, dtype, itemsize, offset, shape, stride)
