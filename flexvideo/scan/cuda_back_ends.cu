// The pass before the gradients where time is split into spans: what each of them hands back to the one before it.
//
// Of a zero gradient at its end that is the sum over its steps of exp(A S) C times the gradient of y, S being the sum
// of dt up to the step, added up from the beginning of the span as far as exp(A S) has become zero in all states of the
// direction's channels: what follows would add exactly nothing (128 steps where A is -1 to -16 and dt log 2). What is
// not looked at does not show as NaN before the span.
//
// Macros: those of cuda_backward.cu, all of which it is given.
#define ENDS 1
#include "cuda_back.cuh"

// Whether nothing that lies further on in the span than this sum of dt is left in the own states.
DEVICE bool forgotten(const Place& me, const Walk& w) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        if (me.own * HELD + i >= STATES) continue;
        all = all && (!me.on || w.a[0][i] * w.total[0] <= GONE);
        all = all && (!me.on || !me.second || w.a[1][i] * w.total[1] <= GONE);
    }
    return all;
}

// What the steps of a tile, earliest first, hand back to the beginning of the span.
DEVICE void tile_ends(const Place& me, Walk& w, const Own& x, int tile) {
    hand_over(me, x);
    hand_grad_over(me, x);
    __syncwarp();
#pragma unroll
    for (int p = 0; p < STEPS; p++) {
        float4 y = steps_of(me, p);
        float2 gy = grads_of(me, p);
        float cs[HELD];
        load_states(cs, row_of(me, tile * STEPS + p) + PADDED);
        w.total[0] += y.x, w.total[1] += y.y;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            w.back[0][i] = fmaf(exp2_fast(w.total[0] * w.a[0][i]), gy.x * cs[i], w.back[0][i]);
            w.back[1][i] = fmaf(exp2_fast(w.total[1] * w.a[1][i]), gy.y * cs[i], w.back[1][i]);
        }
    }
    __syncwarp();
}

DEVICE void block_ends(const Inputs& in, const Place& me, Walk& w, int s) {
    const Tiles tiles = tiles_of(in, me, s);
    Cursor cursor = cursor_at(in, me, s + tiles.first * STEPS);
    Own next = load_own(in, me, cursor, true);
    fill_rows(in, me, s);
    wait_for_side(me.k, GROUP);
#pragma unroll 1
    for (int tile = tiles.first; tile <= tiles.last; tile++) {
        Own x = next;
        move(cursor, 1);
        if (tile < tiles.last) next = load_own(in, me, cursor, true);
        tile_ends(me, w, x, tile);
    }
}

// The blocks of a span, earliest first, as far as anything is left.
DEVICE void walk_blocks(const Inputs& in, const Outputs& to, const Place& me, Walk& w, int part, int first, int length,
                        int begin, int end) {
    for (int block = 0; block < length / KEPT; block++) {
        block_ends(in, me, w, first + block * KEPT);
        if (all_of_side(me.k, GROUP, forgotten(me, w))) break;
    }
}

#include "cuda_back_chains.cuh"
