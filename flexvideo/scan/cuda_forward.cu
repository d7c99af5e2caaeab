// The selective scan forward, both directions in one launch.
//
// A thread holds HELD = N / LANES states of 2 adjacent channels (a pair): 4 lanes share a pair, a warp holds 16
// channels of one direction. A block has WARPS warps a direction: direction 0 walks up, direction 1 down, by negative
// strides; whichever comes second to a time adds what the other left in `out`, and gates. Time goes in tiles of STEPS:
// while one tile is worked on, the next one's inputs are on their way to registers, and are then handed over through
// shared memory: B and C as float32 (all channels of a block need them), and dt and dt u, which each lane finds for its
// own pair and every LANES steps, so that softplus, gate, loads and stores are spread over the lanes. Sums over the
// states times C go over the lanes transposed: of 4, 8 values in, 2 out, in the lane that has the inputs of that step.
//
// Where channels are too few for the device, time is split into spans. A span leaves of a zero state the sum over its
// steps of exp(A S) dt u B, S being the sum of dt after the step: no recurrence, so that ENDS adds it up from the end
// of the span back to its beginning, and stops where exp(A S) has become zero in every state of the block's direction.
// What is older would add exactly nothing. As a VideoMamba begins (dt about log 2, A from -1 to -16) that is after 128
// steps, whatever the span; a single state of a block that remembers for ever takes it all the way, at 0.7 of the
// walk's instructions. What is not looked at cannot show as NaN either: a NaN or infinity so far from the end of its
// span that any number would be forgotten there fills the rest of the span, but not the spans after it.
//
// A chain is the walk of both directions over one span by the channels of a block. 576 of them on 132 multiprocessors
// leave most of these with 4 and some with 5, for which all wait. So work is dealt out in equal shares of tiles, at
// least a chain: there is no hurrying one, since it is walked step by step. Where a share ends the chain is cut: at the
// same place of both walks, hence at mirrored times. So whatever the second piece needs of the other direction was left
// in `out` by itself or by the first piece, whose states it waits for anyway: one flag a chain. The second piece is the
// last that its block of threads works on, the first the first of its own, so that it is there by then; and blocks wait
// only for those of a lower index, which have begun. States are handed over in float32: the same bits as uncut.
//
// Counted in the assembly for sm_90 (NVRTC 13.0, bfloat16, N = 16, tiles of 16): 96 registers, so 5 blocks of 4 warps
// a multiprocessor; none is spilled within a tile. A warp's update takes 8.3 instructions before the directions meet
// and 9.05 after it (4 of them are the recurrence and its exponential, 1 is y), or 8.55 and 9.4 if states are kept: 2.1
// to 2.4 clocks of a multiprocessor, beside 2.1 and 2.4 of its exponentials and 2.3 of shared and global memory if a
// 128-bit load of a warp takes 4. With ENDS it is 6.4. Float32, whose pairs are two registers, spills 20 a tile.
//
// Measured on an H100 (1152 channels, bfloat16, N = 16, as a CUDA graph; ms with states kept / without): 16 x 3137
// tokens 0.873 / 0.854, 8 x 6273 0.865 / 0.870, 4 x 12545 0.881 / 0.880, 1 x 100353 1.700 / 1.697, 1 x 3137 0.095 /
// 0.096. Tensor cores for the sums over the states were tried: 1.4 instructions less, and yet up to 5 % longer, since
// exponentials are what bounds the kernel. Tiles of 8 are 0.3 to 0.6 instructions more, and 4 to 8 % longer.
//
// Macros: DTYPE, DIRECTIONS, STATES (N), HELD, STEPS, WARPS, BLOCKS (of a multiprocessor), KEPT (steps between
// two states kept for the backward pass), PAIRS and QUADS (rows are aligned: 2 channels, 4 states are one load),
// ENDS (only what each span but the last of its direction does to a zero state); without it SAVE (states are kept for
// the backward pass), CARRY (the state at a span's beginning is read).
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

#if ENDS
#define GONE -127.0f  // exponentials of 2 flush to zero here

// whether nothing that lies further back than this sum of dt is left in the own states
DEVICE bool forgotten(const States& of, float2 passed, const Place& at) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        if (at.lane * HELD + i >= STATES) continue;
        all = all && (at.width < 1 || of.a[0][i] * passed.x <= GONE);
        all = all && (at.width < 2 || of.a[1][i] * passed.y <= GONE);
    }
    return all;
}

// waits as wait_for_side, and votes
DEVICE bool all_of_side(int side, bool yes) { return side ? barrier_all(2, SIDE, yes) : barrier_all(1, SIDE, yes); }

// what a tile, later steps first, leaves at the end of the span; `passed`: the sum of dt from there to here
DEVICE void add_tile(States& of, float2& passed, const Exchange& exchange) {
#pragma unroll
    for (int p = 0; p < STEPS; p++) {
        float b[HELD];
        read_held(b, (const float*)(exchange.rows + p * ROW));
        const float4 step = exchange.steps[p * PER_WARP];
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            of.h[0][i] = fmaf(exp2_fast(passed.x * of.a[0][i]), step.y * b[i], of.h[0][i]);
            of.h[1][i] = fmaf(exp2_fast(passed.y * of.a[1][i]), step.w * b[i], of.h[1][i]);
        }
        passed.x += step.x, passed.y += step.z;
    }
}

