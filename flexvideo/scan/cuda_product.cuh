// Step sizes as a product that tensor cores do within the scan: rows of low rank times the weights of `dt_proj`, added
// up in float32 and rounded as a product in memory would be, which is then neither written nor read.
//
// Of a tile a warp needs 16 channels x STEPS steps x RANK, at 8 or 16 of the rank a time. Rows of the left factor are
// channels, row r the first and row r + 8 the second of pair r; so of the sums a lane gets those of its own pair.
// Columns are steps, and a lane gets two of them, 2 j and 2 j + 1 for lane j, which hence are two of its own steps,
// j + 8 h and j + 4 + 8 h. In shared memory steps lie in the order of columns, as far apart that 4 of them are read at
// once. The order within the rank is that in which what a lane needs of a step or channel lies side by side.
//
// Rows are copied to shared memory a tile before the product, hence two before the walk. Those of steps that are not
// there are zeros.
//
// Macros: RANK (a multiple of 8; 0: step sizes are read, and nothing of this is there), ASIDE (weights do not fit the
// registers, and are put aside in shared memory).
#pragma once
#include "cuda_place.cuh"

#if RANK
#define PITCH (RANK <= 16 ? 16 : 48)  // of a step in shared memory
#define PIECE 8  // that are copied at once
#define PIECES (RANK / PIECE)  // of a step
#define CARRIERS (SIDE / STEPS)  // threads that copy a step
#define PARTS ((RANK + 8) / 16)  // products: of 16 of the rank, and one of 8 if it is odd
#define APART (ASIDE ? DIRECTIONS * SIDE : 1)  // from what a lane needs for one to what it needs for the next

#ifndef CUDA_ON_CPU
#if DTYPE == 1
#define FACTORS "f16.f16"
#else
#define FACTORS "bf16.bf16"
#endif
// sums (16 x 8) += left (16 x 16) times right (16 x 8)
static __device__ __forceinline__ void multiply_16(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2,
                                                   unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." FACTORS ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// sums (16 x 8) += left (16 x 8) times right (8 x 8)
static __device__ __forceinline__ void multiply_8(float (&sums)[4], unsigned a0, unsigned a1, unsigned b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32." FACTORS ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

typedef unsigned Shared;  // an address in shared memory
static __device__ __forceinline__ Shared address_of(const void* shared) {
    unsigned at;
    asm("{ .reg .u64 x; cvta.to.shared.u64 x, %1; cvt.u32.u64 %0, x; }" : "=r"(at) : "l"(shared));
    return at;
}

// 16 bytes, or zeros, on their way to shared memory
static __device__ __forceinline__ void copy_16(Shared to, const void* from, bool here) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(here ? 16 : 0) : "memory");
}

// until all that the thread has sent is there
static __device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif

// The weights of a lane's pair, and the way of the rows to shared memory.
struct Product {
#if ASIDE
    uint4* weights;  // each thread's own
#else
    uint4 weights[PARTS];
#endif
    const Scalar *row, *from;  // row: that the lane reads, of the first columns
    Shared to;
    int l;  // elements from step to step
};

DEVICE int step_carried() { return (int)threadIdx.x % SIDE / CARRIERS; }
DEVICE int first_piece() { return (int)threadIdx.x % CARRIERS; }

// where in shared memory a step lies: 2 own steps of a lane side by side
DEVICE int row_of(int step) { return step / 8 * 8 + step % LANES * 2 + step / LANES % 2; }

// what the lane needs of part i of its rows of the left factor: 4 of each 16, 2 of the last 8; by the 2, since 4 at
// once would come in registers side by side, where a product wants those of both rows in turn
DEVICE uint4 load_weights(const Scalar* row, int i, const Place& at) {
    const bool whole = i < RANK / 16;
    const Scalar *first = row + 16 * i + (whole ? 4 : 2) * at.lane, *second = first + RANK;
    uint4 part = uint4();
    if (at.width > 0) part.x = *(const unsigned*)first;
    if (at.width > 1) part.y = *(const unsigned*)second;
    if (whole && at.width > 0) part.z = *(const unsigned*)(first + 2);
    if (whole && at.width > 1) part.w = *(const unsigned*)(second + 2);
    return part;
}

// weights (DIRECTIONS, D, RANK); rows: from time 0, at a distance of l; begins at time t
DEVICE Product product_of(const Scalar* rows, const Scalar* weights, Scalar (&shared)[STEPS][PITCH], long long l,
                          const Place& at, int D, int t) {
    Product product;
    weights += ((long long)at.side * D + at.channel) * RANK;
#if ASIDE
    __shared__ uint4 aside[PARTS][DIRECTIONS * SIDE];
    product.weights = &aside[0][threadIdx.x];
#endif
#pragma unroll
    for (int i = 0; i < PARTS; i++) product.weights[i * APART] = load_weights(weights, i, at);
    product.row = shared[at.pair] + 4 * at.lane;
    product.from = rows + (t + at.sign * step_carried()) * l + first_piece() * PIECE;
    product.to = address_of(&shared[row_of(step_carried())][first_piece() * PIECE]);
    product.l = (int)l;
    return product;
}

// the rows of the tile that begins at time t set out; half: bytes to add to where they go; L: steps of the sequence
DEVICE void copy_rows(Product& product, int half, int t, int sign, int L) {
    const bool here = (unsigned)(t + sign * step_carried()) < (unsigned)L;
#pragma unroll
    for (int i = 0; i < PIECES; i += CARRIERS)
        if (first_piece() + i < PIECES)
            copy_16(product.to + half + i * PIECE * sizeof(Scalar), product.from + i * PIECE, here);
    product.from += sign * STEPS * product.l;
}

// step sizes of the lane's own steps
DEVICE void multiply(Pair (&to)[GROUPS], const Product& product, int half, int lane) {
#pragma unroll
    for (int g = 0; g < GROUPS; g += 2) {
        const Scalar* row = at_byte(product.row, half) + 4 * g * PITCH;
        float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const uint4 a = product.weights[i * APART];
            if (i < RANK / 16) {
                const uint2 b = *(const uint2*)(row + 16 * i);
                multiply_16(sums, a.x, a.y, a.z, a.w, b.x, b.y);
            } else {
                multiply_8(sums, a.x, a.y, *(const unsigned*)(row + 16 * i - 2 * lane));
            }
        }
        to[g] = pack(sums[0], sums[2]), to[g + 1] = pack(sums[1], sums[3]);
    }
}
#endif
