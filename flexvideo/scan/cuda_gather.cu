// Stack, cast and pad the weights of a mixer, and take -exp of some, in one launch.
//
// Bytes, and on small batches the launch, are all it costs: a thread moves EACH times 4 neighbours, all of its loads
// before its stores. A block works on one part. The parts come as the kernel's argument, so that every thread reads
// what it needs of them from the constant bank.
//
// Macros: DTYPE (of what is not `wide`), PARTS, EACH.
#include "cuda_common.cuh"

// A weight and where it goes. In rows of `width` numbers, from `head` on, `gap` of them are zeros that `from` has not.
struct Part {
    const void* from;
    void* to;
    long long first;  // block
    long long count, width, head, gap;  // of what is written
    long long kind;  // dtype of what is read
    long long wide;  // what is written is float32
    long long decay;  // take -exp
    long long whole;  // groups of 4 are aligned on both sides, and all zeros or none
};

struct Parts {
    Part part[PARTS];
};

DEVICE float float_of(unsigned bits, int kind) {
    return kind == 1 ? half_to_float((unsigned short)bits) : __uint_as_float(bits << 16);
}

DEVICE float load_one(const Part& part, unsigned at) {
    if (part.kind == 0) return ((const float*)part.from)[at];
    return float_of(((const unsigned short*)part.from)[at], (int)part.kind);
}

DEVICE float4 load_four(const Part& part, unsigned at) {
    if (part.kind == 0) return ((const float4*)part.from)[at / 4];
    const uint2 x = ((const uint2*)part.from)[at / 4];
    const int kind = (int)part.kind;
    return make_float4(float_of(x.x & 0xffffu, kind), float_of(x.x >> 16, kind), float_of(x.y & 0xffffu, kind),
                       float_of(x.y >> 16, kind));
}

// where the number at `at` of the result is in the weight; negative for a zero
DEVICE int place(const Part& part, unsigned at) {
    const unsigned width = (unsigned)part.width, gap = (unsigned)part.gap, row = at / width, column = at - row * width;
    if (column < part.head) return (int)(at - row * gap);
    return column < part.head + gap ? -1 : (int)(at - (row + 1) * gap);
}

DEVICE float one_of(const Part& part, unsigned at) {
    const int from = at < part.count ? place(part, at) : -1;
    return from < 0 ? 0.0f : load_one(part, from);
}

DEVICE float4 four_of(const Part& part, unsigned at) {
    if (!part.whole)
        return make_float4(one_of(part, at), one_of(part, at + 1), one_of(part, at + 2), one_of(part, at + 3));
    const int from = at < part.count ? place(part, at) : -1;
    return from < 0 ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : load_four(part, from);
}

DEVICE void store(const Part& part, unsigned at, float4 x) {
    if (part.decay) x = make_float4(-expf(x.x), -expf(x.y), -expf(x.z), -expf(x.w));
    if (part.whole) {
        if (at >= part.count) return;
        if (part.wide) ((float4*)part.to)[at / 4] = x;
        else ((Quad*)part.to)[at / 4] = quad_of(pack(x.x, x.y), pack(x.z, x.w));
        return;
    }
    const float values[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (at + i >= part.count) return;
        if (part.wide) ((float*)part.to)[at + i] = values[i];
        else ((Scalar*)part.to)[at + i] = from_float(values[i]);
    }
}

extern "C" __global__ void gather(const __grid_constant__ Parts parts) {
    int index = PARTS - 1;
    while (blockIdx.x < parts.part[index].first) index--;  // from the end, where the large ones are
    const Part& part = parts.part[index];
    const unsigned at = 4 * ((blockIdx.x - (unsigned)part.first) * EACH * blockDim.x + threadIdx.x);
    float4 values[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) values[i] = four_of(part, at + 4 * i * blockDim.x);
#pragma unroll
    for (int i = 0; i < EACH; i++) store(part, at + 4 * i * blockDim.x, values[i]);
}
KERNEL(gather)
