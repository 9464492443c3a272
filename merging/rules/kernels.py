"""The compiled loops behind `loops.py`: what a rule does with one block after the other.

Numba compiles `run_rule` at its first call and keeps the code on disk. All that it reads is in
this file: numba notices a change of a function's own file, and of no other. Tensors are passed as
addresses: base and experts of any number and dtype are then one compiled function, with one set
of types, so that processes that compile it at the same time write the same.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from merging.jit import cached, inner

# The numbers of the enums in `merging.rules.compiled_rule`.
FLOAT, BFLOAT, HALF, SHORT, INTEGER = range(5)
COMBINATION, SUM, CONSENSUS = range(3)
ALL, LARGEST, BAND, MASKED, DRAWN, PRUNED = range(6)

_BLOCK = 256
"""Entries worked on at a time. With 8 experts 16 kB: what is read beside it stays cached, too.

A combination keeps no buffers and is fastest in blocks of three quarters of that length.
Stores past the caches, which read nothing first, were tried and are three times as slow here.
"""

_STRIDE = 4 * _BLOCK + 64
"""Bytes from one buffer to the next: not a power of 2, or all compete for the same cache lines."""

_FLOATS = _STRIDE // 4

_BASE, _EXPERT, _RANKS, _TOTAL, _SIGN, _NORMALIZER, _ZEROS, _DELTAS = range(8)
"""Buffers of the scratch memory; from `_DELTAS` on one per expert."""

_FINEST = np.float32(2.0**-24)
_TINY = np.finfo(np.float32).tiny
_ZERO, _ONE = np.float32(0), np.float32(1)


def scratch_bytes(experts: int) -> int:
    """Returns how many bytes `run_rule` computes in."""
    return (_DELTAS + experts + 1) * _STRIDE


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


@inner
def _view(address: int, n: int) -> Any:
    return carray(_floats(address), n)


@inner
def _buffer(scratch: int, number: int, n: int) -> Any:
    return _view(scratch + number * _STRIDE, n)


@inner
def _convert(dtype: int, address: int, at: int, out: Any) -> None:
    # out = float32(x)
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


@inner
def _as_floats(dtype: int, address: int, at: int, n: int, buffer: int) -> int:
    """The address of entries as float32: their own, or the buffer's that they are converted in."""
    if dtype == FLOAT:
        return address + 4 * at
    _convert(dtype, address, at, _view(buffer, n))
    return buffer


# Loops with what they read and write as separate arguments: that is what the compiler turns into
# vector instructions. Where something is changed in place it is one argument.


@inner
def _fill(x: Any, value: float) -> None:
    # x = value
    for j in range(len(x)):
        x[j] = value


@inner
def _copy(x: Any, out: Any) -> None:
    # out = x
    for j in range(len(x)):
        out[j] = x[j]


@inner
def _multiply(x: Any, factor: float, out: Any) -> None:
    # out = factor x
    for j in range(len(x)):
        out[j] = x[j] * factor


@inner
def _subtract(x: Any, base: Any, out: Any) -> None:
    # out = x - base
    for j in range(len(x)):
        out[j] = x[j] - base[j]


@inner
def _add(x: Any, total: Any) -> None:
    # total <- total + x
    for j in range(len(x)):
        total[j] += x[j]


@inner
def _add_scaled(x: Any, factor: float, total: Any) -> None:
    # total <- total + factor x, rounded once
    for j in range(len(x)):
        total[j] = _fma(x[j], factor, total[j])


@inner
def _multiply_words(words: Any, factor: float, out: Any) -> None:
    # out = factor x, x in bfloat16
    for j in range(len(words)):
        out[j] = _of_bfloat(words[j]) * factor


@inner
def _add_scaled_words(words: Any, factor: float, total: Any) -> None:
    # total <- total + factor x, rounded once, x in bfloat16
    for j in range(len(words)):
        total[j] = _fma(_of_bfloat(words[j]), factor, total[j])


@inner
def _scale_and_add(x: Any, factor: float, total: Any) -> None:
    # x <- factor x;  total <- total + x
    for j in range(len(x)):
        scaled = x[j] * factor
        x[j] = scaled
        total[j] += scaled


@inner
def _keep_largest(x: Any, base: Any, below: float, out: Any) -> None:
    # out = x - base where |x - base| > below, else 0
    for j in range(len(x)):
        v = x[j] - base[j]
        out[j] = _ZERO if (v >= -below) & (v <= below) else v


@inner
def _keep_between(x: Any, base: Any, below: float, highest: float, out: Any) -> None:
    # out = x - base where below < |x - base| <= highest, else 0
    for j in range(len(x)):
        v = x[j] - base[j]
        drops = ((v >= -below) & (v <= below)) | (v > highest) | (v < -highest)
        out[j] = _ZERO if drops else v


