"""A checkpoint directory's weights: checked against its config when opened, then read one tensor at a time.

Files are read, never mapped: a mapped file that is cut while in use kills the process (SIGBUS).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from nvg.errors import CheckpointError, shown
from nvg.files import open_file, weight_files
from nvg.model.config import ModelConfig, read_config
from nvg.model.safetensors_header import StoredTensor, read_header

Float32 = npt.NDArray[np.float32]

DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
"""Stored dtypes that are read, as safetensors names them, and the NumPy dtype that carries their bytes."""

_PREFIX = "transformer."  # GPT2LMHeadModel writes it, GPT2Model does not
_LAYER = re.compile(r"h\.(0|[1-9][0-9]{0,8})\.")
_MASK = re.compile(r"h\.[0-9]+\.attn\.(masked_)?bias")  # the causal mask, stored by old versions of transformers
_CHUNK_BYTES = 2**20  # read, converted and checked while it is in cache
_EMBEDDING, _HEAD = "wte.weight", "lm_head.weight"


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

    def __init__(self, directory: str | os.PathLike[str], *, problems: list[str] | None = None) -> None:
        """`problems`, where given, gets what would be raised about tensors that contradict the config; those have no
        name then."""
        self.directory = Path(directory)
        self.config = read_config(directory)
        self.warnings = []
        self._files = ExitStack()
        self._lock = threading.Lock()
        self._headers: list[tuple[IO[bytes], str]] = []
        try:
            found = self._find_tensors()
            self._opened = self._states()
            found_problems: list[str] = []
            self._tensors = self._check(found, found_problems)
            if problems is not None:
                problems += found_problems
            elif found_problems:
                raise CheckpointError(found_problems[0])
            else:
                self._ask_library()
            self._settle_head()
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

    def _ask_library(self) -> None:
        """Let the format's own library, which names no tensor but has the last word, look at the headers."""
        for file, _ in self._headers:
            try:
                with safe_open(file.name, framework="numpy", backend="pread"):
                    pass
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file.name} is not a safetensors file: {shown(str(error))}") from None

    def _states(self) -> list[tuple[int, int]]:
        statuses = (os.fstat(file.fileno()) for file, _ in self._headers)
        return [(status.st_size, status.st_mtime_ns) for status in statuses]

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was written to since it was opened: what was read may be of two versions."""
        for (file, _), before, now in zip(self._headers, self._opened, self._states(), strict=True):
            if before != now:
                raise CheckpointError(f"{file.name} was changed while it was read: load the model again")

    def dtype(self, name: str) -> str:
        """How a tensor of `names` is stored, one of DTYPES."""
        return self._tensors[name].dtype

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

    def _read_values(self, stored: StoredTensor, name: str, first: int, flat: Float32) -> None:
        """Elements from number `first` on: read, convert to float32, refuse what is not finite."""
        step = _CHUNK_BYTES // DTYPES[stored.dtype].itemsize
        for start in range(0, flat.size, step):
            part = flat[start : start + step]
            self._read_chunk(stored, name, first + start, part)
            if not (math.isfinite(part.max()) and math.isfinite(part.min())):  # NaN is both
                raise CheckpointError(f"{stored.file.name}: the tensor {name} has values that are not finite")

    def _read_chunk(self, stored: StoredTensor, name: str, first: int, part: Float32) -> None:
        """Elements from number `first` on, as float32."""
        carrier = DTYPES[stored.dtype]
        offset = stored.offset + first * carrier.itemsize
        if stored.dtype == "F32":
            self._read_into(stored, offset, part, name)
            return
        bits = np.empty(part.size, carrier)
        self._read_into(stored, offset, bits, name)
        if stored.dtype == "BF16":  # the upper half of a float32
            np.left_shift(bits, 16, out=part.view(np.uint32), dtype=np.uint32)
        else:
            part[:] = bits

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_tensors(self) -> dict[str, StoredTensor]:
        """All tensors of all files, by canonical name."""
        found: dict[str, StoredTensor] = {}
        for path in weight_files(self.directory):
            for name, stored in self._open(path).items():
                canonical = name.removeprefix(_PREFIX)
                if canonical in found:
                    raise CheckpointError(
                        f"{path}: the tensor {shown(canonical)} is there twice; it must be there once"
                    )
                found[canonical] = stored
        return found

    def _open(self, path: Path) -> dict[str, StoredTensor]:
        """Open one safetensors file and take its header."""
        try:
            file = self._files.enter_context(open_file(path))
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise CheckpointError(f"{path} has {size} bytes, too few for a safetensors file: copy it again")
            if file.read(16) == b"version https://":
                raise CheckpointError(
                    f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its checkout"
                )
            file.seek(0)
            header, tensors = read_header(file, size)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
        except ValueError as error:
            raise CheckpointError(
                f"{path} ({size} bytes) is cut short, damaged or not a safetensors file: {error}"
            ) from None
        self._headers.append((file, hashlib.sha256(header).hexdigest()))
        return tensors

    def _check(self, found: dict[str, StoredTensor], problems: list[str]) -> dict[str, StoredTensor]:
        """The tensors that the config asks for, less those of which `problems` now tells."""
        asked = _asked_tensors(self.config)
        if self.config.tie_word_embeddings and _HEAD in found:
            if _EMBEDDING not in found:  # it is either's to be named
                found[_EMBEDDING] = found.pop(_HEAD)
            else:
                asked[_HEAD] = asked[_EMBEDDING]
        missing = [name for name in asked if name not in found]
        tensors: dict[str, StoredTensor] = {}
        for name, dims in asked.items():
            problem = None
            if name in found:
                problem = self._problem_of_tensor(name, found[name], dims)
            elif name == missing[0]:
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                problem = (
                    f"{self.directory}: the weights have no tensor {name}{more}, which config.json asks for "
                    f"(n_layer {self.config.n_layer}, tie_word_embeddings {self.config.tie_word_embeddings})"
                )
            if problem:
                problems.append(problem)
            elif name in found:
                tensors[name] = found[name]
        problems += self._problems_of_others([name for name in found if name not in asked])
        return tensors

    def _settle_head(self) -> None:
        """Two heads, though the config says they are one: as in transformers (from 5.0) they are if they are equal."""
        if not self.config.tie_word_embeddings or not {_EMBEDDING, _HEAD} <= self._tensors.keys():
            return
        if self._are_equal(_EMBEDDING, _HEAD):
            del self._tensors[_HEAD]
            return
        self.config = replace(self.config, tie_word_embeddings=False)
        self.warnings.append(
            f"{self.directory}: config.json has tie_word_embeddings true, but {_HEAD} is not {_EMBEDDING}: it is used, "
            "as if that were false"
        )

    def _are_equal(self, name: str, other: str) -> bool:
        size = math.prod(self.shape(name))
        step = _CHUNK_BYTES // 4
        buffers = np.empty((2, step), np.float32)
        for first in range(0, size, step):
            parts = buffers[:, : min(step, size - first)]
            for part, one in zip(parts, (name, other), strict=True):
                self._read_chunk(self._tensors[one], one, first, part)
            if not np.array_equal(*parts.view(np.uint32)):
                return False
        return True

    def _problem_of_tensor(self, name: str, stored: StoredTensor, dims: tuple[str, ...]) -> str | None:
        where = stored.file.name
        shape = tuple(_dimension(self.config, dim) for dim in dims)
        if stored.shape != shape:
            wanted = ", ".join(f"{dim} {size}" for dim, size in zip(dims, shape, strict=True))
            hint = "; it looks transposed: rows are inputs here" if stored.shape == shape[::-1] else ""
            found = shown(stored.shape)
            return f"{where}: the tensor {name} has shape {found}; config.json asks for {shape} ({wanted}){hint}"
        if stored.dtype not in DTYPES:
            return (
                f"{where}: the tensor {name} has dtype {shown(stored.dtype)[1:-1]}; it must be one of "
                f"{', '.join(DTYPES)}: save the model in float32, float16 or bfloat16"
            )
        return None

    def _problems_of_others(self, names: list[str]) -> list[str]:
        """A layer that the config doesn't know is one; the rest makes a warning, but for masks."""
        unused = []
        for name in names:
            layer = _LAYER.match(name)
            if layer and int(layer[1]) >= self.config.n_layer:
                return [
                    f"{self.directory}: the weights have a tensor {shown(name)}, but config.json has n_layer "
                    f"{self.config.n_layer}: layers must be 0 to {self.config.n_layer - 1}"
                ]
            if not _MASK.fullmatch(name):
                unused.append(name)
        if unused:
            some = ", ".join(shown(name) for name in unused[:3]) + (", ..." if len(unused) > 3 else "")
            self.warnings.append(
                f"{self.directory}: the weights have {len(unused)} tensors that GPT-2 does not use, ignored: {some}"
            )
        return []

    def _read_into(self, stored: StoredTensor, offset: int, array: npt.NDArray[Any], name: str) -> None:
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
