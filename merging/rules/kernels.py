"""The compiled loops behind `loops.py`: what a rule does with one block after the other.

Numba compiles `follow` at its first call and keeps the code on disk. All that it reads is in this
file: numba notices a change of a function's own file, and of no other. Tensors are passed as
addresses: base and rows of any number and dtype are then one compiled function, with one set of
types, so that processes that compile it at the same time write the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

FLOAT, BFLOAT, HALF, SHORT, INTEGER = range(5)
"""Dtypes of what lies at an address."""

COMBINATION, SUM, CONSENSUS = range(3)
"""What `merging.rules.compiled_rule.RuleKind` says."""

ALL, LARGEST, BAND, MASK, DRAWN, PRUNED = range(6)
"""What `merging.rules.compiled_rule.SelectionKind` says."""

_BLOCK = 256
"""Entries worked on at a time. With 8 rows 16 kB: what is read beside it stays cached, too.

A combination has no rooms to keep and is fastest in blocks of three quarters of that length.
Stores past the caches, which read nothing first, were tried and are three times as slow here.
"""

_STRIDE = 4 * _BLOCK + 64
"""Bytes from one block's room to the next: not a power of 2, or all compete for the same lines."""

_FLOATS = _STRIDE // 4

_ZEROS, _SHARES = 6, 7
"""Rooms of zeros and of the rows' shares; before them: base, row, spare, sums, signs, divisor."""

_FINEST = np.float32(2.0**-24)
_TINY = np.finfo(np.float32).tiny
_ZERO, _ONE = np.float32(0), np.float32(1)


def workspace(rows: int) -> int:
    """Returns how many bytes `follow` computes in."""
    return (_SHARES + rows + 1) * _STRIDE


def _pointer(kind: types.Type) -> Any:
    @intrinsic
    def cast(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(kind)))

        return types.CPointer(kind)(types.int64), generate

    return cast


_floats, _words = _pointer(types.float32), _pointer(types.uint16)
_shorts, _integers = _pointer(types.int16), _pointer(types.int32)
_longs = _pointer(types.int64)


@intrinsic
def _fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """Returns a b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def _of_bfloat(context: Any, word: Any) -> Any:
    """The float32 of a bfloat16's 16 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = builder.zext(arguments[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _of_half(context: Any, word: Any) -> Any:
    """The float32 of a float16's 16 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


_part = njit(nogil=True, error_model="numpy")


def _cached(function: Any) -> Any:
    """Compiles a function at its first call, and keeps the code where there is a place for it."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the folder of this file nor the user's can be written to
        return _part(function)


@_part
def _view(address: int, n: int) -> Any:
    return carray(_floats(address), n)


@_part
def _room(room: int, number: int, n: int) -> Any:
    return _view(room + number * _STRIDE, n)


@_part
def _convert(dtype: int, address: int, at: int, out: Any) -> None:
    n = len(out)
    if dtype == BFLOAT:
        words = carray(_words(address + 2 * at), n)
        for j in range(n):
            out[j] = _of_bfloat(words[j])
    elif dtype == HALF:
        words = carray(_words(address + 2 * at), n)
        for j in range(n):
            out[j] = _of_half(words[j])
    elif dtype == SHORT:
        shorts = carray(_shorts(address + 2 * at), n)
        for j in range(n):
            out[j] = np.float32(shorts[j])
    else:
        integers = carray(_integers(address + 4 * at), n)
        for j in range(n):
            out[j] = np.float32(integers[j])


@_part
def _place(dtype: int, address: int, at: int, n: int, room: int) -> int:
    """The address of entries as float32: their own, or that of the room they are converted in."""
    if dtype == FLOAT:
        return address + 4 * at
    _convert(dtype, address, at, _view(room, n))
    return room


@_part
def _entries(dtype: int, address: int, at: int, n: int, room: int) -> Any:
    return _view(_place(dtype, address, at, n, room), n)


# Loops with what they read and write as separate arguments: that is what the compiler turns into
# vector instructions. Where something is changed in place it is one argument.


@_part
def _fill(x: Any, value: float) -> None:
    for j in range(len(x)):
        x[j] = value


@_part
def _copy(x: Any, out: Any) -> None:
    for j in range(len(x)):
        out[j] = x[j]


@_part
def _multiply(x: Any, factor: float, out: Any) -> None:
    for j in range(len(x)):
        out[j] = x[j] * factor