// carry (k, b, spans, PADDED, d): the states that zero states at the beginning of each span but the last of its
// direction become; decay (k, b, spans, d): the sum of dt over the span, or as much as makes every decay zero
extern "C" __global__ void __launch_bounds__(DIRECTIONS* SIDE, BLOCKS)
ends_kernel(const Scalar* u, const Scalar* delta, const float* A, const Scalar* B, const float* bias, float* carry,
            float* decay, long long L, long long D, long long samples, long long span, long long spans, long long b_k,
            long long b_b, long long b_l) {
    __shared__ Tile halves[2];
    const int d = (int)D, groups = (d + CHANNELS - 1) / CHANNELS, walked = (int)spans - 1;
    const int index = blockIdx.x / groups % walked, b = blockIdx.x / groups / walked;
    const Place at = place_of(blockIdx.x % groups, d);
    const int last = (int)span * (index + 1) - 1;
    const long long kb = at.side * samples + b, row = kb * spans + index;
    const Scalar* rows = B + at.side * b_k + b * b_b;
    Feed feed = feed_of(u + kb * L * D, delta + kb * L * D, rows, rows, bias, b_l, b_l, (int)L, d, halves[0], at,
                        at.side ? (int)(span * spans) - 1 - last : last);
    States of = first_states(A, carry, at, d, false);
    float2 passed = make_float2(0.0f, 0.0f);
    start(feed);
    for (int tile = 0; !all_of_side(at.side, forgotten(of, passed, at)) && tile < span / STEPS; tile++) {
        load_next(feed, 1);
        add_tile(of, passed, feed.exchange);
        pass_on(feed, tile);
    }
    store_states(carry + (row * PADDED + at.lane * HELD) * D + at.channel, of, d, at.width);
    if (at.lane == 0 && at.width > 0) decay[row * D + at.channel] = passed.x;
    if (at.lane == 0 && at.width > 1) decay[row * D + at.channel + 1] = passed.y;
}
KERNEL(ends_kernel)
#else
// What the kernel is called with.
struct Problem {
    const Scalar *u, *delta;
    const float* A;
    const Scalar *B, *C;
    const float* skip;
    const Scalar* z;
    const float* bias;
    Scalar* out;
    float *carry, *states;
    int L, D, samples, blocks, span, spans;
    long long z_b, z_l, b_k, b_b, b_l, c_k, c_b, c_l;
};

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
DEVICE float2 advance(States& of, float4 step, const float (&b)[HELD], const float (&c)[HELD]) {
    float2 y = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        of.h[0][i] = fmaf(exp2_fast(step.x * of.a[0][i]), of.h[0][i], step.y * b[i]);
        of.h[1][i] = fmaf(exp2_fast(step.z * of.a[1][i]), of.h[1][i], step.w * b[i]);
        y = make_float2(fmaf(of.h[0][i], c[i], y.x), fmaf(of.h[1][i], c[i], y.y));
    }
    return y;
}

DEVICE float exchanged(float keep, float send, int lanes) { return keep + __shfl_xor_sync(ALL, send, lanes); }

// sums over the lanes of a pair of the values of as many steps: lane j gets those of step j
DEVICE float2 own_sums(float2 (&y)[LANES], int lane) {
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

// the steps of group g; returns the sums of the lane's own
DEVICE float2 advance_group(States& of, const Exchange& exchange, int g, int lane) {
    float2 y[LANES];
#pragma unroll
    for (int j = 0; j < LANES; j++) {
        float b[HELD], c[HELD];
        const float4* row = exchange.rows + (LANES * g + j) * ROW;
        read_held(b, (const float*)row);
        read_held(c, (const float*)(row + QUARTER));
        y[j] = advance(of, exchange.steps[(LANES * g + j) * PER_WARP], b, c);
    }
    return own_sums(y, lane);
}

DEVICE float2 gated(float2 y, Pair gate) {
    float2 z = unpack(gate);
    return make_float2(y.x * z.x * sigmoid(z.x), y.y * z.y * sigmoid(z.y));
}

struct Walk {
    Feed feed;
    Cursor gates;  // of z
    States of;
    float2 skip;
    const Scalar* z;
    Scalar* out;
    float* states;
    int D, kept, end;  // kept: steps since the first whose state is kept; end: of those whose states are kept
};

// one tile; `late`: the other direction has been here before
template <bool late>
DEVICE void walk_tile(Walk& walk, int tile) {
    Feed& feed = walk.feed;
    Pair now[GROUPS], gate[GROUPS], partner[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) now[g] = feed.next.u[g];
#if SAVE
    if (walk.kept > 0 && walk.kept < walk.end && walk.kept % KEPT == 0)
        store_states(walk.states + (long long)(walk.kept / KEPT * PADDED) * walk.D, walk.of, walk.D, feed.at.width);
    walk.kept += STEPS;
#endif
    if (late) load_steps(gate, walk.z, walk.gates, feed.steps, feed.bounds, 0, Pair());
    if (late && DIRECTIONS == 2) load_steps(partner, walk.out, feed.steps, feed.steps, feed.bounds, 0, Pair());
    load_next(feed, 1);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        float2 y = advance_group(walk.of, feed.exchange, g, feed.at.lane);
        float2 u = unpack(now[g]), other = late && DIRECTIONS == 2 ? unpack(partner[g]) : make_float2(0.0f, 0.0f);
        other = make_float2(fmaf(walk.skip.x, u.x, other.x), fmaf(walk.skip.y, u.y, other.y));
        y = make_float2(y.x + other.x, y.y + other.y);
        unsigned byte = feed.steps.byte + g * feed.steps.group;
        store_pair(at_byte(walk.out, byte), late ? gated(y, gate[g]) : y, byte < feed.bounds.end, feed.bounds.second);
    }
    walk.gates.byte += GROUPS * walk.gates.group;
    pass_on(feed, tile);
    wait_for_side(feed.at.side);
}

