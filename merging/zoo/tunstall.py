"""Bytes few of which are frequent, as codes of a byte each for strings of them: Tunstall's code.

What differs little from a relative has high bytes that are mostly 0, with an entropy of a bit or
two. zstandard finds repetitions in them that are chance, which costs space and time, and its
Huffman codes are a bit at least. Here the `_LITERALS` most frequent bytes, and an escape that
stands for all others, form a tree of strings: its most probable leaf is continued by every symbol
until there are 256 leaves. A code is a leaf; reading one is one look into a table, and no code
waits for the one before it to be understood.

Stored are the frequent bytes, the shares that the tree follows from (uint16, little endian, the
escape's last), the number of escaped bytes (uint32), these bytes, and the codes. Numba compiles
the loops at their first call and keeps the code on disk; arrays that are only read are passed as
addresses, so that it does not matter whether they could be written.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from merging.jit import cached, inner

_LITERALS = 7
_SYMBOLS = _LITERALS + 1
_ESCAPE = _LITERALS
_CODES = 256
_LONGEST = 16
"""Bytes of a string at most: two stores, whatever its length is."""

_HEADER = _LITERALS + 2 * _SYMBOLS + 4
_COUNTED = 2**13
"""About as many bytes, evenly spaced, are counted for the shares."""

Bytes = NDArray[np.uint8]


def compress(data: bytes | memoryview) -> bytes:
    """Returns the bytes, one at least, in the form above; longer where many are frequent."""
    plane = np.frombuffer(data, np.uint8)
    literals, shares = np.zeros(_LITERALS, np.uint8), np.zeros(_SYMBOLS, np.uint64)
    escaped, codes = np.empty(len(plane) + 1, np.uint8), np.empty(len(plane) + 1, np.uint8)
    outside, n = _write(plane.ctypes.data, len(plane), literals, shares, escaped, codes)
    count = np.array([outside], "<u4")
    parts = literals, shares.astype("<u2"), count, escaped[:outside], codes[:n]
    return b"".join(part.tobytes() for part in parts)


def decompress(stored: Bytes, n: int) -> Bytes:
    """Returns the n bytes that were compressed: ``(n,)``.

    Raises:
        ValueError: they are not what `compress` returns for any n bytes.
    """
    if len(stored) < _HEADER:
        raise ValueError(f"a Tunstall code of {len(stored)} bytes")
    header = stored[:_HEADER].tobytes()
    shares = np.frombuffer(header, "<u2", _SYMBOLS, _LITERALS).astype(np.uint64)
    outside = int(np.frombuffer(header, "<u4", 1, _HEADER - 4)[0])
    codes = len(stored) - _HEADER - outside
    if codes < 1 or not shares.any():
        raise ValueError(f"a Tunstall code of {len(stored)} bytes with {outside} escaped ones")
    out = np.empty(n + 2 * _LONGEST, np.uint8)
    address = stored.ctypes.data + _HEADER
    if not _read(address, outside, codes, stored[:_LITERALS].copy(), shares, out, n):
        raise ValueError(f"a Tunstall code of another length than {n} bytes")
    return out[:n]


def _loading(kind: types.Type, bits: int) -> Any:
    @intrinsic
    def load(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            return builder.load(pointer, align=1)

        return kind(types.int64), generate

    return load


_byte, _word = _loading(types.uint8, 8), _loading(types.uint64, 64)


@intrinsic
def _store(context: Any, address: Any, word: Any) -> Any:
    """Stores 8 bytes at an address of any alignment."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.store(arguments[1], pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), generate


