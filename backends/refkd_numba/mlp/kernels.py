"""The parts of a training step of a multilayer perceptron, compiled once for all shapes.

A program lists the parts: which operation on which layer. Layers are rows of a table that
says where their arrays lie. Activations and their gradients are kept in panels of PANEL
examples, [panel, feature, example]; what the gradient of a weight is multiplied by also in
panels of PANEL features, [panel, example, feature]. So every product reads the weights as
they lie, once.

Before anything is written, no gradient may be found to be NaN or infinite. They are not there
yet at that time: the update of a row follows its gradient at once, while that is in the
cache. But by Cauchy and Schwarz no entry of dW = dyᵀ x, and no part of its sum, is larger
than ‖dy‖ ‖x‖; where that bound is no number far from the largest, the gradients are computed
first and looked at (:data:`KEEP`).
"""

from __future__ import annotations

import math

import numpy as np

from refkd_numba.compile import compiled, device
from refkd_numba.microkernel import ROWS, tile
from refkd_numba.mlp.draws import draw
from refkd_numba.products import (
    FLOAT,
    NONE,
    ONCE,
    PANEL,
    STEPS,
    address,
    copy_into_panels,
    counts,
    floats,
    panels_for,
    part,
    product,
    transpose,
    transpose_into_panels,
)
from refkd_numba.update import adam, sgd
from refkd_numba.vmath import exp_nonpositive, log

# Operations.
DRAW, PACK, FORWARD, LOSS, BACKWARD, CHECK, UPDATE = range(7)

# Columns of the table of layers: sizes; of dropout, the numbers that an example draws before
# this layer, and the least that keeps; then addresses, 0 for none.
INPUTS, OUTPUTS, IS_HIDDEN, DRAWN_BEFORE, LEAST_KEPT = range(5)
SOURCE, SOURCE_ROWS, TARGET, TARGET_ROWS, GRADIENT = range(5, 10)
"""Panels: of the inputs, both ways, of the outputs, both ways, of the outputs' gradient."""
WEIGHT, BIAS, WEIGHT_KEPT, BIAS_KEPT = 10, 11, 12, 14
"""Parameters, and what the optimiser keeps of each, or for KEEP the gradient.

Columns 13 and 15 are those of the second array that it keeps, where there are two.
"""
LAYER_COLUMNS = 16

# Whether dropout drops, and what it draws.
NOTHING, FLOATS, BITS = range(3)

# Facts: layers' indices, choices, and the address of Adam's count of steps.
CAPACITY, FIRST_LAYER, TEACHER, DISTILS, HAS_ENTROPY, REDUCTION = range(6)
OPTIMIZER, NESTEROV, STEP = range(6, 9)
COUNT_OF_FACTS = 9
BATCHMEAN, MEAN, SUM = range(3)
SGD, ADAM, KEEP = range(3)
"""Optimisers; KEEP stores the gradients and updates nothing."""

# Numbers: of the loss, then of the optimisers.
ON, OFF, TEMPERATURE, HARD_WEIGHT, SOFT_WEIGHT, DECAY, MOMENTUM, BETA1, BETA2, EPS = range(10)
DECOUPLED_DECAY, LR, STEP_SIZE, FLOOR = range(10, 14)
"""The last three belong to one step."""
COUNT_OF_NUMBERS = 14

# Columns of the table of rates, p and 1/(1 − p) of dropout, and then for each thread its part
# of the squared norms of a layer's inputs and of the gradient of its outputs.
P, SCALE, NORMS = range(3)
_OF_INPUTS, _OF_GRADIENT = NONE, ONCE
"""Which of the two norms."""

# Results.
VERDICT, TOTAL, HARD, SOFT = range(4)
COUNT_OF_RESULTS = 4
DOUBTFUL, FINE = 0.0, 1.0
"""Verdicts: something may not be finite; all is."""

