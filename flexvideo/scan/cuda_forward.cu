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
// Where channels are too few for the device, time is split into spans; cuda_ends.cu finds what these begin with.
//
// A chain is the walk of both directions over one span by the channels of a block. 576 of them on 132 multiprocessors
// leave most of these with 4 and some with 5, for which all wait. So work is dealt out in equal shares of tiles, at
// least a chain: there is no hurrying one, since it is walked step by step. Where a share ends the chain is cut: at the
// same place of both walks, hence at mirrored times. So whatever the second piece needs of the other direction was left
// in `out` by itself or by the first piece, whose states it waits for anyway: one flag a chain. The second piece is the
// last that its block of threads works on, the first the first of its own, so that it is there by then; and blocks wait
// only for those of a lower index, which have begun. States are handed over in float32: the same bits as uncut.
//
// Counted in the assembly for sm_90 (NVRTC 13.0, bfloat16, N = 16, tiles of 16, 4 warps a direction): 128 registers, so
// 2 blocks of 8 warps a multiprocessor; none is spilled. A warp's update takes 8.1 instructions before the directions
// meet and 8.8 after it (4 of them are the recurrence and its exponential, 1 is y), or 8.35 and 9.1 if states are kept:
// 2.0 to 2.3 clocks of a multiprocessor, beside 2.1 and 2.3 of its exponentials and 2.2 of shared and global memory if
// a 128-bit load of a warp takes 4. In cuda_ends.cu it is 6.4.
//
// Measured on an H100 (1152 channels, bfloat16, N = 16, as a CUDA graph; ms with states kept / without): 16 x 3137
// tokens 0.787 / 0.777, 1 x 3137 0.095 / 0.097: 3.5 clocks an update, so that none of these three alone is the bound.
// Blocks of 2 warps a direction read halves of lines of 128 bytes, which takes longer; tensor cores for the sums over
// the states save 1.4 instructions and no time; tiles of 8 are 0.3 to 0.6 instructions more.
//
// Macros: DTYPE, DIRECTIONS, STATES (N), HELD, STEPS, WARPS, BLOCKS (of a multiprocessor), PAIRS and QUADS (rows are
// aligned: 2 channels, 4 states are one load); SAVE (states are kept for the backward pass), KEPT (steps between two of
// them), CARRY (the state at a span's beginning is read).
#define ENDS 0
#include "cuda_tile.cuh"

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
    wait_for_side(feed.at.side, SIDE);
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
    wait_for_side(at.side, SIDE);
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
