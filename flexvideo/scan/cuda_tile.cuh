// What cuda_forward.cu and cuda_ends.cu share: where a thread is, and how tiles go from memory to registers to shared
// memory while those before them are worked on.
#pragma once
#include "cuda_common.cuh"

#define LANES 4  // that share a pair
#define GROUPS (STEPS / LANES)
#define PER_WARP (WARP / LANES)  // pairs of a warp
#define CHANNELS (2 * PER_WARP * WARPS)
#define PADDED (LANES * HELD)
#define LARGEST 3.402823466e38f
#define QUARTER (PADDED / 4)  // float4 of B or C of a step
#define ROW (ENDS ? QUARTER : 2 * QUARTER)  // float4 of a step
#define SIDE (WARPS * WARP)  // threads of a direction
#define TILE_QUADS (STEPS * ROW)
#define LOADS ((TILE_QUADS + SIDE - 1) / SIDE)  // of a thread

// What threads hand to each other of one tile.
struct Tile {
    float4 rows[DIRECTIONS][STEPS][ROW];  // B, then C unless ENDS
    float4 steps[DIRECTIONS * WARPS][STEPS][PER_WARP];  // dt and dt u of a pair's first, of its second channel
};

struct States {
    float a[2][HELD], h[2][HELD];  // a: log2(e) A
};

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

// The thread's share of B and C: quads of states, its i-th in step `step(i)` and column `column(i)` of the tile.
struct Rows {
    const Scalar* at[LOADS];
    int tile[LOADS];  // elements from tile to tile
    int t;
};

DEVICE int quad(int i) { return (int)threadIdx.x % SIDE + i * SIDE; }
DEVICE int step_of(int i) { return quad(i) / ROW; }
DEVICE int column_of(int i) { return quad(i) % ROW; }
DEVICE bool has_quad(int i) { return TILE_QUADS % SIDE == 0 || quad(i) < TILE_QUADS; }

DEVICE Rows rows_of(const Scalar* B, const Scalar* C, long long b_l, long long c_l, int t, int sign) {
    Rows rows;
    rows.t = t;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        bool second = column_of(i) >= QUARTER;
        long long stride = second ? c_l : b_l;
        rows.at[i] = (second ? C : B) + (t + sign * step_of(i)) * stride + 4 * (column_of(i) % QUARTER);
        rows.tile[i] = sign * STEPS * (int)stride;
    }
    return rows;
}

DEVICE Quad load_quad(const Scalar* at, int first, bool here) {
#if QUADS
    return here ? *(const Quad*)at : Quad();
#else
    Scalar x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = here && first + i < STATES ? at[i] : Scalar();
    return quad_of(pair_of(x[0], x[1]), pair_of(x[2], x[3]));
#endif
}

DEVICE void load_rows(Quad (&to)[LOADS], Rows& rows, int sign, int L) {
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        bool here = has_quad(i) && (unsigned)(rows.t + sign * step_of(i)) < (unsigned)L;
        to[i] = load_quad(rows.at[i], 4 * (column_of(i) % QUARTER), here);
        rows.at[i] += rows.tile[i];
    }
    rows.t += sign * STEPS;
}

// Inputs of a tile on their way: own steps, and the share of B and C.
struct Inputs {
    Pair u[GROUPS], delta[GROUPS];
    Quad rows[LOADS];
};

// Where a thread reads and writes in a Tile.
struct Exchange {
    const float4 *steps, *rows;
    float4 *own, *filled;
};

DEVICE Exchange exchange_of(Tile& tile, const Place& at) {
    return {&tile.steps[at.warp][0][at.pair], (const float4*)((const float*)&tile.rows[at.side][0][0] + at.lane * HELD),
            &tile.steps[at.warp][at.lane][at.pair], &tile.rows[at.side][0][0] + quad(0)};
}

DEVICE void flip(Exchange& exchange, bool back) {
    const int tile = (back ? -1 : 1) * (int)(sizeof(Tile) / sizeof(float4));
    exchange.steps += tile, exchange.rows += tile;
}

DEVICE void flip_writes(Exchange& exchange, bool back) {
    const int tile = (back ? -1 : 1) * (int)(sizeof(Tile) / sizeof(float4));
    exchange.own += tile, exchange.filled += tile;
}

DEVICE float2 load_channels(const float* from, const Place& at, int D) {
    from += (long long)at.side * D + at.channel;
    return make_float2(at.width > 0 ? from[0] : 0.0f, at.width > 1 ? from[1] : 0.0f);
}

