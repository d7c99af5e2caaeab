// The gradients of the selective scan, both directions in one launch, bitwise the same on every run.
//
// The mathematics and what is kept are those of triton_backward.py. What differs is who does what:
// - A lane holds 2 channels x HELD states; a warp is 16 channels of one direction, a block of threads WARPS warps a
//   direction. Lane = half * 16 + own * 4 + place. `own` is the quarter of the states that it holds, and the step of a
//   tile of 4 whose inputs and outputs it reads, prepares and writes; its pair of channels is half * 4 + place.
// - 64 steps are walked forward from the state that the forward pass kept, and the state before each tile is put aside
//   in shared memory. Then the tiles are taken from last to first, with states and decays in registers.
// - Gradients of B and C are sums over channels of products, which tensor cores do: values of two states (rows: state,
//   half, own) times factors (columns: half, step; zero but where the step is being walked) add up to the sums of a
//   tile, of which those with a row's half unlike the column's are waste. Tensor cores read 11 bits of each number: an
//   error of 8e-4 in these two gradients, where rounding them to bfloat16 makes one of 1.7e-3. Float32 does not bear
//   that: its products are exact, and go in as two parts. Sums lie where the tile's state was put aside until the 64
//   steps are done: then those of the warps are added in order, to a row a block of threads, and at last these rows.
// - Work is dealt out evenly. A chain is the walk over one span by the channels of a block of threads, cut where its
//   share of all the work ends; the second piece of a chain waits for the first, which another block does before all
//   else. So 192 chains keep 132 multiprocessors busy to the end, and need no second set of exponentials.
// - Where time is split into spans, ENDS adds up what each hands back of a zero gradient, the sum over its steps of
//   exp(A S) C times the gradient of y, S being the sum of dt up to the step. It begins at the beginning of the span and
//   ends where exp(A S) has become zero in all states of the direction's channels: what follows would add exactly
//   nothing (128 steps where A is -1 to -16 and dt log 2). What is not looked at does not show as NaN before the span.
//
// Counted (NVRTC 13.0, sm_90, bfloat16, N 16, 6 warps a direction): 168 registers, 3 warps a scheduler, 29.7
// instructions an update (725 of a tile back and 198 of a tile forward, of 32 updates, and 650 each 64 steps): 16.6
// FMA, 2.4 exponentials and reciprocals, 2.4 to memory and other lanes, 0.5 of tensor cores. That is 1.9 ms at one a
// clock and 1.75 GHz for 16 x 3137 tokens of VideoMamba-M. No register is spilled within a tile.
// Counted and dropped: sums over the channels by shuffles (3.5 an update) or shared memory (1.4) with products on the
// FMA pipe (2), where tensor cores take 1.0 in all; tiles of 2 (twice the memory put aside) or 8 (registers).
//
// Macros: DTYPE; DIRECTIONS; STATES, and KEPT_STATES of them in memory; HELD states a lane; WARPS a direction; RESIDENT
// blocks of threads a multiprocessor; EVEN channels may be read in pairs; ENDS only what each span hands back of a zero
// gradient; CARRY begin with such; REMAKE the output of the forward pass too; FAR put states aside in global memory.
#include "cuda_common.cuh"

