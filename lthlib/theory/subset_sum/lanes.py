"""Vectors of eight float64 lanes for compiled kernels, in LLVM's generic `<8 x double>`.

One AVX-512 register, two of AVX2, four of NEON: a lane is one instance of a batch, so nothing in a kernel branches on
data. Arrays are flat float64 and aligned to a vector; an index counts vectors. Written as intermediate code because a
compiler vectorises neither merges with small strides nor loops over arrays that might overlap.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic
from numba.extending import models, register_model

from lthlib.theory.arrays import Array

LANES = 8

Vector = Any  # what compiled code sees as `lanes`

intrinsic: Any = _intrinsic  # its functions are called with fewer arguments than they are written with

_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_BITS = ir.VectorType(ir.IntType(64), LANES)


class LanesType(types.Type):
    """Numba's type of one vector: a float64 of each of eight instances."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, _VECTOR)


def _bits(b: Any, x: Any) -> Any:
    return b.bitcast(x, _BITS)


def _constant(value: int) -> Any:
    return ir.Constant(_BITS, [value] * LANES)


def _below(b: Any, x: Any, y: Any) -> Any:
    return b.fcmp_ordered("<", x, y)


def _lower(b: Any, x: Any, y: Any) -> Any:
    return b.select(_below(b, x, y), x, y)


def _upper(b: Any, x: Any, y: Any) -> Any:
    return b.select(_below(b, x, y), y, x)


def _tag(b: Any, x: Any, bit: int) -> Any:
    bits = b.or_(_bits(b, x), _constant(1)) if bit else b.and_(_bits(b, x), _constant(-2))
    return b.bitcast(bits, _VECTOR)


def _odd(b: Any, bits: Any) -> Any:
    return b.icmp_signed("!=", b.and_(bits, _constant(1)), _constant(0))


def _pointer(context: Any, b: Any, array_type: types.Array, array: Any, index: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, b, array).data
    return b.gep(b.bitcast(data, _VECTOR.as_pointer()), [index])


def _step(b: Any, pointer: Any, index: Any) -> Any:
    return b.gep(pointer, [index])


def _load(b: Any, pointer: Any) -> Any:
    return b.load(pointer, align=8 * LANES)


def _store(b: Any, value: Any, pointer: Any) -> None:
    b.store(value, pointer, align=8 * LANES)


def _operation(arity: int, emit: Callable[..., Any]) -> Any:
    """An operation on vectors as a function that compiled code can call."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return emit(b, *args)

    if arity == 1:

        @intrinsic
        def unary(typing: Any, x: Any) -> Any:
            return lanes(lanes), generate

        return unary

    @intrinsic
    def binary(typing: Any, x: Any, y: Any) -> Any:
        return lanes(lanes, lanes), generate

    return binary


add = _operation(2, lambda b, x, y: b.fadd(x, y))
sub = _operation(2, lambda b, x, y: b.fsub(x, y))
lower = _operation(2, _lower)
upper = _operation(2, _upper)
negative = _operation(1, lambda b, x: b.fneg(x))
absolute = _operation(1, lambda b, x: b.bitcast(b.and_(_bits(b, x), _constant((1 << 63) - 1)), _VECTOR))
even = _operation(1, lambda b, x: _tag(b, x, 0))
odd = _operation(1, lambda b, x: _tag(b, x, 1))


@intrinsic
def load_lanes(typing: Any, array: Any, index: Any) -> Any:
    """Vector number `index` of `array` (flat, float64, aligned to a vector)."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return _load(b, _pointer(context, b, signature.args[0], *args))

    return lanes(array, types.intp), generate


