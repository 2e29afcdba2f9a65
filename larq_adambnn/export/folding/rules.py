"""The rules, each a function from a list of records to a changed one, or to None.

Constants fall past sums, pools and concatenations and into the biases after them, until they
stand before a sink.  From there biases before them take them back, where that is for free.
"""

import dataclasses

import numpy as np

from larq_adambnn.export.folding.records import (
    Affine,
    Concatenation,
    Constant,
    Linear,
    Passing,
    Pool,
    Record,
    Sum,
)

__all__ = [
    "drop_constant",
    "fall",
    "fall_into_bias",
    "merge_affines",
    "merge_constants",
    "rewrite",
    "share_constant",
    "take_back",
]


def rewrite(records: list[Record]) -> list[Record]:
    """Applies the first rule that applies, again and again, until none does.

    That ends.  `take_back` frees one sink of its constant, and changes only what is added
    before later sinks; no other rule changes what is added before any.  So it applies a
    limited number of times, and between them each rule leaves a record less, or a constant
    with a shorter way down.
    """
    while True:
        for rule in _RULES:
            changed = rule(records)
            if changed is not None:
                records = changed
                break
        else:
            return records


def drop_constant(records):
    """A constant of zeros, or that nothing reads, vanishes."""
    readers = _readers(records)
    for constant in _constants(records):
        (before,), (after,) = constant.inputs, constant.outputs
        if not constant.values.any() or after not in readers:
            return [_reading(r, after, before) for r in records if r is not constant]
    return None


def merge_constants(records):
    """Of two constants in a row, the second adds both."""
    makers = _makers(records)
    for constant in _constants(records):
        first = makers[constant.inputs[0]]
        if isinstance(first, Constant):
            values = first.values + constant.values
            both = dataclasses.replace(constant, inputs=first.inputs, values=values)
            return _replaced(records, {constant: [both]})
    return None


def share_constant(records):
    """Equal constants added to one value are one."""
    known = {}
    for constant in _constants(records):
        first = known.setdefault((constant.inputs, constant.values.tobytes()), constant)
        if first is not constant:
            (before,), (after,) = first.outputs, constant.outputs
            return [_reading(r, after, before) for r in records if r is not constant]
    return None


def fall_into_bias(records):
    """A constant before an affine, a dense layer or an open convolution goes into its bias."""
    makers = _makers(records)
    for record in records:
        constant = makers[record.inputs[0]] if record.inputs else None
        if isinstance(constant, Constant) and isinstance(record, Linear) and not record.sink:
            (before,), (after,) = constant.inputs, constant.outputs
            bias = record.bias + record.moved(after, constant.values)
            changed = dataclasses.replace(_reading(record, after, before), bias=bias)
            return _replaced(records, {record: [changed]})
    return None


def fall(records):
    """A constant before a sum, a pool or a concatenation is added after it."""
    makers = _makers(records)
    for record in records:
        for after in record.inputs if isinstance(record, Passing) else ():
            constant = makers[after]
            if isinstance(constant, Constant):
                values = record.moved(after, constant.values)
                changed = _reading(record, after, constant.inputs[0])
                return _replaced(records, {record: _followed(changed, values, records)})
    return None


def merge_affines(records):
    """An affine becomes part of what is linear before it, if nothing else reads that."""
    makers, readers = _makers(records), _readers(records)
    for affine in records:
        if not isinstance(affine, Affine):
            continue
        before = makers[affine.inputs[0]]
        if isinstance(before, Linear) and len(readers[before.outputs[0]]) == 1:
            scale, bias = affine.scale * before.scale, affine.scale * before.bias + affine.bias
            both = dataclasses.replace(before, scale=scale, bias=bias, outputs=affine.outputs)
            return _replaced(records, {before: [both], affine: []})
    return None


def take_back(records):
    """A constant before a sink goes into the biases that it is added to.

    They get it before a negative constant for everything after them, which falls and cancels
    it.  So it must be the first sink after each of them, reached in one way only.
    """
    makers, firsts = _makers(records), _first_sinks(records)
    for index, sink in enumerate(records):
        for place, value in enumerate(sink.inputs if sink.sink else ()):
            constant = makers[value]
            if isinstance(constant, Constant):
                first = ((index, place), 1)
                takers = _takers(constant.inputs[0], constant.values, makers, firsts, first)
                if takers:
                    return _taken(records, takers)
    return None


# The first that applies is applied: constants have fallen all the way before one is taken back
_RULES = (
    drop_constant,
    merge_constants,
    share_constant,
    fall_into_bias,
    fall,
    merge_affines,
    take_back,
)


def _first_sinks(records) -> dict[int, tuple[tuple[int, int], int]]:
    """By value: the first sink that a constant there would reach, and in how many ways.

    A sink is (index of the record, place among its inputs).
    """
    firsts = {}
    for index, record in reversed(list(enumerate(records))):
        for place, value in enumerate(record.inputs):
            if record.sink:
                reached = ((index, place), 1)
            elif isinstance(record, Linear) or record.outputs[0] not in firsts:
                continue
            else:
                reached = firsts[record.outputs[0]]
            sink, ways = firsts.get(value, (reached[0], 0))
            if reached[0] == sink:
                firsts[value] = (sink, ways + reached[1])
            elif reached[0] < sink:
                firsts[value] = reached
    return firsts


def _takers(value, constant, makers, firsts, first) -> list[tuple[Linear, np.ndarray]] | None:
    """Linear records, each with what to add to its bias, to add a constant to a value.

    None if there are none that reach the sink `first` first.
    """
    record = makers[value]
    if not constant.any():
        return []
    if isinstance(record, Linear):
        return [(record, constant)] if firsts[value] == first else None
    if isinstance(record, Pool | Sum):
        for summand in record.inputs:
            found = _takers(summand, constant, makers, firsts, first)
            if found is not None:
                return found
    if isinstance(record, Concatenation):
        parts = np.split(constant, np.cumsum(record.widths)[:-1])
        found = [
            _takers(part, values, makers, firsts, first)
            for part, values in zip(record.inputs, parts, strict=True)
        ]
        return None if None in found else sum(found, [])
    return None


def _taken(records, takers):
    for record, values in takers:
        changed = dataclasses.replace(record, bias=record.bias + values)
        records = _replaced(records, {record: _followed(changed, -values, records)})
    return records


def _followed(record, values, records) -> list[Record]:
    """A record with a constant after it, which has its output now."""
    new = 1 + max(value for r in records for value in r.outputs)
    constant = Constant(record.name, (new,), record.outputs, values)
    return [dataclasses.replace(record, outputs=(new,)), constant]


def _reading(record, old: int, new: int) -> Record:
    """A record that reads one value in the place of another."""
    if old not in record.inputs:
        return record
    inputs = tuple(new if value == old else value for value in record.inputs)
    return dataclasses.replace(record, inputs=inputs)


def _replaced(records, changes: dict[Record, list[Record]]) -> list[Record]:
    return [new for record in records for new in changes.get(record, [record])]


def _constants(records) -> list[Constant]:
    return [record for record in records if isinstance(record, Constant)]


def _makers(records) -> dict[int, Record]:
    return {value: record for record in records for value in record.outputs}


def _readers(records) -> dict[int, list[Record]]:
    readers = {}
    for record in records:
        for value in record.inputs:
            readers.setdefault(value, []).append(record)
    return readers