_LARGEST = 1e38  # of a gradient whose sum surely stays below float32's 3.4e38
_BACKWARD_STEPS, _BACKWARD_ROWS = 128, 240  # so many entries of W at a time, for all panels
_ZERO, _ONE = np.float32(0), np.float32(1)
_8 = np.uint32(8)


@compiled(counted=False)
def are_classes(labels, classes):
    """Return whether all labels are at least 0 and less than ``classes``."""
    fit = True
    for i in range(labels.size):
        fit &= 0 <= labels[i] < classes
    return fit


@compiled
def run(
    program, begin, end, layers, rates, facts, numbers, x, labels, targets, results, scratch,
    drops, bits, stream, lr, thread, threads,
):  # fmt: skip
    """Run the entries ``begin`` to ``end`` of a program, (operation, layer) each.

    x is (B, in), labels (B,), which are classes, targets (B, C) or empty; every thread has a
    row of ``scratch``; bits and stream are those of :class:`refkd_numba.mlp.draws.Draws`.
    """
    for i in range(begin, end):
        operation, layer = program[i, 0], program[i, 1]
        if operation == DRAW:
            if drops == BITS:
                last = layers[layer]
                count = len(labels) * (last[DRAWN_BEFORE] + last[OUTPUTS])
                draw(bits, count, stream, thread, threads)
        elif operation == PACK:
            _pack(layers[layer], rates[layer], facts, x, thread, threads)
        elif operation == FORWARD:
            following = rates[min(layer + 1, len(rates) - 1)]
            _forward(
                layers[layer], rates[layer], following, facts, len(labels), drops, bits,
                thread, threads,
            )  # fmt: skip
        elif operation == LOSS:
            _loss(
                layers[layer], layers[facts[TEACHER]], rates[layer], facts, numbers, labels,
                targets, results, scratch[thread],
            )  # fmt: skip
        elif operation == BACKWARD:
            _backward(
                layers[layer], layers[layer - 1], rates[layer - 1], len(labels), drops,
                thread, threads,
            )  # fmt: skip
        elif operation == CHECK:
            _check(rates, facts, numbers, lr, len(labels), results)
        elif operation == UPDATE and (results[VERDICT] == FINE or facts[OPTIMIZER] == KEEP):
            _update(layers[layer], facts, numbers, len(labels), scratch[thread], thread, threads)


@device
def _pack(layer, rates, facts, x, thread, threads):
    """Put the inputs into panels, both ways where something learns from them."""
    examples, inputs = x.shape
    begin, end = part(inputs, thread, threads)
    transpose_into_panels(
        address(x), inputs * FLOAT, examples, begin, end,
        layer[SOURCE] + begin * PANEL * FLOAT, inputs * PANEL * FLOAT,
    )  # fmt: skip
    if layer[SOURCE_ROWS]:
        panel = facts[CAPACITY] * PANEL * FLOAT
        rows = layer[SOURCE_ROWS] + begin // PANEL * panel
        copy_into_panels(address(x[:, begin:]), inputs * FLOAT, examples, end - begin, rows, panel)
        square = 0.0
        for p in range(panels_for(end - begin)):
            square += _sum_of_squares(floats(rows + p * panel, examples * PANEL))
        _note(rates, _OF_INPUTS, square, thread, threads)


