// Where a thread of the forward scan is, and which steps of the tensors that run along time are its own.
#pragma once
#include "cuda_common.cuh"

#define LANES 4  // that share a pair
#define GROUPS (STEPS / LANES)
#define PER_WARP (WARP / LANES)  // pairs of a warp
#define CHANNELS (2 * PER_WARP * WARPS)
#define SIDE (WARPS * WARP)  // threads of a direction

// Where a thread is. `width`: channels of its pair that exist.
struct Place {
    int lane, pair, warp, side, sign, channel, width;
};

DEVICE Place place_of(int group, int D) {
    Place at;
    int thread = threadIdx.x;
    RENEW(thread);
    at.lane = thread % LANES;
    at.pair = thread % WARP / LANES;
    at.warp = thread / WARP;
    at.side = __shfl_sync(ALL, thread / SIDE, 0);  // so that the compiler sees that a warp has one
    at.sign = at.side == ENDS ? 1 : -1;  // ENDS: from the end of a span to its beginning
    at.channel = group * CHANNELS + 2 * (at.warp % WARPS * PER_WARP + at.pair);
    at.width = max(0, min(2, D - at.channel));
    return at;
}

// Own steps of the tensors of one shape, by the byte: one 32-bit number serves all of them.
struct Cursor {
    unsigned byte, group;  // group: from an own step to the next, LANES steps on
};

DEVICE Cursor cursor_of(const Place& at, int t, int stride) {
    const int size = sizeof(Scalar);
    return {(unsigned)(t * stride + at.channel) * size, (unsigned)(at.sign * LANES * stride * size)};
}

// Steps that are not there lie beyond `end` in u, as do those before the first, modulo 2^32.
struct Bounds {
    unsigned end;
    bool second;  // channel of the pair
};

DEVICE Scalar* at_byte(const Scalar* tensor, unsigned byte) { return (Scalar*)((char*)tensor + byte); }

// own steps of the tile that begins GROUPS * `ahead` groups on
DEVICE void load_steps(Pair (&to)[GROUPS], const Scalar* from, const Cursor& cursor, const Cursor& steps,
                       const Bounds& bounds, int ahead, Pair otherwise) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int on = g + GROUPS * ahead;
        const bool here = steps.byte + on * steps.group < bounds.end;
        to[g] = load_pair(at_byte(from, cursor.byte + on * cursor.group), here, bounds.second, otherwise);
    }
}