// Walk the tiles [begin, end) of a chain, counted as both directions walk them, each in its own order.
DEVICE void walk_piece(const Problem& in, Tile* halves, int chain, int begin, int end) {
    const int L = in.L, D = in.D, tiles = in.span / STEPS;
    const int groups = (D + CHANNELS - 1) / CHANNELS, y = chain / groups % in.spans, b = chain / groups / in.spans;
    const Place at = place_of(chain % groups, D);
    const int index = at.side ? in.spans - 1 - y : y;  // in the direction's order
    const int first = in.span * index + begin * STEPS, t = at.side ? in.span * in.spans - 1 - first : first;
    const long long kb = (long long)at.side * in.samples + b;
    float* carry = in.carry + ((kb * in.spans + index) * PADDED + at.lane * HELD) * D + at.channel;
    Walk walk;
    walk.feed = feed_of(in.u + kb * L * D, in.delta + kb * L * D, in.B + at.side * in.b_k + b * in.b_b,
                        in.C + at.side * in.c_k + b * in.c_b, in.bias, in.b_l, in.c_l, L, D, halves[0], at, t);
    walk.D = D, walk.end = in.blocks * KEPT;
    walk.out = in.out + (long long)b * L * D, walk.z = in.z + b * in.z_b;
    walk.states = in.states + (kb * in.blocks * PADDED + at.lane * HELD) * D + at.channel;
    walk.kept = first + (at.side ? walk.end - in.span * in.spans : 0);
    walk.gates = cursor_of(at, t + at.sign * at.lane, (int)in.z_l);
    walk.of = first_states(in.A, carry, at, D, CARRY || begin > 0);
    KEEP("+l", walk.out);
    GLOBAL(walk.out);
    walk.skip = load_channels(in.skip, at, D);
#if SAVE
    if (first == 0) store_states(walk.states, walk.of, D, at.width);
#endif
    start(walk.feed);
    wait_for_side(at.side);
    // from here on the other direction has been before: of a tile in the middle, direction 0 before direction 1
    const int meet = DIRECTIONS == 2 ? min(max((tiles + 1 - at.side) / 2, begin), end) - begin : 0;
    for (int tile = 0; tile < meet; tile++) walk_tile<false>(walk, tile);
    if (DIRECTIONS == 2) __syncthreads();
    for (int tile = meet; tile < end - begin; tile++) walk_tile<true>(walk, tile);
    if (end < tiles) store_states(carry, walk.of, D, at.width);
}

// carry (k, b, spans, PADDED, d): the states that spans begin with, read with CARRY, or that cut chains go on from;
// states (k, b, blocks, PADDED, d): those before every KEPT of KEPT * blocks steps, at the end of which direction 0 has
// steps that are not there, direction 1 at the beginning; share: tiles, of all chains, that a block of threads walks,
// at least a chain; flags: zeros, one a chain, unless a share is a chain
extern "C" __global__ void __launch_bounds__(DIRECTIONS* SIDE, BLOCKS)
scan_kernel(const Scalar* u, const Scalar* delta, const float* A, const Scalar* B, const Scalar* C, const float* skip,
            const Scalar* z, const float* bias, Scalar* out, float* carry, float* states, unsigned* flags,
            long long share, long long L, long long D, long long samples, long long blocks, long long span,
            long long spans, long long z_b, long long z_l, long long b_k, long long b_b, long long b_l, long long c_k,
            long long c_b, long long c_l) {
    __shared__ Tile halves[2];
    const Problem in = {u,   delta, A,      B,      C,      skip,         z,           bias,      out,        carry,
                        states, (int)L, (int)D, (int)samples, (int)blocks, (int)span, (int)spans,
                        z_b, z_l,   b_k,    b_b,    b_l,    c_k,          c_b,         c_l};
    const int tiles = in.span / STEPS;
    const int all = (in.D + CHANNELS - 1) / CHANNELS * in.spans * in.samples * tiles;
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
}
KERNEL(scan_kernel)
#endif