#ifndef CUDA_ON_CPU
// sums (16 x 8) += values (16 x 8) times factors (8 x 8), of whose numbers the tensor cores read 11 bits
static __device__ __forceinline__ void multiply(float (&sums)[4], float a0, float a1, float a2, float a3, float b0,
                                                float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

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

// constants: of a number that it does not know the compiler reserves all 16
DEVICE void wait_for_group(const Place& me) {
    if (me.k)
        barrier(2, GROUP);
    else
        barrier(1, GROUP);
}

DEVICE Pair load_pair(const Scalar* from, bool on, bool second, Pair otherwise) {
#if EVEN
    return on ? *(const Pair*)from : otherwise;
#else
    float2 x = unpack(otherwise);
    return pair_of(on ? from[0] : from_float(x.x), on && second ? from[1] : from_float(x.y));
#endif
}

DEVICE void store_pair(Scalar* to, const float (&x)[2], bool on, bool second) {
#if EVEN
    if (on) *(Pair*)to = pack(x[0], x[1]);
#else
    if (on) to[0] = from_float(x[0]);
    if (on && second) to[1] = from_float(x[1]);
#endif
}

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

// States are put aside two of the first channel, two of the second together, as tensor cores want them.
DEVICE void put_aside(const Place& me, int tile, const float (&h)[2][HELD]) {
    float4* to = me.aside + tile * SLOT + me.lane;
#pragma unroll
    for (int i = 0; i < HELD; i += 2) to[i / 2 * WARP] = make_float4(h[0][i], h[0][i + 1], h[1][i], h[1][i + 1]);
}

DEVICE void take_back(const Place& me, int tile, float (&h)[2][HELD]) {
    const float4* from = me.aside + tile * SLOT + me.lane;
#pragma unroll
    for (int i = 0; i < HELD; i += 2) {
        float4 x = from[i / 2 * WARP];
        h[0][i] = x.x, h[0][i + 1] = x.y, h[1][i] = x.z, h[1][i + 1] = x.w;
    }
}

// One step of the recurrence; the decays are kept where the walk back wants them.
DEVICE void step(const Place& me, int tile, int p, const float (&a)[2][HELD], const float (&h)[2][HELD],
                 float (&decay)[2][HELD], float (&next)[2][HELD]) {
    float4 x = steps_of(me, p);
    float b[HELD];
    load_states(b, row_of(me, tile * STEPS + p));
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        decay[0][i] = exp2_fast(x.x * a[0][i]);
        decay[1][i] = exp2_fast(x.y * a[1][i]);
        next[0][i] = fmaf(decay[0][i], h[0][i], x.z * b[i]);
        next[1][i] = fmaf(decay[1][i], h[1][i], x.w * b[i]);
    }
}

// Of the 64 steps from s: B and C, and from the state kept by the forward pass those before each tile, first to last.
DEVICE void find_states(const Inputs& in, const Place& me, const Walk& w, int s, int first, int last) {
    Cursor cursor = cursor_at(in, me, s + first * STEPS);
    Own next = load_own(in, me, cursor, false);
    Long block = ((Long)me.k * in.samples + me.b) * (in.rows / KEPT) + s / KEPT;
    const float* kept = in.states + (block * KEPT_STATES + me.own * HELD) * in.D + me.d;
    float h[2][HELD], decay[2][HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        float2 x = me.own * HELD + i < STATES ? load_two(kept + (Long)i * in.D, me) : make_float2(0.0f, 0.0f);
        h[0][i] = x.x, h[1][i] = x.y;
    }
    fill_rows(in, me, s);
    wait_for_group(me);
#pragma unroll 1
    for (int tile = first; tile < last; tile++) {
        put_aside(me, tile, h);
        Own x = next;
        move(cursor, 1);
        next = load_own(in, me, cursor, false);
        hand_over(me, x);
        __syncwarp();
#pragma unroll
        for (int p = 0; p < STEPS; p++) step(me, tile, p, w.a, h, decay, h);
        __syncwarp();
    }
    put_aside(me, last, h);
}

// The lane whose bit is set keeps `high`, the other `low`, each with what the other lane had of it.
DEVICE float fold(float low, float high, int bit, const Place& me) {
    bool upper = me.lane & bit;
    float kept = upper ? high : low, sent = upper ? low : high;
    return kept + __shfl_xor_sync(ALL, sent, bit);
}

// The sums of dB or dC over the channels of a half: states 2 j and 2 j + 1 of the lane's quarter at steps 2 m and
// 2 m + 1, where m is the lane's place modulo 2. The half is that of place / 2: of use if it is the lane's own.
typedef float Sums[HELD / 2][4];