@inner
def _keep_masked(x: Any, base: Any, mask: Any, out: Any) -> None:
    # out = mask (x - base)
    for j in range(len(x)):
        out[j] = (x[j] - base[j]) * mask[j]


@inner
def _keep_drawn(x: Any, base: Any, draws: Any, density: float, out: Any) -> None:
    # out = x - base where draws < density, else 0
    for j in range(len(x)):
        v = x[j] - base[j]
        out[j] = _ZERO if (draws[j] <= -_ONE) | (draws[j] >= density) else v


@inner
def _keep_pruned(
    x: Any, base: Any, draws: Any, ranks: Any, step: float, lowest: float, out: Any
) -> None:
    # p = lowest + step rank;  out = x - base where draws < p, else 0;  ranks <- max(p, 2^-24)
    for j in range(len(x)):
        p = ranks[j] * step + lowest
        ranks[j] = max(p, _FINEST)
        out[j] = (x[j] - base[j]) * (_ONE if draws[j] < p else _ZERO)


@inner
def _divide_by(x: Any, divisor: Any) -> None:
    # x <- x / divisor
    for j in range(len(x)):
        x[j] /= divisor[j]


@inner
def _sign(x: Any, out: Any) -> None:
    # out = sign(x)
    for j in range(len(x)):
        v = x[j]
        out[j] = (_ONE if v > 0 else _ZERO) - (_ONE if v < 0 else _ZERO)


@inner
def _add_signs(x: Any, total: Any) -> None:
    # total <- total + sign(x)
    for j in range(len(x)):
        v = x[j]
        total[j] += (_ONE if v > 0 else _ZERO) - (_ONE if v < 0 else _ZERO)


@inner
def _elect_by_count(count: Any, sign: Any) -> None:
    # sign <- sign(count) where count is not 0, else as it was (by mass)
    for j in range(len(count)):
        v = count[j]
        elected = (_ONE if v > 0 else _ZERO) - (_ONE if v < 0 else _ZERO)
        sign[j] = sign[j] if v == 0 else elected


@inner
def _add_agreeing(
    x: Any, sign: Any, weight: float, normalizer: float, total: Any, normalizers: Any
) -> None:
    # a = [x sign > 0];  total <- total + weight a x;  normalizers <- normalizers + normalizer a
    for j in range(len(x)):
        v = x[j]
        agrees = _ONE if v * sign[j] > 0 else _ZERO
        total[j] = _fma(weight * agrees, v, total[j])
        normalizers[j] += normalizer * agrees


@inner
def _divide(base: Any, total: Any, normalizers: Any, scale: float, out: Any) -> None:
    # out = base + scale total / normalizers, where nothing agrees: base
    for j in range(len(out)):
        divisor = normalizers[j]
        out[j] = base[j] + (scale * total[j]) / (divisor if divisor > _TINY else _TINY)


@inner
def _merge_few(
    deltas: Any, base: Any, factors: Any, scale: float, normalize: bool, out: Any
) -> None:
    """Elects by mass and adds up, all in registers: loops over tuples are unrolled."""
    votes, weights, normalizers = factors
    for j in range(len(out)):
        total = _ZERO
        for i in range(len(votes)):
            total += deltas[i * _FLOATS + j] * votes[i]
        # s = sign(sum_i w_i d_i)
        sign = (_ONE if total > 0 else _ZERO) - (_ONE if total < 0 else _ZERO)
        total, divisor = _ZERO, _ZERO
        for i in range(len(votes)):
            v = deltas[i * _FLOATS + j] * votes[i]
            agrees = _ONE if v * sign > 0 else _ZERO
            total = _fma(weights[i] * agrees, v, total)
            divisor += normalizers[i] * agrees
        # out = base + scale sum_{i: sign(w_i d_i) = s} w_i d_i, divided by sum |w_i| over them
        if normalize:
            out[j] = base[j] + (scale * total) / (divisor if divisor > _TINY else _TINY)
        else:
            out[j] = _fma(scale, total, base[j])


