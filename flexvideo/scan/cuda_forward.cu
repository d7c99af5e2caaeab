// The selective scan forward, both directions in one launch.
//
// A thread holds HELD = N / LANES states of 2 adjacent channels (a pair): 4 lanes share a pair, a warp holds 16
// channels of one direction; or 8 lanes and 8 channels, where that fills the device better. A block has WARPS warps a
// direction: direction 0 walks up, direction 1 down, by negative strides; whichever comes second to a time adds what
// the other left in `out`, and gates. Time goes in tiles of STEPS: while one tile is worked on, the next one's inputs
// are on their way to registers, and are then handed over through shared memory: B and C as float32 (all channels of a
// block need them), and dt and dt u, which each lane finds for its own pair and every LANES steps, so that softplus,
// gate, loads and stores are spread over the lanes. Sums over the states go over the lanes transposed: of 4, 8 values
// in, 2 out, in the lane that has the inputs of that step.
//
// A chain is the walk of both directions over one span by the channels of a block. 576 of them on 132 multiprocessors
// leave most of these with 4 and some with 5, for which all wait. So work is dealt out in equal shares of tiles, at
// least a chain: there is no hurrying one, since it is walked step by step. Where a share ends the chain is cut: at the
// same place of both walks, hence at mirrored times. So whatever the second piece needs of the other direction was left
// in `out` by itself or by the first piece, whose states it waits for anyway: one flag a chain. The second piece is the
// last that its block of threads works on, the first the first of its own, so that it is there by then; and blocks wait
// only for those of a lower index, which have begun. States are handed over in float32: the same bits as uncut.
//
// Counted in the assembly for sm_90 (NVRTC 13.0, bfloat16, N = 16): 96 registers, so 5 blocks of 4 warps a
// multiprocessor; none is spilled within a tile, and with CUT one between tiles. A warp's update takes 8.5 instructions
// before the directions meet and 9.2 after it (4 of them are the recurrence and its exponential, 1 is y), 0.6 more if
// states are kept, 0.1 more with CUT: 2.1 and 2.3 clocks of a multiprocessor, beside 2.1 and 2.4 of its exponentials,
// and 2.3 of shared and global memory if a 128-bit load of a warp takes 4. With ENDS it is 6.2 instructions, so that
// exponentials alone count. With 4 blocks a multiprocessor CUT costs nothing (126 registers). With 8 lanes it is 10.3
// and 10.9 instructions (2.6 and 2.7 clocks, and 2.9 of memory): 1.25 times as many, where two passes take 1.4 or more.
//
// Macros: DTYPE, DIRECTIONS, STATES (N), LANES, HELD, STEPS, WARPS, BLOCKS (of a multiprocessor), KEPT (steps between
// two states kept for the backward pass), PAIRS and QUADS (rows are aligned: 2 channels, 4 states are one load),
// SAVE (states are kept for the backward pass), ENDS (only what each span but the last of its direction does to a zero
// state), CARRY (the state at a span's beginning is read), CUT (shares end within chains).
#include "cuda_common.cuh"

#define GROUPS (STEPS / LANES)
#define PER_WARP (WARP / LANES)  // pairs of a warp
#define CHANNELS (2 * PER_WARP * WARPS)
#define PADDED (LANES * HELD)
#define QUARTER (PADDED / 4)  // float4 of B or C of a step
#define SIDE (WARPS * WARP)  // threads of a direction
#define TILE_QUADS (STEPS * 2 * QUARTER)
#define LOADS ((TILE_QUADS + SIDE - 1) / SIDE)  // of a thread

// What threads hand to each other of one tile.
struct Tile {
    float4 rows[DIRECTIONS][STEPS][2 * QUARTER];  // B, then C
    float4 steps[DIRECTIONS * WARPS][STEPS][PER_WARP];  // dt and dt u of a pair's first, of its second channel
};

struct States {
    float a[2][HELD], h[2][HELD];  // a: log2(e) A
};

// What the kernel is called with.
struct Problem {
    const Scalar *u, *delta;
    const float* A;
    const Scalar *B, *C;
    const float* skip;
    const Scalar* z;
    const float* bias;
    Scalar* out;
    float *carry, *decay, *states;
    int L, D, samples, blocks, span, spans;
    long long z_b, z_l, b_k, b_b, b_l, c_k, c_b, c_l;
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
    at.sign = at.side ? -1 : 1;
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
    long long tile[LOADS];  // elements from tile to tile
    int t;
};

