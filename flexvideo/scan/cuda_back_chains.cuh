// How cuda_backward.cu and cuda_back_ends.cu deal out chains to blocks of threads; each brings its own walk_blocks.
#pragma once
#include "cuda_back.cuh"

// Walk positions [begin, end) of a chain; position 0 is the last block of the span in the direction's own order. With
// ENDS chains are whole, and none is of the first span of its direction, before which nobody asks.
DEVICE void piece(const Inputs& in, const Outputs& to, Place me, int chain, int parts, int span, int spans, int begin,
                  int end) {
    const int walked = spans - ENDS, part = chain % parts, place = chain / parts % walked;
    const int c = ENDS ? (me.k == 0 ? place + 1 : walked - 1 - place) : place, index = me.k == 0 ? c : spans - 1 - c;
    me.b = chain / parts / walked;
    me.d = part * CHANNELS + me.warp * 16 + me.lane / 16 * 8 + me.lane % 4 * 2;
    me.on = me.d < in.D, me.second = me.d + 1 < in.D;
    Long chain_row = ((Long)me.b * spans + c) * DIRECTIONS + me.k;
    Long carry_row = ((Long)me.k * in.samples + me.b) * spans + index;
    float2 bias = load_two(in.bias + (Long)me.k * in.D + me.d, me);
    float2 skip = load_two(in.skip + (Long)me.k * in.D + me.d, me);
    constants_of(me) = make_float4(bias.x, bias.y, skip.x, skip.y);
    Walk w = begin_walk(in, to, me, chain_row, carry_row, begin > 0);
    int first = c * span, length = min(span, (int)in.rows - first);
    if (me.k == 1) first = (int)in.rows - first - length;
    walk_blocks(in, to, me, w, part, first, length, begin, end);
    end_walk(in, to, me, w, chain_row, carry_row);
}

// carry (k, b, spans, KEPT_STATES, d), decay (k, b, spans, d): what comes of zero at the end of each span at its
// beginning, and the sum of dt over the span or as much as makes every decay zero. Sums of a chain: da (b * spans, k,
// d, n), dskip, dbias (b * spans, k, d). Sums of a block of channels: dbc (parts, k, b, rows / 2, 2, PADDED / 2, 2
// states, 2 steps). share: blocks of 64 steps, of all chains, that a block of threads does, at least a chain. flags:
// zeros, one a chain.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) scan_backward(
    const Scalar* grad, const Scalar* u, const Scalar* delta, const float* A, const Scalar* B, const Scalar* C,
    const float* skip, const Scalar* z, const float* bias, const float* states, float* carry, float* decay, Scalar* du,
    Scalar* ddelta, Scalar* dz, Scalar* out, float* da, float* dbc, float* dskip, float* dbias, float4* far,
    unsigned* flags, Long L, Long D, Long samples, Long rows, Long span, Long spans, Long share, Long b_k, Long b_b,
    Long b_l, Long c_k, Long c_b, Long c_l, Long z_b, Long z_l) {
    DYNAMIC_SHARED(shared);
    Inputs in = {grad, u, delta, A, B, C, skip, z, bias, states, (int)L, (int)D, (int)rows, (int)samples,
                 b_k, b_b, b_l, c_k, c_b, c_l, z_b, z_l};
    Outputs to = {carry, decay, du, ddelta, dz, out, da, dbc, dskip, dbias};
    // shuffles, so that the compiler sees one warp number in a warp, and does not find the lane again and again
    int lane = __shfl_sync(ALL, (int)threadIdx.x % WARP, threadIdx.x % WARP);
    int any = __shfl_sync(ALL, (int)threadIdx.x / WARP, 0);
    Place me;
    me.lane = lane, me.own = lane / 4 % 4, me.warp = any % WARPS, me.k = any / WARPS;
    me.mine = DIRECTIONS * KEPT * ROW + any * SPACE + lane, me.ours = me.mine - me.own * STEPS;
    me.row = me.k * KEPT * 2 * PADDED + me.own * HELD;
#if FAR
    me.aside = far + ((Long)blockIdx.x * DIRECTIONS * WARPS + any) * TILES * SLOT;
#else
    me.aside = shared + (me.mine - lane + HAND);
#endif
    int parts = (int)((D + CHANNELS - 1) / CHANNELS), whole = (int)(span / KEPT);
    int all = (int)(parts * (spans - ENDS) * samples) * whole;
    // whoever waits has the higher index than whom it waits for, so that this one is running
    int from = (int)((gridDim.x - 1 - blockIdx.x) * share), end = min(from + (int)share, all);
    while (from < end) {
        int chain = from / whole, last = (chain + 1) * whole, until = min(end, last);
        if (until < last) {
            if (threadIdx.x == 0) await(flags + chain);
            __syncthreads();
        }
        piece(in, to, me, chain, parts, (int)span, (int)spans, last - until, last - from);
        if (from > chain * whole) {
            __syncthreads();
            if (threadIdx.x == 0) publish(flags + chain);
        }
        from = until;
    }
}
KERNEL(scan_backward)