// sums += factors of the two channels times values, for the step p.
DEVICE void over_channels(const Place& me, int p, Sums& sums, float f0, float f1, const float (&v)[2][HELD]) {
    bool mine = me.own == p;
#pragma unroll
    for (int i = 0; i < HELD; i += 2) {
#if DTYPE == 0
        float one = mine ? 1.0f : 0.0f;
        float x = fmaf(f1, v[1][i], f0 * v[0][i]), y = fmaf(f1, v[1][i + 1], f0 * v[0][i + 1]);
        float high_x = __uint_as_float(__float_as_uint(x) & 0xffffe000u);
        float high_y = __uint_as_float(__float_as_uint(y) & 0xffffe000u);
        multiply(sums[i / 2], high_x, high_y, x - high_x, y - high_y, one, one);
#else
        multiply(sums[i / 2], v[0][i], v[0][i + 1], v[1][i], v[1][i + 1], mine ? f0 : 0.0f, mine ? f1 : 0.0f);
#endif
    }
}

// The sums of dB and dC over the channels of each half, where the tile's states were.
DEVICE void keep_sums(const Place& me, int tile, const Sums& db, const Sums& dc) {
    int half = me.lane / 16, place = me.lane % 4;
    if (half != place / 2) return;
    float4* to = me.aside + tile * SLOT + half * STEPS * ROW + place % 2 * 2 * ROW + me.own * (HELD / 2);
#pragma unroll
    for (int j = 0; j < HELD / 2; j++) {
        to[j] = make_float4(db[j][0], db[j][1], db[j][2], db[j][3]);
        to[ROW + j] = make_float4(dc[j][0], dc[j][1], dc[j][2], dc[j][3]);
    }
}

// Sums over the lane's states, of its two channels: y, g B and A q.
struct Parts {
    float y[2], through_b[2], through_a[2];
};

DEVICE Parts fold_parts(const Parts& low, const Parts& high, int bit, const Place& me) {
    Parts x;
#pragma unroll
    for (int c = 0; c < 2; c++) {
        x.y[c] = fold(low.y[c], high.y[c], bit, me);
        x.through_b[c] = fold(low.through_b[c], high.through_b[c], bit, me);
        x.through_a[c] = fold(low.through_a[c], high.through_a[c], bit, me);
    }
    return x;
}

// One step back, between the states before and after it.
DEVICE Parts step_back(const Place& me, int tile, int p, Walk& w, const float (&before)[2][HELD],
                       const float (&after)[2][HELD], const float (&decay)[2][HELD], Sums& db, Sums& dc) {
    float4 x = steps_of(me, p);
    float2 gy2 = grads_of(me, p);
    const float dt[2] = {x.x, x.y}, gy[2] = {gy2.x, gy2.y};
    float b[HELD], cs[HELD], g[2][HELD];
    load_states(b, row_of(me, tile * STEPS + p));
    load_states(cs, row_of(me, tile * STEPS + p) + PADDED);
    Parts parts = {};
#pragma unroll
    for (int i = 0; i < HELD; i++)
#pragma unroll
        for (int c = 0; c < 2; c++) parts.y[c] = fmaf(cs[i], after[c][i], parts.y[c]);
    over_channels(me, p, dc, gy[0], gy[1], after);
#pragma unroll
    for (int i = 0; i < HELD; i++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            g[c][i] = fmaf(gy[c], cs[i], w.back[c][i]);
            parts.through_b[c] = fmaf(g[c][i], b[i], parts.through_b[c]);
            w.back[c][i] = decay[c][i] * g[c][i];
            float left = w.back[c][i] * before[c][i];
            parts.through_a[c] = fmaf(w.a[c][i], left, parts.through_a[c]);
            w.da[c][i] = fmaf(dt[c], left, w.da[c][i]);
        }
    over_channels(me, p, db, x.z, x.w, g);
    return parts;
}