@_part
def _subtract(x: Any, base: Any, out: Any) -> None:
    for j in range(len(x)):
        out[j] = x[j] - base[j]


@_part
def _add(x: Any, total: Any) -> None:
    for j in range(len(x)):
        total[j] += x[j]


@_part
def _add_scaled(x: Any, factor: float, total: Any) -> None:
    for j in range(len(x)):
        total[j] = _fma(x[j], factor, total[j])


@_part
def _multiply_words(words: Any, factor: float, out: Any) -> None:
    for j in range(len(words)):
        out[j] = _of_bfloat(words[j]) * factor


@_part
def _add_scaled_words(words: Any, factor: float, total: Any) -> None:
    for j in range(len(words)):
        total[j] = _fma(_of_bfloat(words[j]), factor, total[j])


@_part
def _scale_and_add(x: Any, factor: float, total: Any) -> None:
    for j in range(len(x)):
        scaled = x[j] * factor
        x[j] = scaled
        total[j] += scaled


@_part
def _shrink(x: Any, base: Any, threshold: float, out: Any) -> None:
    for j in range(len(x)):
        v = x[j] - base[j]
        out[j] = _ZERO if (v >= -threshold) & (v <= threshold) else v


@_part
def _cut(
    x: int, base: int, out: int, n: int, at: int, last: int, threshold: float, below: float
) -> None:
    """Keeps what exceeds the threshold, and up to the last position what equals it."""
    until = min(max(last + 1 - at, 0), n)
    if until:
        _shrink(_view(x, until), _view(base, until), below, _view(out, until))
    if until < n:
        x, base, out, n = x + 4 * until, base + 4 * until, out + 4 * until, n - until
        _shrink(_view(x, n), _view(base, n), threshold, _view(out, n))


@_part
def _without(x: Any, less: Any) -> None:
    for j in range(len(x)):
        x[j] -= less[j]


@_part
def _mask(x: Any, base: Any, mask: Any, out: Any) -> None:
    for j in range(len(x)):
        out[j] = (x[j] - base[j]) * mask[j]


@_part
def _draw(x: Any, base: Any, draws: Any, density: float, out: Any) -> None:
    for j in range(len(x)):
        v = x[j] - base[j]
        out[j] = _ZERO if (draws[j] <= -_ONE) | (draws[j] >= density) else v


@_part
def _prune(
    x: Any, base: Any, draws: Any, ranks: Any, step: float, lowest: float, out: Any
) -> None:
    """Keeps what its chance exceeds the draw of, and leaves the chances in place of the ranks."""
    for j in range(len(x)):
        chance = ranks[j] * step + lowest
        ranks[j] = max(chance, _FINEST)
        out[j] = (x[j] - base[j]) * (_ONE if draws[j] < chance else _ZERO)


@_part
def _divide_by(x: Any, divisor: Any) -> None:
    for j in range(len(x)):
        x[j] /= divisor[j]


@_part
def _sign(x: Any, out: Any) -> None:
    for j in range(len(x)):
        v = x[j]
        out[j] = (_ONE if v > 0 else _ZERO) - (_ONE if v < 0 else _ZERO)


@_part
def _add_signs(x: Any, total: Any) -> None:
    for j in range(len(x)):
        v = x[j]
        total[j] += (_ONE if v > 0 else _ZERO) - (_ONE if v < 0 else _ZERO)


@_part
def _decide(votes: Any, sign: Any) -> None:
    for j in range(len(votes)):
        v = votes[j]
        elected = (_ONE if v > 0 else _ZERO) - (_ONE if v < 0 else _ZERO)
        sign[j] = sign[j] if v == 0 else elected


@_part
def _agree(x: Any, sign: Any, later: float, mass: float, total: Any, masses: Any) -> None:
    for j in range(len(x)):
        v = x[j]
        agrees = _ONE if v * sign[j] > 0 else _ZERO
        total[j] = _fma(later * agrees, v, total[j])
        masses[j] += mass * agrees