@device
def _forward(layer, rates, following, facts, examples, drops, bits, thread, threads):
    """Write relu(dropout(W x + b)), or W x + b of the last layer."""
    inputs, outputs = layer[INPUTS], layer[OUTPUTS]
    panels = panels_for(examples)
    begin, end = part(outputs, thread, threads)
    target = layer[TARGET] + begin * PANEL * FLOAT
    for k in range(0, inputs, STEPS):
        product(
            end - begin, panels, min(STEPS, inputs - k),
            layer[WEIGHT] + (begin * inputs + k) * FLOAT, inputs * FLOAT, FLOAT,
            layer[SOURCE] + k * PANEL * FLOAT, inputs * PANEL * FLOAT, PANEL * FLOAT,
            target, PANEL * FLOAT, outputs * PANEL * FLOAT, k,
        )  # fmt: skip
    clip = layer[IS_HIDDEN] != 0
    for p in range(panels):
        values = floats(target + p * outputs * PANEL * FLOAT, (end - begin) * PANEL)
        if layer[BIAS]:
            _add_bias(values, floats(layer[BIAS], outputs)[begin:end])
        if layer[LEAST_KEPT] and drops != NOTHING:
            count = min(PANEL, examples - p * PANEL)
            drawn = examples * layer[DRAWN_BEFORE] + p * PANEL * outputs + begin
            _drop(values, bits[drawn:], outputs, count, layer[LEAST_KEPT], rates, drops)
        if clip:
            for i in range(values.size):
                values[i] = _ZERO if values[i] <= _ZERO else values[i]
    if layer[TARGET_ROWS]:
        square = 0.0
        for p in range(panels):
            square += _sum_of_squares(
                floats(target + p * outputs * PANEL * FLOAT, (end - begin) * PANEL)
            )
        _note(following, _OF_INPUTS, square, thread, threads)
        _transpose_panels(
            target, outputs, end - begin, examples,
            layer[TARGET_ROWS] + begin // PANEL * facts[CAPACITY] * PANEL * FLOAT, facts[CAPACITY],
        )  # fmt: skip


@device
def _add_bias(values, bias):
    for o in range(bias.size):
        row, added = values[o * PANEL : (o + 1) * PANEL], bias[o]
        for lane in range(PANEL):
            row[lane] += added