// Gradients at the lane's own step, from the sums over all states.
DEVICE void finish(const Inputs& in, const Outputs& to, const Place& me, Walk& w, const Cursor& cursor, const Own& x,
                    const Parts& sum, Pair partner, bool second_visit) {
    float2 u2 = unpack(x.u), delta2 = unpack(x.delta), grad2 = unpack(x.grad), z2 = unpack(x.z);
    float2 other2 = unpack(partner);
    float4 constants = constants_of(me), dt4 = own_step(me), gy4 = own_grad(me);
    const float u[2] = {u2.x, u2.y}, delta[2] = {delta2.x, delta2.y}, grad[2] = {grad2.x, grad2.y};
    const float z[2] = {z2.x, z2.y}, bias[2] = {constants.x, constants.y}, skip[2] = {constants.z, constants.w};
    const float dt[2] = {dt4.x, dt4.y}, gy[2] = {gy4.x, gy4.y}, other[2] = {other2.x, other2.y};
    const float open[2] = {gy4.z, gy4.w};
    float du[2], ddelta[2], dz[2], out[2];
#pragma unroll
    for (int c = 0; c < 2; c++) {
        du[c] = fmaf(sum.through_b[c], dt[c], skip[c] * gy[c]);
        ddelta[c] = fmaf(sum.through_a[c], LN2, sum.through_b[c] * u[c]) * sigmoid(delta[c] + bias[c]);
        w.dskip[c] = fmaf(gy[c], u[c], w.dskip[c]);
        w.dbias[c] += ddelta[c];
        float y = fmaf(skip[c], u[c], sum.y[c]) + other[c];
        out[c] = y * z[c] * open[c];
        dz[c] = second_visit ? grad[c] * y * open[c] * fmaf(z[c], 1.0f - open[c], 1.0f) : y;
    }
    bool here = inside(in, me, cursor);
    store_pair(to.du + cursor.at, du, here, me.second);
    store_pair(to.ddelta + cursor.at, ddelta, here, me.second);
    store_pair(to.dz + cursor.at_out, dz, here, me.second);
#if REMAKE
    store_pair(to.out + cursor.at_out, out, here && second_visit, me.second);
#endif
}

// One tile: states and decays again, then back. `second_visit`: the other direction has been here. Leaves the inputs of
// the tile before, asked for only when states and decays need their registers no more.
DEVICE void tile_back(const Inputs& in, const Outputs& to, const Place& me, Walk& w, Cursor& cursor, int tile, Own& x,
                      bool more, bool second_visit) {
    Pair partner = Pair();
    if (DIRECTIONS == 2)
        partner = load_pair(to.dz + cursor.at_out, second_visit && inside(in, me, cursor), me.second, Pair());
    hand_over(me, x);
    hand_grad_over(me, x);
    forget(x.u), forget(x.delta), forget(x.grad), forget(x.z);
    float h[STEPS + 1][2][HELD], decay[STEPS][2][HELD];
    Sums db = {}, dc = {};
    take_back(me, tile, h[0]);
    __syncwarp();
#pragma unroll
    for (int p = 0; p < STEPS; p++) step(me, tile, p, w.a, h[p], decay[p], h[p + 1]);
    __syncwarp();  // so that the compiler reads B again, of which it has too many in registers
    Parts parts[STEPS];
    Own now = x;
    Cursor here = cursor;
#pragma unroll
    for (int p = STEPS - 1; p >= 0; p--) {
        if (p == STEPS / 2 - 1) {
            move(cursor, -1);
            if (more) x = load_own(in, me, cursor, true);
        }
        parts[p] = step_back(me, tile, p, w, h[p], h[p + 1], decay[p], db, dc);
        if (p % 2 == 0) parts[p] = fold_parts(parts[p], parts[p + 1], 4, me);
    }
    keep_sums(me, tile, db, dc);
    finish(in, to, me, w, here, now, fold_parts(parts[0], parts[2], 8, me), partner, second_visit);
    __syncwarp();
}

