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
//
// Counted (NVRTC 13.0, sm_90, bfloat16, N 16, 6 warps a direction): 168 registers, 3 warps a scheduler, 29.7
// instructions an update (725 of a tile back and 198 of a tile forward, of 32 updates, and 650 each 64 steps): 16.6
// FMA, 2.4 exponentials and reciprocals, 2.4 to memory and other lanes, 0.5 of tensor cores. That is 1.9 ms at one a
// clock and 1.75 GHz for 16 x 3137 tokens of VideoMamba-M. No register is spilled within a tile.
// Counted and dropped: sums over the channels by shuffles (3.5 an update) or shared memory (1.4) with products on the
// FMA pipe (2), where tensor cores take 1.0 in all; tiles of 2 (twice the memory put aside) or 8 (registers).
//
// Macros: DTYPE; DIRECTIONS; STATES, and KEPT_STATES of them in memory; HELD states a lane; WARPS a direction; RESIDENT
// blocks of threads a multiprocessor; PAIRS channels may be read in pairs; CARRY spans begin with what
// cuda_back_ends.cu found; REMAKE the output of the forward pass too; FAR put states aside in global memory.
#define ENDS 0
#include "cuda_back.cuh"

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
#endif

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
    wait_for_side(me.k, GROUP);
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
    store_pair(to.du + cursor.at, make_float2(du[0], du[1]), here, me.second);
    store_pair(to.ddelta + cursor.at, make_float2(ddelta[0], ddelta[1]), here, me.second);
    store_pair(to.dz + cursor.at_out, make_float2(dz[0], dz[1]), here, me.second);
#if REMAKE
    store_pair(to.out + cursor.at_out, make_float2(out[0], out[1]), here && second_visit, me.second);
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

// Positions [begin, end) of a chain, of `length` steps from `first`.
DEVICE void walk_blocks(const Inputs& in, const Outputs& to, const Place& me, Walk& w, int part, int first, int length,
                        int begin, int end) {
    for (int at = begin; at < min(end, length / KEPT); at++) {
        int block = length / KEPT - 1 - at, s = first + block * KEPT;
        block_back(in, to, me, w, s, block * TILES, length / STEPS / 2);
        wait_for_side(me.k, GROUP);
        store_sums(in, to, me, part, s);
    }
}

#include "cuda_back_chains.cuh"

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