@inner
def _merge_many(
    scratch: int, factors: Any, base: Any, scale: float, by_count: bool, normalize: bool, out: Any
) -> None:
    """Does what `_merge_few` does, expert after expert: of any number, and by count as well."""
    votes, weights, normalizers = factors
    experts, n = len(votes), len(out)
    count, total = _buffer(scratch, _EXPERT, n), _buffer(scratch, _TOTAL, n)
    sign, divisor = _buffer(scratch, _SIGN, n), _buffer(scratch, _NORMALIZER, n)
    # elect: s = sign(sum_i w_i d_i), or the sign that more experts have
    _fill(total, _ZERO)
    for i in range(experts):
        _scale_and_add(_buffer(scratch, _DELTAS + i, n), votes[i], total)
    _sign(total, sign)
    if by_count:
        _fill(count, _ZERO)
        for i in range(experts):
            _add_signs(_buffer(scratch, _DELTAS + i, n), count)
        _elect_by_count(count, sign)
    # disjoint mean: base + scale sum_{i: sign(w_i d_i) = s} w_i d_i / sum |w_i|
    _fill(total, _ZERO)
    _fill(divisor, _ZERO)
    for i in range(experts):
        delta = _buffer(scratch, _DELTAS + i, n)
        _add_agreeing(delta, sign, weights[i], normalizers[i], total, divisor)
    if normalize:
        _divide(base, total, divisor, scale, out)
    else:
        _copy(base, out)
        _add_scaled(total, scale, out)


@inner
def _merge(
    scratch: int, factors: Any, base: Any, scale: float, by_count: bool, normalize: bool, out: Any
) -> None:
    """Merges what agrees. How many experts there are must be known where loops are unrolled."""
    c, w, m = factors
    experts = len(c)
    deltas = _buffer(scratch, _DELTAS, experts * _FLOATS)
    if by_count or experts < 2 or experts > 5:
        _merge_many(scratch, factors, base, scale, by_count, normalize, out)
    elif experts == 2:
        _merge_few(deltas, base, (_two(c), _two(w), _two(m)), scale, normalize, out)
    elif experts == 3:
        _merge_few(deltas, base, (_three(c), _three(w), _three(m)), scale, normalize, out)
    elif experts == 4:
        _merge_few(deltas, base, (_four(c), _four(w), _four(m)), scale, normalize, out)
    else:
        _merge_few(deltas, base, (_five(c), _five(w), _five(m)), scale, normalize, out)


@inner
def _two(x: Any) -> Any:
    return x[0], x[1]


@inner
def _three(x: Any) -> Any:
    return x[0], x[1], x[2]


@inner
def _four(x: Any) -> Any:
    return x[0], x[1], x[2], x[3]


@inner
def _five(x: Any) -> Any:
    return x[0], x[1], x[2], x[3], x[4]


@inner
def _sparsify(
    selection: int, x: int, base: int, out: int, n: int, at: int, columns: Any, scratch: int
) -> None:
    """Writes what is kept of n entries of x minus base, from `at` on; see `run_rule`.

    All arrays are addresses: handing over arrays would take as long as the work.
    """
    number, integer = _view(columns[0], 4), carray(_longs(columns[1]), 4)
    kept, values, centre = _view(out, n), _view(x, n), _view(base, n)
    if selection == LARGEST:
        _keep_largest(values, centre, number[0], kept)
    elif selection == BAND:
        _keep_between(values, centre, number[0], number[1], kept)
    elif selection == MASKED:
        _keep_masked(values, centre, _view(integer[0] + 4 * at, n), kept)
    elif selection == DRAWN:
        _keep_drawn(values, centre, _view(integer[0] + 4 * at, n), number[0], kept)
    elif selection == PRUNED:
        draws, ranks = _view(integer[0] + 4 * at, n), _buffer(scratch, _RANKS, n)
        _convert(integer[2], integer[1], at, ranks)
        _keep_pruned(values, centre, draws, ranks, number[0], number[1], kept)
        if number[2] != 0:
            _divide_by(kept, ranks)
    else:
        _subtract(values, centre, kept)


@inner
def _combine(
    out: int,
    n: int,
    at: int,
    addresses: Any,
    dtypes: Any,
    coefficients: Any,
    base_coefficient: float,
    scratch: int,
) -> None:
    """Writes c_0 base + sum_i c_i x_i; terms of coefficient 0 are not read."""
    started = base_coefficient != 0 or not coefficients.any()
    if started:
        _term(dtypes[0], addresses[0], at, n, base_coefficient, False, scratch, out)
    for i in range(len(coefficients)):
        if coefficients[i] != 0:
            _term(dtypes[i + 1], addresses[i + 1], at, n, coefficients[i], started, scratch, out)
            started = True


