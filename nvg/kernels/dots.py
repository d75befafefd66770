"""Dot products of short pairs and quads, by the best instruction there is: what bfloat16 and int8 tiles are made of.

Which one is used depends on the machine alone, never on the number of rows. The integer ones all give the same result.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from nvg.kernels.emitter import I16, Emitter
from nvg.runtime.instructions import instruction


class PairInstruction:
    """vdpbf16ps: accumulator + a0 b0 + a1 b1 in one instruction (its own order of rounding, the same in every tile)."""

    def __init__(self, emit: Emitter) -> None:
        self._builder = emit.builder
        self._instruction = instruction("dpbf16ps", emit.width)

    def prepare(self, words: Any) -> Any:
        return words

    def accumulate(self, accumulator: Any, a: Any, b: Any) -> Any:
        return self._instruction.call(self._builder, accumulator, a, b)


class PairByParts:
    """Two fused multiply-adds, the first k first; a bfloat16 is the upper half of a float32."""

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit

    def prepare(self, words: Any) -> tuple[Any, Any]:
        emit, b = self._emit, self._emit.builder
        first = b.bitcast(b.shl(words, emit.iconstant(16)), emit.vector)
        second = b.bitcast(b.and_(words, emit.iconstant(-65536)), emit.vector)
        return first, second

    def accumulate(self, accumulator: Any, a: tuple[Any, Any], b: tuple[Any, Any]) -> Any:
        return self._emit.fma(a[1], b[1], self._emit.fma(a[0], b[0], accumulator))


def pair_dot(emit: Emitter) -> Any:
    """For lanes of two bfloat16 each."""
    return PairInstruction(emit) if emit.features.bf16_dot else PairByParts(emit)


class QuadInstruction:
    """vpdpbusd: accumulator + four products of an unsigned and a signed byte."""

    def __init__(self, emit: Emitter) -> None:
        self._builder = emit.builder
        self._instruction = instruction("vnni", emit.width)

    def start(self, emit: Emitter, correction: Any) -> Any:
        return emit.splat(correction)

    def weights(self, words: Any) -> Any:
        return words

    activations = weights

    def accumulate(self, accumulator: Any, weights: Any, activations: Any) -> Any:
        return self._instruction.call(self._builder, accumulator, weights, activations)


class QuadSigned:
    """sdot: four products of signed bytes; the weights' + 128 is taken off by flipping their sign bit."""

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit
        self._instruction = instruction("sdot", emit.width)

    def start(self, emit: Emitter, correction: Any) -> Any:
        return emit.iconstant(0)

    def weights(self, words: Any) -> Any:
        emit, b = self._emit, self._emit.builder
        return b.xor(words, emit.iconstant(0x80808080 - (1 << 32)))

    def activations(self, words: Any) -> Any:
        return words

    def accumulate(self, accumulator: Any, weights: Any, activations: Any) -> Any:
        return self._instruction.call(self._emit.builder, accumulator, weights, activations)


class QuadByPairs:
    """Two multiplications of 16-bit lanes with pairwise sums (pmaddwd): nothing saturates, unlike with pmaddubsw."""

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit
        self._vector = ir.VectorType(I16, 2 * emit.width)
        self._instruction = instruction("pmaddwd", emit.width)

    def start(self, emit: Emitter, correction: Any) -> Any:
        return emit.splat(correction)

    def weights(self, words: Any) -> tuple[Any, Any]:
        emit, b = self._emit, self._emit.builder
        low = emit.iconstant(0x00FF00FF)
        return b.and_(words, low), b.and_(b.lshr(words, emit.iconstant(8)), low)

    def activations(self, words: Any) -> tuple[Any, Any]:
        b = self._emit.builder
        halves = b.bitcast(words, self._vector)
        eight = ir.Constant(self._vector, [8] * self._vector.count)
        return b.ashr(b.shl(halves, eight), eight), b.ashr(halves, eight)

    def accumulate(self, accumulator: Any, weights: tuple[Any, Any], activations: tuple[Any, Any]) -> Any:
        b = self._emit.builder
        for part, other in zip(weights, activations, strict=True):
            accumulator = b.add(accumulator, self._instruction.call(b, part, other))
        return accumulator


class QuadPlain:
    """Four multiplications of 32-bit lanes: any machine can."""

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit

    def start(self, emit: Emitter, correction: Any) -> Any:
        return emit.splat(correction)

    def weights(self, words: Any) -> list[Any]:
        emit, b = self._emit, self._emit.builder
        return [b.and_(b.lshr(words, emit.iconstant(8 * i)), emit.iconstant(0xFF)) for i in range(4)]

    def activations(self, words: Any) -> list[Any]:
        emit, b = self._emit, self._emit.builder
        return [b.ashr(b.shl(words, emit.iconstant(24 - 8 * i)), emit.iconstant(24)) for i in range(4)]

    def accumulate(self, accumulator: Any, weights: list[Any], activations: list[Any]) -> Any:
        b = self._emit.builder
        for part, other in zip(weights, activations, strict=True):
            accumulator = b.add(accumulator, b.mul(part, other))
        return accumulator


def integer_dot(emit: Emitter) -> Any:
    """For lanes of four bytes each, weights + 128 unsigned, activations signed."""
    kinds: dict[str, Any] = {"vnni": QuadInstruction, "sdot": QuadSigned, "pmaddwd": QuadByPairs, "plain": QuadPlain}
    return kinds[emit.features.int8_dot](emit)
