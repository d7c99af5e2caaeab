// Residual sum and RMS normalisation in one pass over the tokens, forward and backward.
//
// Bytes are all it costs: forward 12 a value (read float32 and 16 bits, write the same), backward 16. A warp takes a
// row, and reads it twice, the second time from the cache; so rows of any width do. The gradient of the weight is
// summed over a warp's rows in shared memory, over the warps of a block, and then over the blocks, in a fixed order.
//
// Macros: DTYPE (of what is not WIDE), PAIRS, ADD (there is a residual), WIDE_HIDDEN and WIDE_OUT (float32).
#include "cuda_common.cuh"

#define WARPS 4  // of a block

DEVICE float2 read(const void* from, bool wide, long long at, bool second) {
    if (!wide) return unpack(load_pair((const Scalar*)from + at, true, second, Pair()));
    const float* x = (const float*)from + at;
#if PAIRS
    return *(const float2*)x;
#else
    return make_float2(x[0], second ? x[1] : 0.0f);
#endif
}

DEVICE void write(void* to, bool wide, long long at, float2 value, bool second) {
    if (!wide) return store_pair((Scalar*)to + at, value, true, second);
    float* x = (float*)to + at;
#if PAIRS
    *(float2*)x = value;
#else
    x[0] = value.x;
    if (second) x[1] = value.y;
#endif
}

DEVICE float over_warp(float x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL, x, lanes);
    return x;
}

// hidden, residual, total, out (rows, D); `eps`: the bits of a float
extern "C" __global__ void norm_forward(const void* hidden, const float* residual, const float* weight, float* total,
                                        void* out, long long rows, long long D, long long eps) {
    const int lane = threadIdx.x % WARP;
    const long long row = (long long)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    float squares = 0.0f;
#pragma unroll 4
    for (int d = 2 * lane; d < D; d += 2 * WARP) {
        const bool second = d + 1 < D;
        float2 x = read(hidden, WIDE_HIDDEN, row * D + d, second);
#if ADD
        const float2 before = read(residual, true, row * D + d, second);
        x = make_float2(x.x + before.x, x.y + before.y);
#endif
        squares += x.x * x.x + x.y * x.y;
        if (ADD || !WIDE_HIDDEN) write(total, true, row * D + d, x, second);  // else it is `hidden` itself
    }
    const float scale = rsqrtf(over_warp(squares) / (float)D + __uint_as_float((unsigned)eps));
#pragma unroll 4
    for (int d = 2 * lane; d < D; d += 2 * WARP) {
        const bool second = d + 1 < D;
        const float2 x = read(total, true, row * D + d, second), w = read(weight, true, d, second);
        write(out, WIDE_OUT, row * D + d, make_float2(x.x * scale * w.x, x.y * scale * w.y), second);
    }
}
KERNEL(norm_forward)

// what a row needs of itself: the scale of its norm, and the mean of weighted gradient times normalised value
DEVICE float2 scale_and_mean(const void* grad, const float* total, const float* weight, long long row, int D, float eps) {
    float squares = 0.0f, products = 0.0f;
#pragma unroll 4
    for (int d = 2 * ((int)threadIdx.x % WARP); d < D; d += 2 * WARP) {
        const bool second = d + 1 < D;
        const float2 x = read(total, true, row * D + d, second), w = read(weight, true, d, second);
        const float2 g = read(grad, WIDE_OUT, row * D + d, second);
        squares += x.x * x.x + x.y * x.y;
        products += g.x * w.x * x.x + g.y * w.y * x.y;
    }
    const float scale = rsqrtf(over_warp(squares) / (float)D + eps);
    return make_float2(scale, over_warp(products) * scale / (float)D);
}

// dweight (blocks, D): each block takes `each` rows
extern "C" __global__ void norm_backward(const float* grad_total, const void* grad, const float* total,
                                         const float* weight, float* dtotal, void* dhidden, float* dweight,
                                         long long rows, long long D_, long long eps, long long each) {
    DYNAMIC_SHARED(shared);
    const int D = (int)D_, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float* sums = (float*)shared + warp * D;
    for (int d = lane; d < D; d += WARP) sums[d] = 0.0f;
    __syncwarp();
    const long long first = blockIdx.x * each, end = min(rows, first + each);
    for (long long row = first + warp; row < end; row += WARPS) {
        const float2 of = scale_and_mean(grad, total, weight, row, D, __uint_as_float((unsigned)eps));
#pragma unroll 4
        for (int d = 2 * lane; d < D; d += 2 * WARP) {
            const bool second = d + 1 < D;
            const long long at = row * D + d;
            const float2 x = read(total, true, at, second), w = read(weight, true, d, second);
            const float2 g = read(grad, WIDE_OUT, at, second), before = read(grad_total, true, at, second);
            const float2 unit = make_float2(x.x * of.x, x.y * of.x);
            const float2 sum = make_float2(before.x + of.x * (g.x * w.x - unit.x * of.y),
                                           before.y + of.x * (g.y * w.y - unit.y * of.y));
            write(dtotal, true, at, sum, second);
            if (!WIDE_HIDDEN) write(dhidden, false, at, sum, second);
            sums[d] += g.x * unit.x;
            if (second) sums[d + 1] += g.y * unit.y;
        }
    }
    __syncthreads();
    for (int d = threadIdx.x; d < D; d += WARPS * WARP) {
        float sum = 0.0f;
        for (int i = 0; i < WARPS; i++) sum += ((float*)shared)[i * D + d];
        dweight[(long long)blockIdx.x * D + d] = sum;
    }
}
KERNEL(norm_backward)
