// What cuda_backward.cu and cuda_back_ends.cu share: where a thread is, what it reads, and what it hands to others.
#pragma once
#include "cuda_common.cuh"

#ifndef CUDA_ON_CPU
// makes the compiler find again what it could know of x, instead of keeping it in registers
#if DTYPE == 0
static __device__ __forceinline__ void forget(float2& x) { asm volatile("" : "+f"(x.x), "+f"(x.y)); }
#else
static __device__ __forceinline__ void forget(unsigned& x) { asm volatile("" : "+r"(x)); }
#endif
#endif

#define STEPS 4   // of a tile, one for each of the lanes that share a pair of channels
#define KEPT 64   // steps between two states kept by the forward pass
#define TILES (KEPT / STEPS)
#define PADDED (4 * HELD)
#define ROW (PADDED / 2)   // float4 of B and C at one step, or of gradients of one of them at two steps
#define QUADS (HELD / 2)   // float4 of the states of a lane
#define SLOT (QUADS * WARP)  // float4 put aside for a tile: states of a warp, later two halves of sums
#define HAND (3 * WARP)  // float4 that the lanes of a warp hand to each other
#define SPACE (HAND + (FAR || ENDS ? 0 : TILES * SLOT))  // float4 of a warp
#define CHANNELS (16 * WARPS)
#define GROUP (WARPS * WARP)  // threads of a direction
#define THREADS (DIRECTIONS * GROUP)
#define SHARE ((KEPT + WARPS - 1) / WARPS)  // rows of B and C of a block of 64 steps that a warp fetches

typedef long long Long;

// minus infinity, twice
#if DTYPE == 0
#define NONE pack(-__uint_as_float(0x7f800000u), -__uint_as_float(0x7f800000u))
#elif DTYPE == 1
#define NONE 0xfc00fc00u
#else
#define NONE 0xff80ff80u
#endif

struct Inputs {
    const Scalar *grad, *u, *delta;
    const float* A;
    const Scalar *B, *C;
    const float* skip;
    const Scalar* z;
    const float *bias, *states;
    int L, D, rows, samples;
    Long b_k, b_b, b_l, c_k, c_b, c_l, z_b, z_l;
};

struct Outputs {
    float *carry, *decay;
    Scalar *du, *ddelta, *dz, *out;
    float *da, *dbc, *dskip, *dbias;
};

// Where a thread is: `d` and `d + 1` are its channels.
struct Place {
    int lane, warp, k, own, d, b;
    bool on, second;
    int mine, ours, row;  // in shared memory: of the lane, the first lane of its channels, its states of the first B
    float4* aside;        // of the warp
};

// A lane's own step of a tile: its time, and where it is in tensors like u, grad, z; `far`, `far_z` to the next tile.
struct Cursor {
    int t, ahead, far, far_z;
    Long at, at_out, at_z;
};

// What a walk carries along; `a` is A log2(e).
struct Walk {
    float a[2][HELD], back[2][HELD], da[2][HELD], dskip[2], dbias[2], total[2];
};

// A lane's inputs at its own step of a tile.
struct Own {
    Pair u, delta, grad, z;
};

DEVICE void load_states(float (&x)[HELD], const float* from) {
#pragma unroll
    for (int i = 0; i < HELD; i += 4) {
        float4 q = *(const float4*)(from + i);
        x[i] = q.x, x[i + 1] = q.y, x[i + 2] = q.z, x[i + 3] = q.w;
    }
}

DEVICE Cursor cursor_at(const Inputs& in, const Place& me, int s) {
    Cursor x;
    x.t = me.k == 0 ? s + me.own : in.rows - 1 - s - me.own;
    x.ahead = me.k == 0 ? STEPS : -STEPS;
    x.at_out = ((Long)me.b * in.L + x.t) * in.D + me.d;
    x.at = x.at_out + (Long)me.k * in.samples * in.L * in.D;
    x.at_z = me.b * in.z_b + x.t * in.z_l + me.d;
    x.far = x.ahead * in.D;
    x.far_z = x.ahead * (int)in.z_l;
    return x;
}

DEVICE void move(Cursor& x, int tiles) {
    x.t += tiles * x.ahead;
    x.at += tiles * x.far, x.at_out += tiles * x.far, x.at_z += tiles * x.far_z;
}

DEVICE bool inside(const Inputs& in, const Place& me, const Cursor& x) {
    return (unsigned)x.t < (unsigned)in.L && me.on;
}

// Steps that are not there have a dt of softplus(-inf) = 0 and change nothing.
DEVICE Own load_own(const Inputs& in, const Place& me, const Cursor& x, bool all) {
    bool here = inside(in, me, x);
    Own y;
    y.u = load_pair(in.u + x.at, here, me.second, Pair());
    y.delta = load_pair(in.delta + x.at, here, me.second, NONE);
    if (!all) return y;
    y.grad = load_pair(in.grad + x.at_out, here, me.second, Pair());
    y.z = load_pair(in.z + x.at_z, here, me.second, Pair());
    return y;
}

DEVICE float2 load_two(const float* from, const Place& me) {
    return make_float2(me.on ? from[0] : 0.0f, me.on && me.second ? from[1] : 0.0f);
}