// Add the sums of the warps of the direction, in their order.
DEVICE void store_sums(const Inputs& in, const Outputs& to, const Place& me, int part, int s) {
    Long row = (((Long)part * DIRECTIONS + me.k) * in.samples + me.b) * in.rows + s;
    const float4* first = me.aside - me.warp * (FAR ? TILES * SLOT : SPACE);
#pragma unroll 1
    for (int e = me.warp * WARP + me.lane; e < KEPT * ROW; e += GROUP) {
        const float4* from = first + e / (STEPS * ROW) * SLOT + e % (STEPS * ROW);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int i = 0; i < 2 * WARPS; i++) {
            float4 x = from[i / 2 * (FAR ? TILES * SLOT : SPACE) + i % 2 * STEPS * ROW];
            sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
        }
        ((float4*)to.dbc)[row * ROW + e] = sum;
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

#if ENDS
#define GONE -127.0f  // exponentials of 2 flush to zero here

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

// waits as wait_for_group, and votes
DEVICE bool all_of_group(const Place& me, bool yes) {
    return me.k ? barrier_all(2, GROUP, yes) : barrier_all(1, GROUP, yes);
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
    wait_for_group(me);
#pragma unroll 1
    for (int tile = tiles.first; tile <= tiles.last; tile++) {
        Own x = next;
        move(cursor, 1);
        if (tile < tiles.last) next = load_own(in, me, cursor, true);
        tile_ends(me, w, x, tile);
    }
}
#else
// The 64 steps from s, whose first tile is `tile_of_span` of its span; from `meet` on down the other has been there.
DEVICE void block_back(const Inputs& in, const Outputs& to, const Place& me, Walk& w, int s, int tile_of_span,
                       int meet) {
    const Tiles tiles = tiles_of(in, me, s);
    Cursor cursor = cursor_at(in, me, s + tiles.last * STEPS);
    Own x = load_own(in, me, cursor, true);
    find_states(in, me, w, s, tiles.first, tiles.last);
#pragma unroll 1
    for (int tile = TILES - 1; tile >= 0; tile--) {
        if (DIRECTIONS == 2 && tile_of_span + tile == meet - 1) __syncthreads();
        if (tile > tiles.last || tile < tiles.first) continue;
        tile_back(in, to, me, w, cursor, tile, x, tile > tiles.first,
                  DIRECTIONS == 1 || tile_of_span + tile < meet);
    }
}
#endif

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
#if ENDS
    for (int block = 0; block < length / KEPT; block++) {
        block_ends(in, me, w, first + block * KEPT);
        if (all_of_group(me, forgotten(me, w))) break;
    }
#else
    for (int at = begin; at < min(end, length / KEPT); at++) {
        int block = length / KEPT - 1 - at, s = first + block * KEPT;
        block_back(in, to, me, w, s, block * TILES, length / STEPS / 2);
        wait_for_group(me);
        store_sums(in, to, me, part, s);
    }
#endif
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

// Add the sums of the blocks of channels, in their order, and put them in the order of the sequence.
extern "C" __global__ void __launch_bounds__(256) add_sums(const float* dbc, Scalar* db, Scalar* dc, Long L, Long rows,
                                                           Long parts) {
    Long e = (Long)blockIdx.x * 256 + threadIdx.x, t = e / (2 * PADDED);
    int n = e % PADDED, of_c = e / PADDED % 2;
    if (t >= L || n >= STATES) return;
    Long k = blockIdx.z, b = blockIdx.y, kb = k * gridDim.y + b;
    Long stride = (Long)gridDim.z * gridDim.y * rows * 2 * PADDED;
    Long s = k == 0 ? t : rows - 1 - t;
    const float* from = dbc + (kb * rows + s / 2 * 2) * 2 * PADDED + of_c * 2 * PADDED + n / 2 * 4 + n % 2 * 2 + s % 2;
    float sum = 0.0f;
#pragma unroll 4
    for (Long i = 0; i < parts; i++) sum += from[i * stride];
    (of_c ? dc : db)[(kb * L + t) * STATES + n] = from_float(sum);
}
KERNEL(add_sums)