DEVICE int quad(int i) { return (int)threadIdx.x % SIDE + i * SIDE; }
DEVICE int step_of(int i) { return quad(i) / (2 * QUARTER); }
DEVICE int column_of(int i) { return quad(i) % (2 * QUARTER); }
DEVICE bool has_quad(int i) { return TILE_QUADS % SIDE == 0 || quad(i) < TILE_QUADS; }

DEVICE Rows rows_of(const Scalar* B, const Scalar* C, long long b_l, long long c_l, int t, int sign) {
    Rows rows;
    rows.t = t;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        bool second = column_of(i) >= QUARTER;
        long long stride = second ? c_l : b_l;
        rows.at[i] = (second ? C : B) + (t + sign * step_of(i)) * stride + 4 * (column_of(i) % QUARTER);
        rows.tile[i] = sign * STEPS * stride;
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

// hand the inputs of a tile over; returns the sum of dt over own steps
DEVICE float2 hand_over(const Exchange& exchange, const Inputs& in, float2 bias) {
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        float2 u = unpack(in.u[g]), delta = unpack(in.delta[g]);
        float2 dt = make_float2(softplus(delta.x + bias.x), softplus(delta.y + bias.y));
        sum.x += dt.x;
        sum.y += dt.y;
        exchange.own[LANES * g * PER_WARP] = make_float4(dt.x, dt.x * u.x, dt.y, dt.y * u.y);
    }
#pragma unroll
    for (int i = 0; i < LOADS; i++)
        if (has_quad(i)) exchange.filled[i * SIDE] = unpack(in.rows[i]);
    return sum;
}

// the threads of a direction have handed over, and are done with the tile before
DEVICE void wait_for_side(int side) {
#if WARPS == 1
    __syncwarp();
#else
    if (side)  // two constants: of a number that it does not know the compiler reserves all 16
        barrier(2, SIDE);
    else
        barrier(1, SIDE);
#endif
}

// one step of the recurrence; returns the sums over the own states
DEVICE float2 advance(States& of, float4 step, const float* b, const float* c) {
    float2 y = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        of.h[0][i] = fmaf(exp2_fast(step.x * of.a[0][i]), of.h[0][i], step.y * b[i]);
        of.h[1][i] = fmaf(exp2_fast(step.z * of.a[1][i]), of.h[1][i], step.w * b[i]);
#if !ENDS
        y.x = fmaf(of.h[0][i], c[i], y.x);
        y.y = fmaf(of.h[1][i], c[i], y.y);
#endif
    }
    return y;
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

DEVICE float exchanged(float keep, float send, int lanes) { return keep + __shfl_xor_sync(ALL, send, lanes); }

// sums over the lanes of a pair of the values of as many steps: lane j gets those of step j
DEVICE float2 transposed_sums(float2 (&y)[LANES], int lane) {
#pragma unroll
    for (int half = LANES / 2; half > 0; half /= 2) {
        const int high = lane & half;
#pragma unroll
        for (int j = 0; j < half; j++) {
            y[j].x = exchanged(select(high, y[j + half].x, y[j].x), select(high, y[j].x, y[j + half].x), half);
            y[j].y = exchanged(select(high, y[j + half].y, y[j].y), select(high, y[j].y, y[j + half].y), half);
        }
    }
    return y[0];
}

// the steps of group g: with ENDS nothing comes of them but the states
DEVICE float2 advance_group(States& of, const Exchange& exchange, int g, int lane) {
    float2 y[LANES];
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        float b[HELD], c[HELD];
        const float* row = (const float*)exchange.rows + (LANES * g + j) * 2 * PADDED;
        read_held(b, row);
#if !ENDS
        read_held(c, row + PADDED);
#endif
        y[j] = advance(of, exchange.steps[(LANES * g + j) * PER_WARP], b, c);
    }
#if ENDS
    return y[0];
#else
    return transposed_sums(y, lane);
#endif
}

DEVICE float2 gated(float2 y, Pair gate) {
    float2 z = unpack(gate);
    return make_float2(y.x * z.x * sigmoid(z.x), y.y * z.y * sigmoid(z.y));
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
            of.a[c][i] = c < at.width && n < STATES ? A[row * STATES + n] * LOG2E : 0.0f;
            of.h[c][i] = carried && c < at.width ? carry[(long long)i * D + c] : 0.0f;
        }
    return of;
}

DEVICE float2 load_channels(const float* from, const Place& at, int D) {
    from += (long long)at.side * D + at.channel;
    return make_float2(at.width > 0 ? from[0] : 0.0f, at.width > 1 ? from[1] : 0.0f);
}