// What lanes hand to each other: dt and dt u of their own steps, and the gradient of y. Beside that they keep for
// themselves sigmoid(z), and bias and skip.
DEVICE float4& steps_of(const Place& me, int p) {
    DYNAMIC_SHARED(shared);
    return shared[me.ours + STEPS * p];
}
DEVICE float2& grads_of(const Place& me, int p) { return *(float2*)(&steps_of(me, p) + WARP); }
DEVICE float4& own_step(const Place& me) {
    DYNAMIC_SHARED(shared);
    return shared[me.mine];
}
DEVICE float4& own_grad(const Place& me) { return (&own_step(me))[WARP]; }
DEVICE float4& constants_of(const Place& me) { return (&own_step(me))[2 * WARP]; }

// The lane's states of B at a step of the block of 64 steps; those of C are PADDED further.
DEVICE const float* row_of(const Place& me, int step) {
    DYNAMIC_SHARED(shared);
    return (const float*)shared + me.row + step * 2 * PADDED;
}

DEVICE void hand_over(const Place& me, const Own& x) {
    float2 u = unpack(x.u), delta = unpack(x.delta);
    float4 bias = constants_of(me);
    float2 dt = make_float2(softplus(delta.x + bias.x), softplus(delta.y + bias.y));
    own_step(me) = make_float4(dt.x, dt.y, dt.x * u.x, dt.y * u.y);
}

DEVICE void hand_grad_over(const Place& me, const Own& x) {
    float2 grad = unpack(x.grad), z = unpack(x.z), open = make_float2(sigmoid(z.x), sigmoid(z.y));
    own_grad(me) = make_float4(grad.x * z.x * open.x, grad.y * z.y * open.y, open.x, open.y);
}

// B and C of 64 steps as float32; all loads are on their way before the first is waited for.
DEVICE void fill_rows(const Inputs& in, const Place& me, int s) {
    DYNAMIC_SHARED(shared);
    float* rows = (float*)shared + me.k * KEPT * 2 * PADDED;
#pragma unroll
    for (int column = me.lane; column < 2 * PADDED; column += WARP) {
        int n = column % PADDED;
        bool of_b = column < PADDED;
        const Scalar* from = of_b ? in.B + me.k * in.b_k + me.b * in.b_b : in.C + me.k * in.c_k + me.b * in.c_b;
        Long length = of_b ? in.b_l : in.c_l;
        Scalar x[SHARE];
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            int row = me.warp + i * WARPS, t = me.k == 0 ? s + row : in.rows - 1 - s - row;
            x[i] = row < KEPT && n < STATES && (unsigned)t < (unsigned)in.L ? from[t * length + n] : Scalar();
        }
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            int row = me.warp + i * WARPS;
            if (row < KEPT) rows[row * 2 * PADDED + column] = to_float(x[i]);
        }
    }
}

// Sums at the beginning of a chain, or where its first piece left them. chain_row: of the sums; carry_row: of carry.
DEVICE Walk begin_walk(const Inputs& in, const Outputs& to, const Place& me, Long chain_row, Long carry_row,
                       bool resumed) {
    Walk w = {};
#pragma unroll
    for (int c = 0; c < 2; c++) {
        bool on = c == 0 ? me.on : me.on && me.second;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            int n = me.own * HELD + i;
            bool held = on && n < STATES;
            w.a[c][i] = held ? in.A[((Long)me.k * in.D + me.d + c) * STATES + n] * LOG2E : 0.0f;
            if (held && (CARRY || resumed)) w.back[c][i] = to.carry[(carry_row * KEPT_STATES + n) * in.D + me.d + c];
            if (held && resumed && !ENDS) w.da[c][i] = to.da[(chain_row * in.D + me.d + c) * STATES + n];
        }
        if (!on || !resumed || me.own != 0) continue;
#if !ENDS
        w.dskip[c] = to.dskip[chain_row * in.D + me.d + c];
        w.dbias[c] = to.dbias[chain_row * in.D + me.d + c];
#endif
    }
    return w;
}

DEVICE float over_own(float x) {
    x += __shfl_xor_sync(ALL, x, 4);
    return x + __shfl_xor_sync(ALL, x, 8);
}

// The counterpart of begin_walk, for a second piece or as results.
DEVICE void end_walk(const Inputs& in, const Outputs& to, const Place& me, const Walk& w, Long chain_row,
                     Long carry_row) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
        bool on = c == 0 ? me.on : me.on && me.second;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            int n = me.own * HELD + i;
            if (on && n < KEPT_STATES) to.carry[(carry_row * KEPT_STATES + n) * in.D + me.d + c] = w.back[c][i];
#if !ENDS
            if (on && n < STATES) to.da[(chain_row * in.D + me.d + c) * STATES + n] = w.da[c][i];
#endif
        }
#if ENDS
        if (on && me.own == 0) to.decay[carry_row * in.D + me.d + c] = w.total[c];
#else
        float dskip = over_own(w.dskip[c]), dbias = over_own(w.dbias[c]);
        if (on && me.own == 0) to.dskip[chain_row * in.D + me.d + c] = dskip;
        if (on && me.own == 0) to.dbias[chain_row * in.D + me.d + c] = dbias;
#endif
    }
}

// The tiles of the 64 steps from s that have steps which are there, and none between.
struct Tiles {
    int first, last;
};

DEVICE Tiles tiles_of(const Inputs& in, const Place& me, int s) {
    int before = in.rows - in.L - s;
    return {me.k == 0 ? 0 : max(0, before / STEPS),
            me.k == 0 ? min(TILES, (in.L - s + STEPS - 1) / STEPS) - 1 : TILES - 1};
}
