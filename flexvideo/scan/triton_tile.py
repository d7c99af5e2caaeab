"""Device functions shared by the Triton scan kernels.

Shape of everything: a program owns BD channels of one sample, in all K directions. Its tensors are
[BD, NL, K]: lane j of NL holds the NR states j * NR .. j * NR + NR - 1 of a channel as a tuple of NR tensors,
one register each. A tile is TT steps: inputs of step q * NL + j sit in lane j of the q-th tensor of a tuple,
so that softplus, gate, loads and stores are spread over the lanes, and each value is handed to the other
lanes when its step comes. Steps count in the direction's own order (s); t is the place in the sequence.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to float32 accuracy also where it is tiny: log1p(e) / e is a polynomial on [0, 1]."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    p = 0.0051261018961668015 * e - 0.029074065387248993
    p = p * e + 0.0775160863995552
    p = p * e - 0.13602247834205627
    p = p * e + 0.19076880812644958
    p = p * e - 0.2483539879322052
    p = p * e + 0.3331812024116516
    p = p * e - 0.4999944567680359
    p = p * e + 0.9999999403953552
    return tl.maximum(x, 0.0) + p * e


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def from_lane(v, lane, j: tl.constexpr, NL: tl.constexpr):
    """The value of lane j, in every lane."""
    if NL == 1:
        return v
    else:
        return tl.sum(tl.where(lane == j, v, 0.0), 1, keep_dims=True)


@triton.jit
def over_lanes(v, NL: tl.constexpr):
    """The sum over the lanes, in every lane."""
    if NL == 1:
        return v
    else:
        return tl.sum(v, 1, keep_dims=True)


@triton.jit
def load_rows(ptr, TT: tl.constexpr, NP: tl.constexpr, NR: tl.constexpr):
    """The lane's B and C of TT steps as 64-bit words: half the load instructions. A step is NR words."""
    words = ()
    for step in tl.static_range(TT):
        for half in tl.static_range(2):
            for i in tl.static_range(NR // 2):
                words = words + (tl.load(ptr + (step * NP + half * (NP // 2) + i)),)
    return words


@triton.jit
def floats(words, START: tl.constexpr, NR: tl.constexpr):
    """The NR float32 in NR / 2 words from START."""
    out = ()
    for i in tl.static_range(NR // 2):
        low = words[START + i].to(tl.int32).to(tl.float32, bitcast=True)
        high = (words[START + i] >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        out = out + (low, high)
    return out


@triton.jit
def load_tile(ptr, t, sign, stride, end, TT: tl.constexpr, NL: tl.constexpr):
    """The inputs of one tile; `ptr` and `t` are those of the tile's first steps, `end` = 0 switches off."""
    out = ()
    for q in tl.static_range(TT // NL):
        inside = ((t + sign * (q * NL)) >= 0) & ((t + sign * (q * NL)) < end)
        out = out + (tl.load(ptr + sign * (q * NL) * stride, mask=inside, other=0.0),)
    return out


@triton.jit
def store_tile(ptr, values, t, sign, stride, end, TT: tl.constexpr, NL: tl.constexpr):
    """The counterpart of `load_tile`."""
    for q in tl.static_range(TT // NL):
        inside = ((t + sign * (q * NL)) >= 0) & ((t + sign * (q * NL)) < end)
        tl.store(ptr + sign * (q * NL) * stride, values[q].to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def zero_tile(shape: tl.constexpr, dtype: tl.constexpr, COUNT: tl.constexpr):
    """A tile of zeros."""
    out = ()
    for _ in tl.static_range(COUNT):
        out = out + (tl.zeros(shape, dtype),)
    return out


@triton.jit
def finish_tile(ptr, ys, partner, gate, second, t, sign, stride, end, TT: tl.constexpr, NL: tl.constexpr):
    """Store one direction's outputs as they are, or the gated sum if the other direction has been there."""
    if second:
        sums = ()
        for q in tl.static_range(TT // NL):
            g = gate[q].to(tl.float32)
            sums = sums + ((ys[q] + partner[q].to(tl.float32)) * g * sigmoid(g),)
        store_tile(ptr, sums, t, sign, stride, end, TT, NL)
    else:
        store_tile(ptr, ys, t, sign, stride, end, TT, NL)


@triton.jit
def stacked(values, COUNT: tl.constexpr, shape: tl.constexpr):
    """COUNT tensors (a power of two) as one with a last dimension more."""
    levels: tl.constexpr = COUNT.bit_length() - 1
    for level in tl.static_range(levels):
        pairs = ()
        for i in tl.static_range(COUNT >> (level + 1)):
            pairs = pairs + (tl.join(values[i], values[i + (COUNT >> (level + 1))]),)
        values = pairs
    return tl.reshape(values[0], shape + [COUNT])


@triton.jit
def put(values, mine, value, Q: tl.constexpr, COUNT: tl.constexpr):
    """The tuple with `value` added to its Q-th tensor where `mine`."""
    out = ()
    for q in tl.static_range(COUNT):
        out = out + (tl.where(mine, values[q] + value, values[q]) if q == Q else values[q],)
    return out


@triton.jit
def sums_of(values, others, COUNT: tl.constexpr):
    """Sums of two tuples."""
    out = ()
    for q in tl.static_range(COUNT):
        out = out + (values[q] + others[q].to(tl.float32),)
    return out


@triton.jit
def gated(values, gate, COUNT: tl.constexpr):
    """Multiply by silu(gate)."""
    out = ()
    for q in tl.static_range(COUNT):
        g = gate[q].to(tl.float32)
        out = out + (values[q] * g * sigmoid(g),)
    return out


@triton.jit
def gate_gradients(values, gate, grad, COUNT: tl.constexpr):
    """Gradients of the gate: grad times values times the slope of the SiLU."""
    out = ()
    for q in tl.static_range(COUNT):
        g = gate[q].to(tl.float32)
        open = sigmoid(g)
        out = out + (grad[q].to(tl.float32) * values[q] * open * (1.0 + g * (1.0 - open)),)
    return out