// the sum of dt over all steps: each of the lanes has that of its own; `more`: beside what is there
DEVICE void store_sum(float* to, float2 sum, const Place& at, bool more) {
    for (int lanes = 1; lanes < LANES; lanes *= 2) {
        sum.x = exchanged(sum.x, sum.x, lanes);
        sum.y = exchanged(sum.y, sum.y, lanes);
    }
    if (at.lane == 0 && at.width > 0) to[0] = (more ? to[0] : 0.0f) + sum.x;
    if (at.lane == 0 && at.width > 1) to[1] = (more ? to[1] : 0.0f) + sum.y;
}

struct Walk {
    Place at;
    Cursor steps, gates;  // of u, delta and out; of z
    Bounds bounds;
    Rows rows;
    Exchange exchange;
    States of;
    Inputs next;
    float2 skip, bias, sum, sum_ahead;  // of dt: up to this tile, and of the tile handed over
    const Scalar *u, *delta, *z;
    Scalar* out;
    float* states;
    int L, D, kept, end;  // kept: steps since the first whose state is kept; end: of those whose states are kept
};

DEVICE void load_next(Walk& walk, int ahead) {
    const Pair none = pack(NOT_THERE, NOT_THERE);
    load_steps(walk.next.u, walk.u, walk.steps, walk.steps, walk.bounds, ahead, Pair());
    load_steps(walk.next.delta, walk.delta, walk.steps, walk.steps, walk.bounds, ahead, none);
    load_rows(walk.next.rows, walk.rows, walk.at.sign, walk.L);
}

// one tile; `late`: the other direction has been here before
template <bool late>
DEVICE void walk_tile(Walk& walk, int tile) {
    Pair now[GROUPS], gate[GROUPS], partner[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) now[g] = walk.next.u[g];
#if SAVE
    if (walk.kept > 0 && walk.kept < walk.end && walk.kept % KEPT == 0)
        store_states(walk.states + (long long)(walk.kept / KEPT * PADDED) * walk.D, walk.of, walk.D, walk.at.width);
    walk.kept += STEPS;
#endif
#if !ENDS
    if (late) load_steps(gate, walk.z, walk.gates, walk.steps, walk.bounds, 0, Pair());
    if (late && DIRECTIONS == 2) load_steps(partner, walk.out, walk.steps, walk.steps, walk.bounds, 0, Pair());
#endif
    walk.sum = make_float2(walk.sum.x + walk.sum_ahead.x, walk.sum.y + walk.sum_ahead.y);
    load_next(walk, 1);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        float2 y = advance_group(walk.of, walk.exchange, g, walk.at.lane);
#if !ENDS
        float2 u = unpack(now[g]), other = late && DIRECTIONS == 2 ? unpack(partner[g]) : make_float2(0.0f, 0.0f);
        y = make_float2(fmaf(walk.skip.x, u.x, y.x) + other.x, fmaf(walk.skip.y, u.y, y.y) + other.y);
        unsigned byte = walk.steps.byte + g * walk.steps.group;
        store_pair(at_byte(walk.out, byte), late ? gated(y, gate[g]) : y, byte < walk.bounds.end, walk.bounds.second);
#endif
    }
    walk.steps.byte += GROUPS * walk.steps.group;
    walk.gates.byte += GROUPS * walk.gates.group;
    flip(walk.exchange, tile & 1);
    walk.sum_ahead = hand_over(walk.exchange, walk.next, walk.bias);
    flip_writes(walk.exchange, !(tile & 1));
    wait_for_side(walk.at.side);
}