@device
def _drop(values, bits, outputs, count, least, rates, drops):
    """Multiply by 1/(1 − p) where a number is at least p, by 0 elsewhere."""
    numbers = floats(address(bits), bits.size)
    p, scale, least = np.float32(rates[P]), np.float32(rates[SCALE]), np.uint32(least)
    for o in range(values.size // PANEL):
        row = values[o * PANEL : (o + 1) * PANEL]
        if drops == BITS:
            for lane in range(count):
                row[lane] *= scale * np.float32(bits[lane * outputs + o] >> _8 >= least)
        else:
            for lane in range(count):
                row[lane] *= scale * np.float32(numbers[lane * outputs + o] >= p)


@device
def _transpose_panels(panels, features, rows, examples, target, capacity):
    """Write panels of examples, [panel, feature, example], as panels of features."""
    for p in range(panels_for(examples)):
        count = min(PANEL, examples - p * PANEL)
        for first in range(0, rows, PANEL):
            width = min(PANEL, rows - first)
            block = target + (first // PANEL * capacity + p * PANEL) * PANEL * FLOAT
            transpose(
                panels + (p * features + first) * PANEL * FLOAT, PANEL * FLOAT, width, count,
                block, PANEL * FLOAT,
            )  # fmt: skip
            if width < PANEL:
                values = floats(block, count * PANEL)
                for n in range(count):
                    for i in range(width, PANEL):
                        values[n * PANEL + i] = _ZERO


@device
def _loss(layer, teacher, rates, facts, numbers, labels, targets, results, scratch):
    """Write the terms, and the gradient of the last layer's outputs, panel by panel."""
    examples, classes = labels.size, layer[OUTPUTS]
    divisor = _divisor(facts[REDUCTION], examples, classes)
    size = classes * PANEL
    lanes, scratch = scratch[: 2 * PANEL], scratch[2 * PANEL :]
    log_q, log_s, log_t = scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size]
    taught = teacher[TARGET]
    if targets.size:
        taught = address(scratch[3 * size :])
        transpose_into_panels(
            address(targets), classes * FLOAT, examples, NONE, classes, taught, size * FLOAT
        )
    distils = facts[DISTILS] != 0
    hard, soft, square = 0.0, 0.0, 0.0
    for p in range(panels_for(examples)):
        own = labels[p * PANEL : min((p + 1) * PANEL, examples)]
        offset = p * size * FLOAT
        z, dz = floats(layer[TARGET] + offset, size), floats(layer[GRADIENT] + offset, size)
        _log_softmax(z, 1.0, lanes, log_q)
        if distils:
            _log_softmax(z, numbers[TEMPERATURE], lanes, log_s)
            _log_softmax(floats(taught + offset, size), numbers[TEMPERATURE], lanes, log_t)
            soft += _divergence(log_s, log_t, facts[HAS_ENTROPY] != 0, own.size)
        hard += _cross_entropy(log_q, own, numbers, distils)
        _slopes(log_q, log_s, log_t, own, numbers, distils, examples, divisor, lanes, dz)
        square += _sum_of_squares(dz)
    results[HARD] = np.float32(hard / examples)
    results[SOFT] = np.float32(soft / divisor)
    results[TOTAL] = np.float32(
        numbers[HARD_WEIGHT] * results[HARD] + numbers[SOFT_WEIGHT] * results[SOFT]
    )
    results[VERDICT] = DOUBTFUL
    _note(rates, _OF_GRADIENT, square, NONE, ONCE)


@device
def _divisor(reduction, examples, classes):
    if reduction == SUM:
        return 1
    return examples if reduction == BATCHMEAN else examples * classes


@device
def _log_softmax(z, temperature, lanes, y):
    """Write log softmax(z / temperature) over the classes of each example of a panel."""
    temperature = np.float32(temperature)
    top, total = lanes[:PANEL], lanes[PANEL:]
    for lane in range(PANEL):
        top[lane], total[lane] = z[lane], _ZERO
    for c in range(PANEL, z.size, PANEL):
        row = z[c : c + PANEL]
        for lane in range(PANEL):
            top[lane] = row[lane] if row[lane] > top[lane] else top[lane]
    for c in range(0, z.size, PANEL):
        row, out = z[c : c + PANEL], y[c : c + PANEL]
        for lane in range(PANEL):
            out[lane] = (row[lane] - top[lane]) / temperature
            total[lane] += exp_nonpositive(out[lane])
    for lane in range(PANEL):
        total[lane] = log(total[lane])
    for c in range(0, z.size, PANEL):
        out = y[c : c + PANEL]
        for lane in range(PANEL):
            out[lane] -= total[lane]


@device
def _divergence(log_s, log_t, has_entropy, count):
    """Return Σ t (log t − log s), or with the teacher's entropy Σ −t log s."""
    kept = _ZERO if has_entropy else _ONE
    result = 0.0
    for c in range(0, log_s.size, PANEL):
        a, b = log_s[c : c + count], log_t[c : c + count]
        for lane in range(count):
            result += exp_nonpositive(b[lane]) * (kept * b[lane] - a[lane])
    return result


@device
def _cross_entropy(log_q, labels, numbers, distils):
    """Return Σ −t log q, where t is ON for the label and OFF for the others."""
    on, off = np.float32(numbers[ON]), np.float32(numbers[OFF])
    result = 0.0
    for lane in range(labels.size):
        result -= (on - off) * log_q[labels[lane] * PANEL + lane]
    if not distils:  # even where OFF is 0: 0 · ∞ is NaN, as in the reference
        for c in range(0, log_q.size, PANEL):
            row = log_q[c : c + labels.size]
            for lane in range(labels.size):
                result -= off * row[lane]
    return result


@device
def _slopes(log_q, log_s, log_t, labels, numbers, distils, examples, divisor, lanes, dz):
    """Write a (q Σ t − t)/B + w (s − t)/(T R), and 0 for lanes without an example."""
    classes = dz.size // PANEL
    on, off = np.float32(numbers[ON]), np.float32(numbers[OFF])
    mass = np.float32(numbers[ON] + (classes - 1) * numbers[OFF])
    hard = np.float32(numbers[HARD_WEIGHT] / examples)
    soft = np.float32(numbers[SOFT_WEIGHT] / (numbers[TEMPERATURE] * divisor))
    chosen = lanes[:PANEL]
    for lane in range(labels.size):
        chosen[lane] = labels[lane]
    for c in range(classes):
        first, this = c * PANEL, np.float32(c)
        q, out = log_q[first : first + PANEL], dz[first : first + PANEL]
        for lane in range(PANEL):
            target = on if chosen[lane] == this else off
            out[lane] = (exp_nonpositive(q[lane]) * mass - target) * hard
        if distils:
            s, t = log_s[first : first + PANEL], log_t[first : first + PANEL]
            for lane in range(PANEL):
                out[lane] += (exp_nonpositive(s[lane]) - exp_nonpositive(t[lane])) * soft
        for lane in range(labels.size, PANEL):
            out[lane] = _ZERO


@device
def _backward(layer, below, rates, examples, drops, thread, threads):
    """Write the gradient of the outputs below: Wᵀ dy where they are positive, else 0.

    Where dropout dropped, an output is 0.
    """
    inputs, outputs = layer[INPUTS], layer[OUTPUTS]
    panels = panels_for(examples)
    begin, end = part(inputs, thread, threads)
    scale = np.float32(rates[SCALE]) if drops != NOTHING and below[LEAST_KEPT] else _ONE
    for i in range(begin, end, _BACKWARD_ROWS):
        for k in range(0, outputs, _BACKWARD_STEPS):
            product(
                min(_BACKWARD_ROWS, end - i), panels, min(_BACKWARD_STEPS, outputs - k),
                layer[WEIGHT] + (k * inputs + i) * FLOAT, FLOAT, inputs * FLOAT,
                layer[GRADIENT] + k * PANEL * FLOAT, outputs * PANEL * FLOAT, PANEL * FLOAT,
                below[GRADIENT] + i * PANEL * FLOAT, PANEL * FLOAT, inputs * PANEL * FLOAT, k,
            )  # fmt: skip
    square = 0.0
    for p in range(panels):
        offset = (p * inputs + begin) * PANEL * FLOAT
        gradient = floats(below[GRADIENT] + offset, (end - begin) * PANEL)
        output = floats(below[TARGET] + offset, (end - begin) * PANEL)
        for i in range(gradient.size):
            gradient[i] *= scale if output[i] > _ZERO else _ZERO
        square += _sum_of_squares(gradient)
    _note(rates, _OF_GRADIENT, square, thread, threads)


@device
def _sum_of_squares(x):
    """Return Σ x², NaN or infinite where an entry is, and perhaps where one is large."""
    result = 0.0
    for first in range(0, x.size, STEPS * PANEL):
        block = x[first : first + STEPS * PANEL]
        square = _ZERO
        for i in range(block.size):
            square += block[i] * block[i]
        result += square
    return result


@device
def _note(rates, which, square, thread, threads):
    """Write a thread's part of a squared norm, and 0 for threads that take no part."""
    room = (rates.size - NORMS) // 2
    norms = rates[NORMS + which * room : NORMS + (which + 1) * room]
    norms[thread] = square
    if thread == 0:
        for other in range(threads, room):
            norms[other] = 0


@device(fast=False)
def _check(rates, facts, numbers, lr, examples, results):
    """Find whether all terms and gradients are surely finite; then count the step."""
    # Comparisons, which are false for NaN: where sums may be reordered, x − x may become 0.
    fine = True
    for term in (TOTAL, HARD, SOFT):
        fine &= abs(results[term]) < math.inf
    room = (rates.shape[1] - NORMS) // 2
    for layer in range(facts[FIRST_LAYER], len(rates)):
        inputs, gradient = 0.0, 0.0
        for thread in range(room):
            inputs += rates[layer, NORMS + thread]
            gradient += rates[layer, NORMS + room + thread]
        # Of a bias the inputs are ones.
        fine &= math.sqrt(gradient) * math.sqrt(max(inputs, examples)) < _LARGEST
    if not fine:
        return
    results[VERDICT] = FINE
    numbers[LR] = lr
    if facts[OPTIMIZER] == ADAM:
        count = counts(facts[STEP], 1)
        count[0] += 1
        # As in the reference, both bias corrections are folded into two numbers.
        correction = math.sqrt(1 - numbers[BETA2] ** count[0])
        numbers[STEP_SIZE] = lr * correction / (1 - numbers[BETA1] ** count[0])
        numbers[FLOOR] = numbers[EPS] * correction


@device
def _update(layer, facts, numbers, examples, scratch, thread, threads):
    """Compute the gradients, some rows of a weight at a time, and take the optimiser's step."""
    inputs, outputs = layer[INPUTS], layer[OUTPUTS]
    begin, end = part(outputs, thread, threads)
    width = panels_for(inputs) * PANEL
    full, rest = examples // PANEL, examples % PANEL
    next_panel, next_rows = outputs * PANEL * FLOAT, PANEL * PANEL * FLOAT
    gradients = address(scratch)
    for o in range(begin, end, ROWS):
        height = min(ROWS, end - o)
        a = layer[GRADIENT] + o * PANEL * FLOAT
        for p in range(width // PANEL):
            b = layer[SOURCE_ROWS] + p * facts[CAPACITY] * PANEL * FLOAT
            c = gradients + p * PANEL * FLOAT
            if full:
                tile(
                    height, a, PANEL * FLOAT, FLOAT, next_panel, b, PANEL * FLOAT, next_rows,
                    full, PANEL, c, width * FLOAT, NONE,
                )  # fmt: skip
            if rest:
                tile(
                    height, a + full * next_panel, PANEL * FLOAT, FLOAT, NONE,
                    b + full * next_rows, PANEL * FLOAT, NONE, ONCE, rest, c, width * FLOAT, full,
                )  # fmt: skip
        for row in range(height):
            _take_step(
                facts, numbers, scratch[row * width : row * width + inputs],
                layer[WEIGHT], layer[WEIGHT_KEPT], layer[WEIGHT_KEPT + 1], (o + row) * inputs,
            )  # fmt: skip
    if layer[BIAS]:
        gradient = scratch[: end - begin]
        for o in range(begin, end):
            total = _ZERO
            for p in range(panels_for(examples)):
                lanes = floats(
                    layer[GRADIENT] + (p * outputs + o) * PANEL * FLOAT,
                    min(PANEL, examples - p * PANEL),
                )
                for lane in range(lanes.size):
                    total += lanes[lane]
            gradient[o - begin] = total
        _take_step(
            facts, numbers, gradient, layer[BIAS], layer[BIAS_KEPT], layer[BIAS_KEPT + 1], begin
        )


@device
def _take_step(facts, numbers, gradient, param, first, second, offset):
    """Update as many entries as there are of the gradient, from ``offset`` on; or store it."""
    count, at = gradient.size, offset * FLOAT
    if facts[OPTIMIZER] == ADAM:
        adam(
            floats(param + at, count), gradient, floats(first + at, count),
            floats(second + at, count), numbers[BETA1], 1 - numbers[BETA1], numbers[BETA2],
            1 - numbers[BETA2], numbers[STEP_SIZE], numbers[FLOOR], numbers[DECAY],
            1 - numbers[LR] * numbers[DECOUPLED_DECAY],
        )  # fmt: skip
    elif facts[OPTIMIZER] == SGD:
        sgd(
            floats(param + at, count), gradient, floats(first + at, count), numbers[LR],
            numbers[MOMENTUM], facts[NESTEROV] != 0, numbers[DECAY],
        )  # fmt: skip
    else:
        kept = floats(first + at, count)
        for i in range(count):
            kept[i] = gradient[i]