@_part
def _merge_few(
    shares: Any,
    base: Any,
    votes: Any,
    later: Any,
    masses: Any,
    scale: float,
    normalize: bool,
    out: Any,
) -> None:
    """Elects by mass and adds up, all in registers: loops over tuples are unrolled."""
    for j in range(len(out)):
        total = _ZERO
        for i in range(len(votes)):
            total += shares[i * _FLOATS + j] * votes[i]
        sign = (_ONE if total > 0 else _ZERO) - (_ONE if total < 0 else _ZERO)
        total, mass = _ZERO, _ZERO
        for i in range(len(votes)):
            v = shares[i * _FLOATS + j] * votes[i]
            agrees = _ONE if v * sign > 0 else _ZERO
            total = _fma(later[i] * agrees, v, total)
            mass += masses[i] * agrees
        if normalize:
            out[j] = base[j] + (scale * total) / (mass if mass > _TINY else _TINY)
        else:
            out[j] = _fma(scale, total, base[j])


@_part
def _divide(base: Any, total: Any, masses: Any, scale: float, out: Any) -> None:
    for j in range(len(out)):
        mass = masses[j]
        out[j] = base[j] + (scale * total[j]) / (mass if mass > _TINY else _TINY)


@_part
def _select(
    how: int, x: int, base: int, out: int, n: int, at: int, numbers: int, places: int, room: int
) -> None:
    """Writes what is kept of n entries of a row's x minus base, from `at` on.

    All arrays are addresses: handing over arrays would take as long as the work.
    """
    number, place = _view(numbers, 4), carray(_longs(places), 4)
    if how == LARGEST:
        _cut(x, base, out, n, at, place[0], number[0], number[1])
        return
    kept, values, centre = _view(out, n), _view(x, n), _view(base, n)
    if how == MASK:
        _mask(values, centre, _view(place[0] + 4 * at, n), kept)
    elif how == DRAWN:
        _draw(values, centre, _view(place[0] + 4 * at, n), number[0], kept)
    elif how == PRUNED:
        ranks = _room(room, 2, n)
        _convert(place[3], place[2], at, ranks)
        _prune(values, centre, _view(place[0] + 4 * at, n), ranks, number[0], number[1], kept)
        if number[2] != 0:
            _divide_by(kept, ranks)
    elif how == BAND:
        _cut(x, base, room + 2 * _STRIDE, n, at, place[1], number[2], number[3])
        _cut(x, base, out, n, at, place[0], number[0], number[1])
        _without(kept, _room(room, 2, n))
    else:
        _subtract(values, centre, kept)


@_part
def _combine(
    out: int,
    n: int,
    at: int,
    addresses: Any,
    dtypes: Any,
    coefficients: Any,
    rest: float,
    room: int,
) -> None:
    """Writes rest base + sum_i c_i x_i; terms of coefficient 0 are not read."""
    started = rest != 0 or not coefficients.any()
    if started:
        _term(dtypes[0], addresses[0], at, n, rest, False, room, out)
    for i in range(len(coefficients)):
        if coefficients[i] != 0:
            _term(dtypes[i + 1], addresses[i + 1], at, n, coefficients[i], started, room, out)
            started = True


@_part
def _term(
    dtype: int, address: int, at: int, n: int, factor: float, started: bool, room: int, out: int
) -> None:
    """Writes factor times entries to the address `out`, or adds it to what is there."""
    total = _view(out, n)
    if dtype == BFLOAT:  # the usual one, converted on the way
        words = carray(_words(address + 2 * at), n)
        if started:
            _add_scaled_words(words, factor, total)
        else:
            _multiply_words(words, factor, total)
    elif started:
        _add_scaled(_entries(dtype, address, at, n, room), factor, total)
    else:
        _multiply(_entries(dtype, address, at, n, room), factor, total)


@_part
def _merge_many(
    room: int,
    n: int,
    coefficients: Any,
    later: Any,
    masses: Any,
    base: Any,
    scale: float,
    by_count: bool,
    normalize: bool,
    out: Any,
) -> None:
    """Elects and adds up, row after row: any number of rows, and elections by their count."""
    spare, sums, sign = _room(room, 1, n), _room(room, 3, n), _room(room, 4, n)
    divisor, rows = _room(room, 5, n), len(coefficients)
    _fill(sums, _ZERO)
    for i in range(rows):
        _scale_and_add(_room(room, _SHARES + i, n), coefficients[i], sums)
    _sign(sums, sign)
    if by_count:
        _fill(spare, _ZERO)
        for i in range(rows):
            _add_signs(_room(room, _SHARES + i, n), spare)
        _decide(spare, sign)
    _fill(sums, _ZERO)
    _fill(divisor, _ZERO)
    for i in range(rows):
        _agree(_room(room, _SHARES + i, n), sign, later[i], masses[i], sums, divisor)
    if normalize:
        _divide(base, sums, divisor, scale, out)
    else:
        _copy(base, out)
        _add_scaled(sums, scale, out)


