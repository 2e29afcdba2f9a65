"""The rules: constants fall until they are before a sink, and biases take them back from there.

A rule looks at one record and says what to put in the place of which, or None.
"""

import functools
import math
from dataclasses import replace

import numpy as np

from larq_adambnn.export.folding.records import LINEAR, PASSING, Record

__all__ = ["RULES", "Graph", "rewrite"]


class Graph:
    """A list of records, and where its values come from and go to."""

    def __init__(self, records: list[Record]):
        self.records = records
        self.makers = {value: record for record in records for value in record.outputs}
        self.readers = {value: [] for value in self.makers}
        for record in records:
            for value in record.inputs:
                self.readers[value].append(record)

    def before(self, record: Record, kinds) -> list[Record]:
        """The makers of a record's inputs that are of one of some kinds."""
        makers = [self.makers[value] for value in record.inputs]
        return [maker for maker in makers if maker.kind in kinds]

    def bypass(self, record: Record, value: int) -> dict[Record, list[Record]]:
        """The changes for a record to go, and a value to be read instead of its output."""
        (output,) = record.outputs
        readers = {r: [r.reading(output, value)] for r in self.readers[output]}
        return {record: [], **readers}

    def followed(self, record: Record, constant, new: int = 0) -> list[Record]:
        """A record with a constant after it, which has its output now."""
        between = max(self.makers) + 1 + new
        after = Record("constant", record.name, (between,), record.outputs, bias=constant)
        return [replace(record, outputs=(between,)), after]

    @functools.cached_property
    def sinks(self) -> dict[int, tuple[float, int]]:
        """By value: the first sink that a constant there falls to, and in how many ways."""
        sinks = dict.fromkeys(self.makers, (math.inf, 0))
        for index, record in reversed([*enumerate(self.records)]):
            if record.kind in LINEAR and not record.sink:
                continue
            first, ways = (index, 1) if record.sink else sinks[record.outputs[0]]
            for value in record.inputs:
                known, others = sinks[value]
                if first <= known:
                    sinks[value] = (first, ways + others * (first == known))
        return sinks


def drop(record: Record, graph: Graph):
    """A constant of zeros, or that nothing reads, vanishes."""
    if record.kind == "constant" and not (record.bias.any() and graph.readers[record.outputs[0]]):
        return graph.bypass(record, record.inputs[0])
    return None


def merge(record: Record, graph: Graph):
    """Of two constants in a row the second adds both."""
    if record.kind == "constant":
        for first in graph.before(record, ["constant"]):
            return {record: [replace(record, inputs=first.inputs, bias=first.bias + record.bias)]}
    return None


def share(record: Record, graph: Graph):
    """Equal constants that are added to one value are one."""
    if record.kind == "constant":
        for first in graph.readers[record.inputs[0]]:
            if first is record:
                break
            if first.kind == "constant" and np.array_equal(first.bias, record.bias):
                return graph.bypass(record, first.outputs[0])
    return None


def fall(record: Record, graph: Graph):
    """A constant before a sum, a pool or a concatenation is added after it."""
    if record.kind in PASSING:
        for constant in graph.before(record, ["constant"]):
            (value,), (after,) = constant.inputs, constant.outputs
            moved = record.moved(after, constant.bias)
            return {record: graph.followed(record.reading(after, value), moved)}
    return None


def fall_in(record: Record, graph: Graph):
    """A constant before a batch norm, a dense layer or an open convolution is in its bias."""
    if record.kind in LINEAR and not record.sink:
        for constant in graph.before(record, ["constant"]):
            (value,), (after,) = constant.inputs, constant.outputs
            bias = record.bias + record.moved(after, constant.bias)
            return {record: [replace(record.reading(after, value), bias=bias)]}
    return None


def fuse(record: Record, graph: Graph):
    """An affine is part of what is linear before it, if nothing else reads that."""
    if record.kind == "affine":
        for linear in graph.before(record, LINEAR):
            if len(graph.readers[linear.outputs[0]]) == 1:
                scale, bias = record.scale * linear.scale, record.scale * linear.bias + record.bias
                fused = replace(linear, scale=scale, bias=bias, outputs=record.outputs)
                return {linear: [fused], record: []}
    return None


def take_back(record: Record, graph: Graph):
    """A constant before a sink is in the biases of what is linear before it.

    After these comes its negative, which falls: it cancels the constant before this sink, and
    makes up for it before the others.  So that one sink after the other becomes free, this
    has to be the first that it reaches, and in one way only.
    """

    def takers(value, constant) -> dict[Record, np.ndarray] | None:
        """What to add to which biases to add a constant to a value."""
        maker = graph.makers[value]
        if not constant.any():
            return {}
        if maker.kind in LINEAR and graph.sinks[value] == (graph.records.index(record), 1):
            return {maker: constant}
        if maker.kind == "concatenation":
            parts = np.split(constant, np.cumsum(maker.widths)[:-1])
            found = [takers(*pair) for pair in zip(maker.inputs, parts, strict=True)]
            return None if None in found else functools.reduce(dict.__or__, found)
        if maker.kind in PASSING:
            found = (takers(value, constant) for value in maker.inputs)
            return next((some for some in found if some is not None), None)
        return None

    for constant in graph.before(record, ["constant"]) if record.sink else ():
        found = takers(constant.inputs[0], constant.bias)
        if found and np.isfinite(constant.bias).all():  # nothing cancels the others
            return {
                linear: graph.followed(replace(linear, bias=linear.bias + added), -added, new)
                for new, (linear, added) in enumerate(found.items())
            }
    return None


# In their order: constants have fallen before one is taken back
RULES = (drop, merge, share, fall, fall_in, fuse, take_back)


def rewrite(records: list[Record], rules=RULES) -> list[Record]:
    """Applies the first rule that applies to a record, again and again, until none does.

    That ends.  A step of `take_back` leaves nothing to add before one sink, and changes only
    what is added before later ones; no other rule changes what is added before any, so these
    steps are limited.  Between them every step leaves a constant with a shorter way down, or
    a record less.
    """
    while True:
        graph = Graph(records)
        found = (rule(record, graph) for rule in rules for record in records)
        changes = next(filter(None, found), None)
        if changes is None:
            return records
        records = [new for record in records for new in changes.get(record, [record])]
