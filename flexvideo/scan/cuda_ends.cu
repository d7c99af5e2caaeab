// The pass before the selective scan forward where time is split into spans: the states that these begin with.
//
// A span leaves of a zero state the sum over its steps of exp(A S) dt u B, S being the sum of dt after the step: no
// recurrence, so that it is added up from the end of the span back to its beginning, as far as exp(A S) has become zero
// in every state of the block's direction. What is older would add exactly nothing. As a VideoMamba begins (dt about
// log 2, A from -1 to -16) that is after 128 steps, whatever the span; a single state of a block that remembers for
// ever takes it all the way, at 0.7 of the walk's instructions. What is not looked at cannot show as NaN either: a NaN
// or infinity so far from the end of its span that any number would be forgotten there fills the rest of the span, but
// not the spans after it.
//
// Macros: those of cuda_forward.cu but for the last three.
#define ENDS 1  // of a tile B alone, and what a direction walks is the other way round
#include "cuda_tile.cuh"

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
    for (int tile = 0; !all_of_side(at.side, SIDE, forgotten(of, passed, at)) && tile < span / STEPS; tile++) {
        load_next(feed, 1);
        add_tile(of, passed, feed.exchange);
        pass_on(feed, tile);
    }
    store_states(carry + (row * PADDED + at.lane * HELD) * D + at.channel, of, d, at.width);
    if (at.lane == 0 && at.width > 0) decay[row * D + at.channel] = passed.x;
    if (at.lane == 0 && at.width > 1) decay[row * D + at.channel + 1] = passed.y;
}
KERNEL(ends_kernel)