// Walk the tiles [begin, end) of a chain, counted as both directions walk them, each in its own order.
DEVICE void walk_piece(const Problem& in, Tile* halves, int chain, int begin, int end) {
    const int L = in.L, D = in.D, tiles = in.span / STEPS, walked = in.spans - ENDS;
    const int groups = (D + CHANNELS - 1) / CHANNELS, y = chain / groups % walked, b = chain / groups / walked;
    const Place at = place_of(chain % groups, D);
    const int index = at.side && !ENDS ? in.spans - 1 - y : y;  // in the direction's order
    const int first = in.span * index + begin * STEPS, t = at.side ? in.span * in.spans - 1 - first : first;
    const int own = t + at.sign * at.lane;
    const long long kb = (long long)at.side * in.samples + b;
    float* carry = in.carry + ((kb * in.spans + index) * PADDED + at.lane * HELD) * D + at.channel;
    Walk walk;
    walk.at = at;
    walk.L = L, walk.D = D, walk.end = in.blocks * KEPT;
    walk.u = in.u + kb * L * D, walk.delta = in.delta + kb * L * D;
    walk.out = in.out + (long long)b * L * D, walk.z = in.z + b * in.z_b;
    walk.states = in.states + (kb * in.blocks * PADDED + at.lane * HELD) * D + at.channel;
    walk.kept = first + (at.side ? walk.end - in.span * in.spans : 0);
    walk.bounds = {at.width ? (unsigned)L * D * (unsigned)sizeof(Scalar) : 0, at.width > 1};
    walk.steps = cursor_of(at, own, D), walk.gates = cursor_of(at, own, (int)in.z_l);
    walk.rows = rows_of(in.B + at.side * in.b_k + b * in.b_b, in.C + at.side * in.c_k + b * in.c_b, in.b_l, in.c_l, t,
                        at.sign);
    walk.exchange = exchange_of(halves[0], at);
    walk.of = first_states(in.A, carry, at, D, CARRY || begin > 0);
#if ENDS
    KEEP("+l", walk.u);
    KEEP("+l", walk.delta);
#else
    KEEP("+l", walk.out);
#endif
    KEEP("+r", walk.steps.group);
    walk.skip = load_channels(in.skip, at, D), walk.bias = load_channels(in.bias, at, D);
    walk.sum = make_float2(0.0f, 0.0f);
#if SAVE
    if (first == 0) store_states(walk.states, walk.of, D, at.width);
#endif
    load_next(walk, 0);
    walk.sum_ahead = hand_over(walk.exchange, walk.next, walk.bias);
    flip_writes(walk.exchange, false);
    wait_for_side(at.side);
    // from here on the other direction has been before
    const int meet = DIRECTIONS == 2 && !ENDS ? min(max(tiles / 2, begin), end) - begin : 0;
    for (int tile = 0; tile < meet; tile++) walk_tile<false>(walk, tile);
    if (DIRECTIONS == 2 && !ENDS) __syncthreads();
    for (int tile = meet; tile < end - begin; tile++) walk_tile<true>(walk, tile);
    if (ENDS || end < tiles) store_states(carry, walk.of, D, at.width);
#if ENDS
    store_sum(in.decay + (kb * in.spans + index) * D + at.channel, walk.sum, at, begin > 0);
#endif
}

// carry (k, b, spans, PADDED, d): with ENDS the final states are written, with CARRY the first ones are read;
// decay (k, b, spans, d): with ENDS, the sum of dt; states (k, b, blocks, PADDED, d): those before every KEPT of
// KEPT * blocks steps, at the end of which direction 0 has steps that are not there, direction 1 at the beginning;
// share: tiles, of all chains, that a block of threads walks, at least a chain; flags: zeros, one a chain
extern "C" __global__ void __launch_bounds__(DIRECTIONS* SIDE, BLOCKS)
scan_kernel(const Scalar* u, const Scalar* delta, const float* A, const Scalar* B, const Scalar* C, const float* skip,
            const Scalar* z, const float* bias, Scalar* out, float* carry, float* decay, float* states,
            unsigned* flags, long long share, long long L, long long D, long long samples, long long blocks,
            long long span, long long spans, long long z_b, long long z_l, long long b_k, long long b_b, long long b_l,
            long long c_k, long long c_b, long long c_l) {
    __shared__ Tile halves[2];
    const Problem in = {u,      delta,  A,           B,           C,         skip,       z,   bias, out, carry, decay,
                        states, (int)L, (int)D,      (int)samples, (int)blocks, (int)span, (int)spans,
                        z_b,    z_l,    b_k,         b_b,         b_l,       c_k,        c_b, c_l};
    const int tiles = in.span / STEPS;
#if CUT
    const int all = (in.D + CHANNELS - 1) / CHANNELS * (in.spans - ENDS) * in.samples * tiles;
    // whoever waits has the higher index than whom it waits for, so that this one is running
    int from = (int)((gridDim.x - 1 - blockIdx.x) * share);
    const int until = min(from + (int)share, all);
    while (from < until) {
        RENEW(from);
        const int chain = from / tiles, last = (chain + 1) * tiles, to = min(until, last);
        if (to < last) {
            if (threadIdx.x == 0) await(flags + chain);
            __syncthreads();
        }
        walk_piece(in, halves, chain, last - to, last - from);
        __syncthreads();
        if (from > chain * tiles && threadIdx.x == 0) publish(flags + chain);
        from = to;
    }
#else
    walk_piece(in, halves, blockIdx.x, 0, tiles);
#endif
}
KERNEL(scan_kernel)