// Tiles from memory to registers to shared memory, of the span of one direction.
struct Feed {
    Place at;
    Cursor steps;  // of u, delta and out
    Bounds bounds;
    Rows rows;
    Exchange exchange;
    Inputs next;
    float2 bias;
    const Scalar *u, *delta;
    int L;
};

// begins at time t
DEVICE Feed feed_of(const Scalar* u, const Scalar* delta, const Scalar* B, const Scalar* C, const float* bias,
                    long long b_l, long long c_l, int L, int D, Tile& tile, const Place& at, int t) {
    Feed feed;
    feed.at = at, feed.u = u, feed.delta = delta, feed.L = L;
    feed.steps = cursor_of(at, t + at.sign * at.lane, D);
    feed.bounds = {at.width ? (unsigned)L * D * (unsigned)sizeof(Scalar) : 0, at.width > 1};
    feed.rows = rows_of(B, C, b_l, c_l, t, at.sign);
    feed.exchange = exchange_of(tile, at);
    feed.bias = load_channels(bias, at, D);
    return feed;
}

DEVICE void load_next(Feed& feed, int ahead) {
    const Pair none = pack(NOT_THERE, NOT_THERE);
    load_steps(feed.next.u, feed.u, feed.steps, feed.steps, feed.bounds, ahead, Pair());
    load_steps(feed.next.delta, feed.delta, feed.steps, feed.steps, feed.bounds, ahead, none);
    load_rows(feed.next.rows, feed.rows, feed.at.sign, feed.L);
}

// what is on its way goes to the half that is written to
DEVICE void hand_over(Feed& feed) {
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        float2 u = unpack(feed.next.u[g]), delta = unpack(feed.next.delta[g]);
        float2 dt = make_float2(softplus(delta.x + feed.bias.x), softplus(delta.y + feed.bias.y));
        feed.exchange.own[LANES * g * PER_WARP] = make_float4(dt.x, dt.x * u.x, dt.y, dt.y * u.y);
    }
#pragma unroll
    for (int i = 0; i < LOADS; i++)
        if (has_quad(i)) feed.exchange.filled[i * SIDE] = unpack(feed.next.rows[i]);
}

// after a tile: the next one is handed over and read from now on
DEVICE void pass_on(Feed& feed, int tile) {
    feed.steps.byte += GROUPS * feed.steps.group;
    flip(feed.exchange, tile & 1);
    hand_over(feed);
    flip_writes(feed.exchange, !(tile & 1));
}

// the first tile, before which nobody reads
DEVICE void start(Feed& feed) {
    load_next(feed, 0);
    hand_over(feed);
    flip_writes(feed.exchange, false);
}

// the lane's part of a row in shared memory
DEVICE void read_held(float (&out)[HELD], const float* row) {
#if HELD % 4 == 0
#pragma unroll
    for (int i = 0; i < HELD; i += 4) {
        float4 x = *(const float4*)(row + i);
        out[i] = x.x, out[i + 1] = x.y, out[i + 2] = x.z, out[i + 3] = x.w;
    }
#elif HELD % 2 == 0
#pragma unroll
    for (int i = 0; i < HELD; i += 2) {
        float2 x = *(const float2*)(row + i);
        out[i] = x.x, out[i + 1] = x.y;
    }
#else
#pragma unroll
    for (int i = 0; i < HELD; i++) out[i] = row[i];
#endif
}

// (PADDED, D) from the thread's first state and channel
DEVICE void store_states(float* to, const States& of, int D, int width) {
#pragma unroll
    for (int i = 0; i < HELD; i++, to += D) {
        if (width > 0) to[0] = of.h[0][i];
        if (width > 1) to[1] = of.h[1][i];
    }
}

DEVICE States first_states(const float* A, const float* carry, const Place& at, int D, bool carried) {
    States of;
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            int n = at.lane * HELD + i;
            long long row = (long long)at.side * D + at.channel + c;
            const float a = c < at.width && n < STATES ? A[row * STATES + n] * LOG2E : 0.0f;
            of.a[c][i] = a < -LARGEST ? -LARGEST : a;  // 0 times it is 0: steps that are not there change nothing
            of.h[c][i] = carried && c < at.width ? carry[(long long)i * D + c] : 0.0f;
        }
    return of;
}