@_part
def _merge(
    room: int,
    n: int,
    coefficients: Any,
    later: Any,
    masses: Any,
    base: Any,
    scale: float,
    by_count: bool,
    normalize: bool,
    out: Any,
) -> None:
    """Merges what agrees. How many rows there are must be known where loops are unrolled."""
    c, w, m, rows = coefficients, later, masses, len(coefficients)
    shares = _room(room, _SHARES, rows * _FLOATS)
    if by_count or rows < 2 or rows > 5:
        _merge_many(room, n, c, w, m, base, scale, by_count, normalize, out)
    elif rows == 2:
        _merge_few(shares, base, _two(c), _two(w), _two(m), scale, normalize, out)
    elif rows == 3:
        _merge_few(shares, base, _three(c), _three(w), _three(m), scale, normalize, out)
    elif rows == 4:
        _merge_few(shares, base, _four(c), _four(w), _four(m), scale, normalize, out)
    else:
        _merge_few(shares, base, _five(c), _five(w), _five(m), scale, normalize, out)


@_part
def _two(x: Any) -> Any:
    return x[0], x[1]


@_part
def _three(x: Any) -> Any:
    return x[0], x[1], x[2]


@_part
def _four(x: Any) -> Any:
    return x[0], x[1], x[2], x[3]


@_part
def _five(x: Any) -> Any:
    return x[0], x[1], x[2], x[3], x[4]


@_cached
def follow(
    target: int,
    start: int,
    count: int,
    addresses: Any,
    dtypes: Any,
    whole: Any,
    how: Any,
    numbers: Any,
    places: Any,
    kind: int,
    coefficients: Any,
    later: Any,
    masses: Any,
    rest: float,
    scale: float,
    by_count: bool,
    normalize: bool,
    memory: Any,
) -> None:
    """Writes entries `start` to `start + count` as float32 to the address `target`.

    Args:
        target: of `count` numbers.
        start: first entry.
        count: how many.
        addresses: of base and rows.
        dtypes: of what lies there.
        whole: ``(rows,)``, whether a row is the expert's own tensor.
        how: ``(rows,)``, how entries are selected.
        numbers: ``(rows, 4)``, see `merging.rules.loops`.
        places: ``(rows, 4)``, likewise.
        kind: of the rule; from here on what `merging.rules.compiled_rule.CompiledRule` says.
        coefficients: ``(rows,)``.
        later: ``(rows,)`` or empty.
        masses: ``(rows,)`` or empty.
        rest: one number.
        scale: one number.
        by_count: whether most rows decide.
        normalize: whether to divide.
        memory: `workspace` bytes of zeros, which the caller owns: numba gives an array back after
            its last use by name, and here only its address is used.
    """
    rows = len(coefficients)
    room = memory.ctypes.data
    room += -room % 64
    step = 3 * _BLOCK // 4 if kind == COMBINATION else _BLOCK
    for at in range(start, start + count, step):
        n = min(step, start + count - at)
        place = target + 4 * (at - start)
        if kind == COMBINATION:
            _combine(place, n, at, addresses, dtypes, coefficients, rest, room)
            continue
        out = _view(place, n)
        origin = _place(dtypes[0], addresses[0], at, n, room)
        base = _view(origin, n)
        for i in range(rows):
            share = _room(room, _SHARES + i, n)
            x = _place(dtypes[i + 1], addresses[i + 1], at, n, room + _STRIDE)
            _select(
                how[i],
                x,
                origin if whole[i] else room + _ZEROS * _STRIDE,
                room + (_SHARES + i) * _STRIDE,
                n,
                at,
                numbers.ctypes.data + 16 * i,
                places.ctypes.data + 32 * i,
                room,
            )
            if kind == SUM and i:
                _add_scaled(share, coefficients[i], out)
            elif kind == SUM:
                _multiply(share, coefficients[i], out)
        if kind == SUM:
            _add(base, out)
        else:
            _merge(room, n, coefficients, later, masses, base, scale, by_count, normalize, out)