@inner
def _count(address: int, n: int, literals: Any, shares: Any) -> None:
    """Writes the most frequent bytes, and their shares and the rest's of 2^16 in all."""
    counts, step, left = np.zeros(256, np.int64), max(1, n // _COUNTED), 0
    for j in range(0, n, step):
        counts[_byte(address + j)] += 1
        left += 1
    total = left
    for symbol in range(_LITERALS):
        literal = counts.argmax()
        literals[symbol], shares[symbol] = literal, counts[literal] * (2**16 - _SYMBOLS) // total
        left -= counts[literal]
        counts[literal] = 0
    shares[_ESCAPE] = left * (2**16 - _SYMBOLS) // total + 1  # what was not counted may occur


@inner
def _tree(shares: Any) -> Any:
    """Grows the tree: every node's parent, symbol, depth and children, and how many there are."""
    most = 2 * _CODES
    parents, symbols = np.zeros(most, np.int64), np.zeros(most, np.int64)
    depths, children = np.zeros(most, np.int64), np.zeros((most, _SYMBOLS), np.int64)
    weights = np.zeros(most, np.uint64)
    weights[0] = np.uint64(2) ** np.uint64(32)
    used = 0
    for symbol in range(_SYMBOLS):
        used += shares[symbol] > 0
    nodes, leaves, grown = 1, 1, 0
    while leaves - 1 + used <= _CODES and grown >= 0:
        for symbol in range(_SYMBOLS):
            if shares[symbol] > 0:
                parents[nodes], symbols[nodes], depths[nodes] = grown, symbol, depths[grown] + 1
                grows = symbol != _ESCAPE and depths[nodes] < _LONGEST
                # the weight of a leaf that may be continued is above 0
                weight = (weights[grown] * shares[symbol]) >> np.uint64(16)
                weights[nodes] = weight + np.uint64(1) if grows else np.uint64(0)
                children[grown, symbol] = nodes
                nodes += 1
        weights[grown] = 0
        leaves += used - 1
        grown = -1
        heaviest = np.uint64(0)
        for node in range(nodes):
            if weights[node] > heaviest:
                grown, heaviest = node, weights[node]
    return parents, symbols, depths, children, nodes


@inner
def _leaf_codes(children: Any, nodes: int) -> Any:
    """Numbers the leaves; inner nodes are -1."""
    codes, count = np.full(nodes, -1, np.int64), 0
    for node in range(nodes):
        if not children[node].any():
            codes[node] = count
            count += 1
    return codes


@cached
def _write(address: int, n: int, literals: Any, shares: Any, escaped: Any, codes: Any) -> Any:
    """Writes escaped bytes and codes of n bytes; returns how many of each.

    Args:
        address: of the bytes.
        literals: written as well, as are the shares.
        escaped: ``(n + 1,)``, as are the codes.
    """
    _count(address, n, literals, shares)
    _, _, _, children, nodes = _tree(shares)
    numbers = _leaf_codes(children, nodes)
    # one step for a state and a symbol: bits 0-15 the next state, 16-23 a code, 24 whether it ends
    steps = np.zeros((nodes, _SYMBOLS), np.uint32)
    for node in range(nodes):
        for symbol in range(_SYMBOLS):
            child = children[node, symbol]
            ends = numbers[child] >= 0
            steps[node, symbol] = (1 << 24) | (numbers[child] << 16) if ends else child
    symbol_of = np.full(256, _ESCAPE, np.uint8)
    for symbol in range(_LITERALS):
        if shares[symbol] > 0:
            symbol_of[literals[symbol]] = symbol
    state, outside, count = np.uint32(0), 0, 0
    for j in range(n):
        value = _byte(address + j)
        symbol = symbol_of[value]
        escaped[outside] = value
        outside += symbol == _ESCAPE
        step = steps[state, symbol]
        codes[count] = (step >> 16) & 255
        count += step >> 24
        state = step & 0xFFFF
    if state != 0:  # the rest of the last string is not read
        while numbers[state] < 0:
            state = children[state, 0]
        codes[count] = numbers[state]
        count += 1
    return outside, count


@cached
def _read(
    address: int, outside: int, count: int, literals: Any, shares: Any, out: Any, n: int
) -> bool:
    """Writes n bytes; returns whether that took all codes and all escaped bytes.

    Args:
        address: of the escaped bytes; the codes, one at least, are behind them.
        out: ``(n + 2 * _LONGEST,)``.
    """
    parents, symbols, depths, children, nodes = _tree(shares)
    numbers = _leaf_codes(children, nodes)
    strings = np.zeros((_CODES, _LONGEST), np.uint8)
    lengths, escapes = np.zeros(_CODES, np.int64), np.zeros(_CODES, np.int64)
    for leaf in range(nodes):
        code, node = numbers[leaf], leaf
        if code >= 0:
            lengths[code], escapes[code] = depths[leaf], symbols[leaf] == _ESCAPE
            while node != 0:
                if symbols[node] != _ESCAPE:
                    strings[code, depths[node] - 1] = literals[symbols[node]]
                node = parents[node]
    table, target = strings.ctypes.data, out.ctypes.data
    first, taken, at = address + outside, 0, 0
    for i in range(count):
        if at >= n or taken > outside:
            return False
        code = np.int64(_byte(first + i))
        _store(target + at, _word(table + _LONGEST * code))
        _store(target + at + 8, _word(table + _LONGEST * code + 8))
        at += lengths[code]
        # an escape is the last of its string; where there is none the byte goes past the end
        out[at - 1 if escapes[code] else n + 2 * _LONGEST - 1] = _byte(address + taken)
        taken += escapes[code]
    return at >= n and taken == outside
