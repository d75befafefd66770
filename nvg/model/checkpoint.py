"""A checkpoint directory's weights: checked against its config when opened, then read one tensor at a time.

Files are read, never mapped: a mapped file that is cut while in use kills the process (SIGBUS).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from nvg.errors import CheckpointError
from nvg.model.config import ModelConfig, read_config, read_json, shown

Float32 = npt.NDArray[np.float32]

DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
"""Stored dtypes that are read, as safetensors names them, and the NumPy dtype that carries their bytes."""

_PREFIX = "transformer."  # GPT2LMHeadModel writes it, GPT2Model does not
_LAYER = re.compile(r"h\.(0|[1-9][0-9]{0,8})\.")
_MASK = re.compile(r"h\.[0-9]+\.attn\.(masked_)?bias")  # the causal mask, stored by old versions of transformers
_CHUNK_BYTES = 2**20  # read, converted and checked while it is in cache
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class _Stored:
    """Where a tensor's bytes are."""

    file: IO[bytes]
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """The weights of a Hugging Face GPT-2 directory (model.safetensors, or shards with their index).

    Opening reads headers only, and checks every name, shape and dtype against config.json. Tensors have their
    canonical names: Hugging Face's without the prefix `transformer.`; Conv1D weights are (in, out). Use it in a
    `with`; several threads may read.

    Raises CheckpointError for files that are missing, damaged, or contradict the config.
    """

    directory: Path
    config: ModelConfig
    warnings: list[str]
    """Lines for the user about what was found and is not used."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self.config = read_config(directory)
        self.warnings = []
        self._files = ExitStack()
        self._lock = threading.Lock()
        self._headers: list[tuple[IO[bytes], str]] = []
        try:
            found = self._find_tensors()
            self._tensors = self._check(found)
        except BaseException:
            self._files.close()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of all tensors that the config asks for, in the model's order."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of `names`."""
        return self._tensors[name].shape

    @property
    def fingerprint(self) -> str:
        """Digest of what the weights come from: where they are, the config, and each file's header, size, inode and
        times as they are now. As long as it is the same, nobody wrote to the files."""
        facts: list[object] = [self.config, os.path.realpath(self.directory)]
        for file, header in self._headers:
            status = os.fstat(file.fileno())
            times = (status.st_mtime_ns, status.st_ctime_ns)  # of these, nobody can set the second
            facts.append((os.path.basename(file.name), header, status.st_size, status.st_ino, *times))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def read(self, name: str, out: Float32 | None = None) -> Float32:
        """A tensor's values as float32, C-contiguous, in `out` where given (float32, contiguous, of that shape).

        float16 and bfloat16 convert exactly. Raises CheckpointError for values that are not finite, and where the
        file became shorter since it was opened.
        """
        stored = self._tensors[name]
        if out is None:
            out = np.empty(stored.shape, np.float32)
        elif out.shape != stored.shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ValueError(f"out for {name} must be float32, C-contiguous, of shape {stored.shape}")
        self._read_values(stored, name, 0, out.reshape(-1))
        return out

    def read_rows(self, name: str, first_row: int, out: Float32) -> None:
        """Rows of a matrix from `first_row` on, as many as `out` (float32, C-contiguous, (rows, columns)) has."""
        self._read_values(self._tensors[name], name, first_row * out.shape[1], out.reshape(-1))

    def _read_values(self, stored: _Stored, name: str, first: int, flat: Float32) -> None:
        """Elements from number `first` on: read, convert to float32, refuse what is not finite."""
        carrier = DTYPES[stored.dtype]
        step = _CHUNK_BYTES // carrier.itemsize
        for start in range(0, flat.size, step):
            part = flat[start : start + step]
            offset = stored.offset + (first + start) * carrier.itemsize
            if stored.dtype == "F32":
                self._read_into(stored, offset, part, name)
            else:
                bits = np.empty(part.size, carrier)
                self._read_into(stored, offset, bits, name)
                if stored.dtype == "BF16":  # the upper half of a float32
                    np.left_shift(bits, 16, out=part.view(np.uint32), dtype=np.uint32)
                else:
                    part[:] = bits
            if not (math.isfinite(part.max()) and math.isfinite(part.min())):  # NaN is both
                raise CheckpointError(f"{stored.file.name}: the tensor {name} has values that are not finite")

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_tensors(self) -> dict[str, _Stored]:
        """All tensors of all files, by canonical name."""
        found: dict[str, _Stored] = {}
        for path in _weight_files(self.directory):
            for name, stored in self._open(path).items():
                canonical = name.removeprefix(_PREFIX)
                if canonical in found:
                    raise CheckpointError(
                        f"{path}: the tensor {shown(canonical)} is there twice; it must be there once"
                    )
                found[canonical] = stored
        return found

    def _open(self, path: Path) -> dict[str, _Stored]:
        """Open one safetensors file and take its header."""
        try:
            file = self._files.enter_context(open(path, "rb", buffering=0))  # noqa: SIM115 (the stack closes it)
            size = os.fstat(file.fileno()).st_size
            start = file.read(16)
            if start.startswith(b"version https://"):
                raise CheckpointError(
                    f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its checkout"
                )
            if size < 8:
                raise CheckpointError(f"{path} has {size} bytes, too few for a safetensors file: copy it again")
            with safe_open(path, framework="numpy"):
                pass  # safetensors' own checks of the header: sizes, offsets, no holes, no overlaps
            header_size = int.from_bytes(start[:8], "little")
            file.seek(8)
            header_bytes = _read_exactly(file, header_size)
            self._headers.append((file, hashlib.sha256(header_bytes).hexdigest()))
            header = json.loads(header_bytes)
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(
                f"{path} ({size} bytes) is cut short, damaged or not a safetensors file: {shown(str(error))}"
            ) from None
        header.pop("__metadata__", None)
        data_offset = 8 + header_size
        return {
            name: _Stored(file, data_offset + info["data_offsets"][0], info["dtype"], tuple(info["shape"]))
            for name, info in header.items()
        }

    def _check(self, found: dict[str, _Stored]) -> dict[str, _Stored]:
        """The tensors that the config asks for, each checked; the others are refused or make a warning."""
        asked = _asked_tensors(self.config)
        tensors: dict[str, _Stored] = {}
        for name, dims in asked.items():
            stored = found.get(name)
            if stored is None:
                missing = [other for other in asked if other not in found]
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                raise CheckpointError(
                    f"{self.directory}: the weights have no tensor {name}{more}, which config.json asks for "
                    f"(n_layer {self.config.n_layer}, tie_word_embeddings {self.config.tie_word_embeddings})"
                )
            self._check_tensor(name, stored, dims)
            tensors[name] = stored
        self._check_others([name for name in found if name not in asked])
        return tensors

    def _check_tensor(self, name: str, stored: _Stored, dims: tuple[str, ...]) -> None:
        where = stored.file.name
        shape = tuple(_dimension(self.config, dim) for dim in dims)
        if stored.shape != shape:
            wanted = ", ".join(f"{dim} {size}" for dim, size in zip(dims, shape, strict=True))
            hint = "; it looks transposed: rows are inputs here" if stored.shape == shape[::-1] else ""
            raise CheckpointError(
                f"{where}: the tensor {name} has shape {stored.shape}; config.json asks for {shape} ({wanted}){hint}"
            )
        if stored.dtype not in DTYPES:
            raise CheckpointError(
                f"{where}: the tensor {name} has dtype {stored.dtype}; it must be one of {', '.join(DTYPES)}: save the "
                "model in float32, float16 or bfloat16"
            )

    def _check_others(self, names: list[str]) -> None:
        """Refuse layers that the config doesn't know; name the rest, but for masks and a head that is tied anyway."""
        unused = []
        for name in names:
            layer = _LAYER.match(name)
            if layer and int(layer[1]) >= self.config.n_layer:
                raise CheckpointError(
                    f"{self.directory}: the weights have a tensor {shown(name)}, but config.json has n_layer "
                    f"{self.config.n_layer}: layers must be 0 to {self.config.n_layer - 1}"
                )
            if not _MASK.fullmatch(name) and name != "lm_head.weight":
                unused.append(name)
        if unused:
            some = ", ".join(shown(name) for name in unused[:3]) + (", ..." if len(unused) > 3 else "")
            self.warnings.append(
                f"{self.directory}: the weights have {len(unused)} tensors that GPT-2 does not use, ignored: {some}"
            )

    def _read_into(self, stored: _Stored, offset: int, array: npt.NDArray[Any], name: str) -> None:
        view = array.view(np.uint8).data
        done = 0
        while done < len(view):
            count = self._read_at(stored.file, offset + done, view[done:])
            if not count:
                raise CheckpointError(f"{stored.file.name} became shorter while the tensor {name} was read from it")
            done += count

    def _read_at(self, file: IO[bytes], offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(file.fileno(), [view], offset)
        with self._lock:  # threads share the position
            file.seek(offset)
            return int(file.readinto(view))  # type: ignore[attr-defined]


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    parts = []
    while size:
        part = file.read(size)
        if not part:
            raise ValueError("it ends within its header")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint: model.safetensors, else the shards that the index names."""
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if os.path.isfile(single):
        return [single]
    if os.path.isfile(index):
        return _shards(index)
    for name in _PICKLES:
        if os.path.exists(directory / name):
            raise CheckpointError(
                f"{directory} has {name} but no model.safetensors; nvg never opens pickle files, which can run code: "
                "if you trust it, convert it with transformers: "
                "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)"
            )
    raise CheckpointError(f"{directory} has no model.safetensors, nor shards with {index.name}")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map must be an object of tensor names and file names")
    for name in weight_map.values():
        # Only files of this directory: an index must not make nvg open anything else.
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name, re.ASCII):
            raise CheckpointError(
                f"{index}: weight_map has the file {shown(name)}; it must be the plain name of a .safetensors file"
            )
    paths = [index.with_name(name) for name in sorted(set(weight_map.values()))]
    for path in paths:
        if not os.path.isfile(path):
            raise CheckpointError(f"{path} is missing; {index.name} names it")
    return paths


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor that a GPT-2 of this config has, in the model's order."""
    return {name: tuple(_dimension(config, dim) for dim in dims) for name, dims in _asked_tensors(config).items()}


def _asked_tensors(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Canonical name -> dimensions, of every tensor that a GPT-2 of this config has, in the model's order."""
    layer = {
        "ln_1.weight": ("n_embd",),
        "ln_1.bias": ("n_embd",),
        "attn.c_attn.weight": ("n_embd", "3 n_embd"),
        "attn.c_attn.bias": ("3 n_embd",),
        "attn.c_proj.weight": ("n_embd", "n_embd"),
        "attn.c_proj.bias": ("n_embd",),
        "ln_2.weight": ("n_embd",),
        "ln_2.bias": ("n_embd",),
        "mlp.c_fc.weight": ("n_embd", "n_inner"),
        "mlp.c_fc.bias": ("n_inner",),
        "mlp.c_proj.weight": ("n_inner", "n_embd"),
        "mlp.c_proj.bias": ("n_embd",),
    }
    asked: dict[str, tuple[str, ...]] = {
        "wte.weight": ("vocab_size", "n_embd"),
        "wpe.weight": ("n_positions", "n_embd"),
    }
    for i in range(config.n_layer):
        asked.update({f"h.{i}.{name}": dims for name, dims in layer.items()})
    asked.update({"ln_f.weight": ("n_embd",), "ln_f.bias": ("n_embd",)})
    if not config.tie_word_embeddings:
        asked["lm_head.weight"] = ("vocab_size", "n_embd")
    return asked


def _dimension(config: ModelConfig, dim: str) -> int:
    return 3 * config.n_embd if dim == "3 n_embd" else int(getattr(config, dim))