@intrinsic
def store_lanes(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Writes vector number `index` of `array`."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _store(b, args[2], _pointer(context, b, signature.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@intrinsic
def splat(typing: Any, x: Any) -> Any:
    """A vector with the same float64 in every lane."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        empty = ir.Constant(_VECTOR, ir.Undefined)
        first = b.insert_element(empty, args[0], ir.Constant(ir.IntType(32), 0))
        return b.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

    return lanes(types.float64), generate


@intrinsic
def where_equal(typing: Any, x: Any, y: Any, yes: Any, no: Any) -> Any:
    """`yes` in the lanes where x == y, `no` elsewhere."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        x, y, yes, no = args
        return b.select(b.fcmp_ordered("==", x, y), yes, no)

    return lanes(lanes, lanes, lanes, lanes), generate


@intrinsic
def where_odd(typing: Any, x: Any, yes: Any, no: Any) -> Any:
    """`yes` in the lanes where x is tagged odd, `no` elsewhere."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        x, yes, no = args
        return b.select(_odd(b, _bits(b, x)), yes, no)

    return lanes(lanes, lanes, lanes), generate


@intrinsic
def bits_of(typing: Any, x: Any) -> Any:
    """A float64's bits as an int64: of numbers that are not negative, in the same order."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), generate


def _exchange(b: Any, values: list[Any], i: int, j: int) -> None:
    values[i], values[j] = _lower(b, values[i], values[j]), _upper(b, values[i], values[j])


def _merge(b: Any, values: list[Any]) -> None:
    """Bitonic values, in place, into order."""
    gap = len(values) // 2
    while gap:
        for i in range(len(values)):
            if not i & gap:
                _exchange(b, values, i, i + gap)
        gap //= 2


def _halving(ways: int) -> Any:
    @intrinsic
    def halve(typing: Any, array: Any, index: Any, gap: Any) -> Any:
        """log2(ways) merge stages at once on the vectors index, index + gap, ..., index + (ways - 1) gap."""

        def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
            pointers = [_pointer(context, b, signature.args[0], *args[:2])]
            for _ in range(ways - 1):
                pointers.append(_step(b, pointers[-1], args[2]))
            values = [_load(b, pointer) for pointer in pointers]
            _merge(b, values)
            for value, pointer in zip(values, pointers, strict=True):
                _store(b, value, pointer)
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp), generate

    return halve


halve2, halve4, halve8 = _halving(2), _halving(4), _halving(8)


@intrinsic
def first_magnitudes(typing: Any, halves: Any, first: Any, out: Any) -> Any:
    """The sorted magnitudes of +-h_0 +-h_1 +-h_2 +-h_3: eight vectors of `out`, from four of `halves`."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source = _pointer(context, b, signature.args[0], *args[:2])
        values = [_load(b, source)]
        for j in range(1, 4):
            h = _load(b, _step(b, source, ir.Constant(ir.IntType(64), j)))
            values = [emit(value, h) for value in values for emit in (b.fadd, b.fsub)]
        values = [b.bitcast(b.and_(_bits(b, value), _constant((1 << 63) - 1)), _VECTOR) for value in values]
        for run in (1, 2, 4):
            for start in range(0, 8, 2 * run):
                block = values[start : start + run] + values[start + run : start + 2 * run][::-1]
                _merge(b, block)
                values[start : start + 2 * run] = block
        target = _pointer(context, b, signature.args[2], args[2], ir.Constant(ir.IntType(64), 0))
        for i, value in enumerate(values):
            _store(b, value, _step(b, target, ir.Constant(ir.IntType(64), i)))
        return context.get_dummy_value()

    return types.void(halves, types.intp, out), generate


@intrinsic
def finish_and_scan(typing: Any, array: Any, index: Any, state: Any) -> Any:
    """The last three merge stages of eight vectors, and the closest two neighbours of unlike tag.

    `state` holds four vectors: the smallest gap so far, the lower and the upper value it lies between, and the value
    before this block.
    """

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source = _pointer(context, b, signature.args[0], *args[:2])
        values = [_load(b, _step(b, source, ir.Constant(ir.IntType(64), i))) for i in range(8)]
        _merge(b, values)
        memory = _pointer(context, b, signature.args[2], args[2], ir.Constant(ir.IntType(64), 0))
        slots = [_step(b, memory, ir.Constant(ir.IntType(64), i)) for i in range(4)]
        infinite = ir.Constant(_VECTOR, [float("inf")] * LANES)
        pairs = []
        for u, v in zip([_load(b, slots[3]), *values[:-1]], values, strict=True):
            unlike = _odd(b, b.xor(_bits(b, u), _bits(b, v)))
            pairs.append((b.select(unlike, b.fsub(v, u), infinite), u, v))
        while len(pairs) > 1:
            pairs = [_closer(b, *two) for two in zip(pairs[::2], pairs[1::2], strict=True)]
        best = _closer(b, tuple(_load(b, slot) for slot in slots[:3]), pairs[0])
        for value, slot in zip([*best, values[-1]], slots, strict=True):
            _store(b, value, slot)
        return context.get_dummy_value()

    return types.void(array, types.intp, state), generate


def _closer(b: Any, p: tuple[Any, ...], q: tuple[Any, ...]) -> tuple[Any, ...]:
    smaller = _below(b, q[0], p[0])
    return tuple(b.select(smaller, y, x) for x, y in zip(p, q, strict=True))


@njit(types.float64[::1](types.int64), cache=True, nogil=True)
def scratch(vectors: int) -> Array:
    """An uninitialised array of so many vectors."""
    # a vector that straddles two cache lines costs double
    raw = np.empty((vectors + 1) * LANES)
    start = (-(raw.ctypes.data >> 3)) & (LANES - 1)
    return raw[start : start + vectors * LANES]