@inner
def _term(
    dtype: int, address: int, at: int, n: int, factor: float, started: bool, buffer: int, out: int
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
        _add_scaled(_view(_as_floats(dtype, address, at, n, buffer), n), factor, total)
    else:
        _multiply(_view(_as_floats(dtype, address, at, n, buffer), n), factor, total)


@inner
def _magnitudes(x: Any, less: Any, bits: Any, out: Any) -> None:
    # |x - less| as a whole number, which rises with it; `bits` are those of `out`
    for j in range(len(x)):
        out[j] = x[j] - less[j]
    for j in range(len(x)):
        bits[j] &= 0x7FFFFFFF


@cached
def count_magnitudes(
    stored: int,
    dtype: int,
    base: int,
    base_dtype: int,
    start: int,
    end: int,
    leading: int,
    counts: Any,
    memory: Any,
) -> None:
    """Counts the magnitudes of entries `start` to `end` of a delta by the bits of float32.

    Args:
        stored: address of the expert's entries.
        dtype: an `EntryType`.
        base: address of the base's entries; 0: none, `stored` is the delta.
        base_dtype: an `EntryType`.
        leading: -1 counts the leading 15 bits behind the sign; another number, of the entries
            that have these, the other 16.
        counts: ``(2**16,)`` int64, to which is added.
        memory: as for `run_rule`.
    """
    scratch = memory.ctypes.data
    scratch += -scratch % 64
    for at in range(start, end, _BLOCK):
        n = min(_BLOCK, end - at)
        x = _as_floats(dtype, stored, at, n, scratch + _EXPERT * _STRIDE)
        less = scratch + _ZEROS * _STRIDE
        if base:
            less = _as_floats(base_dtype, base, at, n, scratch + _BASE * _STRIDE)
        bits = carray(_integers(scratch + _DELTAS * _STRIDE), n)
        _magnitudes(_view(x, n), _view(less, n), bits, _buffer(scratch, _DELTAS, n))
        if leading < 0:
            for j in range(n):
                counts[bits[j] >> 16] += 1
        else:
            for j in range(n):
                if bits[j] >> 16 == leading:
                    counts[bits[j] & 0xFFFF] += 1


@cached
def run_rule(
    target: int,
    start: int,
    count: int,
    addresses: Any,
    dtypes: Any,
    is_full_checkpoint: Any,
    selections: Any,
    numbers: Any,
    integers: Any,
    kind: int,
    coefficients: Any,
    post_election_weights: Any,
    normalizers: Any,
    base_coefficient: float,
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
        addresses: ``(1 + experts,)``, of the base's entries and the experts'.
        dtypes: ``(1 + experts,)``, an `EntryType` each.
        is_full_checkpoint: ``(experts,)``: whether the base is still to be subtracted.
        selections: ``(experts,)``, a `SelectionKind` each.
        numbers: ``(experts, 4)`` float32; see below.
        integers: ``(experts, 4)`` int64; see below.
        kind: a `RuleKind`; from here on as in `merging.rules.compiled_rule.CompiledRule`.
        coefficients: ``(experts,)``.
        post_election_weights: ``(experts,)``, empty but for a consensus; so are `normalizers`.
        memory: `scratch_bytes` of zeros, which the caller owns: numba gives an array back after
            its last use by name, and here only its address is used.

    What the columns mean, by selection (`packed` of the classes in `merging.rules.sparsify`)::

        selection  numbers                            integers
        ALL
        LARGEST    next number below the threshold
        BAND       next number below it, the highest
        MASKED                                        address of the mask
        DRAWN      density                            address of the draws
        PRUNED     step, lowest, 1 to rescale         of draws, of ranks, ranks' dtype
    """
    experts = len(coefficients)
    scratch = memory.ctypes.data
    scratch += -scratch % 64
    step = 3 * _BLOCK // 4 if kind == COMBINATION else _BLOCK
    for at in range(start, start + count, step):
        n = min(step, start + count - at)
        place = target + 4 * (at - start)
        if kind == COMBINATION:
            _combine(place, n, at, addresses, dtypes, coefficients, base_coefficient, scratch)
            continue
        out = _view(place, n)
        origin = _as_floats(dtypes[0], addresses[0], at, n, scratch + _BASE * _STRIDE)
        base = _view(origin, n)
        for i in range(experts):
            # trim: d_i = m_i (x_i - base)    (Yadav et al., arXiv 2306.01708, Alg. 1, step 1)
            delta = _buffer(scratch, _DELTAS + i, n)
            x = _as_floats(dtypes[i + 1], addresses[i + 1], at, n, scratch + _EXPERT * _STRIDE)
            less = origin if is_full_checkpoint[i] else scratch + _ZEROS * _STRIDE
            kept = scratch + (_DELTAS + i) * _STRIDE
            columns = numbers.ctypes.data + 16 * i, integers.ctypes.data + 32 * i
            _sparsify(selections[i], x, less, kept, n, at, columns, scratch)
            # sum: out = base + sum_i c_i d_i
            if kind == SUM and i:
                _add_scaled(delta, coefficients[i], out)
            elif kind == SUM:
                _multiply(delta, coefficients[i], out)
        if kind == SUM:
            _add(base, out)
        else:  # elect, and take the disjoint mean (Alg. 1, steps 2 and 3)
            factors = coefficients, post_election_weights, normalizers
            _merge(scratch, factors, base, scale, by_count, normalize, out)
