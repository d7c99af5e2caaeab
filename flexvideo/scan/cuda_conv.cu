// The causal depthwise convolution with SiLU, both directions at once, forward and backward.
//
// It moves bytes and little else. A thread walks down the rows of 2 adjacent channels with the last TAPS of them in
// registers: those are what direction 0 sees at the last row, and, read the other way, what direction 1 sees at the
// first. The backward pass finds the convolution again, and has the gradients before the SiLU in two more windows: of
// direction 0 up to the last row, of direction 1 up to the first, which together make the gradient of x at the first.
// Sums over rows, for filters and biases, are one row of partial sums a block; they are added up in a fixed order.
//
// The way forward takes 4 channels a thread where they are aligned, and asks for LOADS rows before it works on those
// that came: 3 TB/s take 2 MB under way on the device, of which a third are reads. Counted for sm_90, LOADS 4: 94
// registers, so 21 warps a multiprocessor and 2.8 MB asked for; 105 instructions a row of 4 channels, 16 of them MUFU,
// which take half of the time that the bytes do. Pointers that may alias would have every load wait for a store.
//
// Macros: DTYPE, DIRECTIONS, TAPS, ROWS (of a block), PAIRS, QUADS (4 channels a thread in the forward pass), LOADS.
#include "cuda_common.cuh"

#define AHEAD (TAPS - 1)  // rows from a window's first to its last
#define HALVES (QUADS ? 2 : 1)  // pairs of channels of a thread in the forward pass

struct Filters {
    float2 tap[DIRECTIONS][TAPS], bias[DIRECTIONS];
};

struct Window {
    float2 row[TAPS];
};

// Where a thread is. `width`: channels of its pair that exist.
struct Place {
    long long channel;
    int width, first;
};

DEVICE Place place_of(long long D, int each) {
    const long long channel = each * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
    return {channel, (int)max(0LL, min(2LL, D - channel)), (int)blockIdx.y * ROWS};
}

DEVICE float2 channels(const float* at, const Place& place, long long step) {
    return make_float2(place.width > 0 ? at[0] : 0.0f, place.width > 1 ? at[step] : 0.0f);
}

DEVICE Filters filters_of(const float* weight, const float* bias, const Place& place, long long D) {
    Filters filters;
#pragma unroll
    for (int k = 0; k < DIRECTIONS; k++) {
        const long long row = k * D + place.channel;
        filters.bias[k] = channels(bias + row, place, 1);
#if TAPS == 4  // a filter is one load, of 20 otherwise
        const float4* at = (const float4*)weight + row;
        const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const float4 first = place.width > 0 ? at[0] : none, second = place.width > 1 ? at[1] : none;
        filters.tap[k][0] = make_float2(first.x, second.x), filters.tap[k][1] = make_float2(first.y, second.y);
        filters.tap[k][2] = make_float2(first.z, second.z), filters.tap[k][3] = make_float2(first.w, second.w);
#else
#pragma unroll
        for (int j = 0; j < TAPS; j++) filters.tap[k][j] = channels(weight + row * TAPS + j, place, TAPS);
#endif
    }
    return filters;
}

DEVICE float2 load_row(const Scalar* from, const Place& place, long long stride, long long t, long long L) {
    return unpack(load_pair(from + t * stride, t >= 0 && t < L && place.width > 0, place.width > 1, Pair()));
}

DEVICE void push(Window& window, float2 row) {
#pragma unroll
    for (int j = 0; j < AHEAD; j++) window.row[j] = window.row[j + 1];
    window.row[AHEAD] = row;
}

DEVICE float2 add_product(float2 sum, float2 a, float2 b) {
    return make_float2(fmaf(a.x, b.x, sum.x), fmaf(a.y, b.y, sum.y));
}

// the convolution of direction k: of the window's last row (k = 0), or of its first
DEVICE float2 convolve(const Window& x, const Filters& filters, int k) {
    float2 sum = filters.bias[k];
#pragma unroll
    for (int j = 0; j < TAPS; j++) sum = add_product(sum, filters.tap[k][j], x.row[k ? AHEAD - j : j]);
    return sum;
}

DEVICE float2 silu(float2 x) { return make_float2(x.x * sigmoid(x.x), x.y * sigmoid(x.y)); }

DEVICE float slope(float x) {
    const float open = sigmoid(x);
    return open * fmaf(x, 1.0f - open, 1.0f);
}

// the channels of a thread at one row
#if QUADS
typedef Quad Word;

DEVICE Word load_word(const Scalar* from, const Place& place, long long stride, long long t, long long L) {
    return t >= 0 && t < L && place.width > 0 ? *(const Quad*)(from + t * stride) : Quad();
}

DEVICE float2 half_of(Word x, int half) {
    const float4 y = unpack(x);
    return half ? make_float2(y.z, y.w) : make_float2(y.x, y.y);
}

DEVICE void store_word(Scalar* at, const float2* halves, bool on, const Place& place) {
    const Quad packed = quad_of(pack(halves[0].x, halves[0].y), pack(halves[1].x, halves[1].y));
    if (on) *(Quad*)at = packed;
}
#else
typedef Pair Word;

DEVICE Word load_word(const Scalar* from, const Place& place, long long stride, long long t, long long L) {
    return load_pair(from + t * stride, t >= 0 && t < L && place.width > 0, place.width > 1, Pair());
}

DEVICE float2 half_of(Word x, int half) { return unpack(x); }

DEVICE void store_word(Scalar* at, const float2* halves, bool on, const Place& place) {
    store_pair(at, halves[0], on, place.width > 1);
}
#endif

// LOADS rows from `first` on. Without INSIDE some may be beyond the sequence: then each has a branch for itself, in
// which the compiler puts all that the row needs, so that rows cannot wait for one another's results.
template <bool INSIDE>
DEVICE void convolve_rows(const Word (&rows)[LOADS], Window (&window)[HALVES], const Filters (&filters)[HALVES],
                          Scalar* out, const Place& place, long long first, long long L, long long D) {
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
#pragma unroll
        for (int half = 0; half < HALVES; half++) push(window[half], half_of(rows[j], half));
#pragma unroll
        for (int k = 0; k < DIRECTIONS; k++) {
            const long long t = first + j - k * AHEAD;
            float2 made[HALVES];
#pragma unroll
            for (int half = 0; half < HALVES; half++) made[half] = silu(convolve(window[half], filters[half], k));
            store_word(out + (k * gridDim.z * L + t) * D, made, INSIDE || (t >= 0 && t < L), place);
        }
    }
}

extern "C" __global__ void conv_forward(const Scalar* __restrict__ x, const float* __restrict__ weight,
                                        const float* __restrict__ bias, Scalar* __restrict__ out, long long L,
                                        long long D, long long x_b, long long x_l) {
    const Place place = place_of(D, 2 * HALVES);
    if (place.width == 0) return;
    Filters filters[HALVES];
#pragma unroll
    for (int half = 0; half < HALVES; half++)
        filters[half] = filters_of(weight + 2 * half * TAPS, bias + 2 * half, place, D);
    x += blockIdx.z * x_b + place.channel, out += blockIdx.z * L * D + place.channel;
    Window window[HALVES];
#pragma unroll
    for (int j = 1; j < TAPS; j++) {
        const Word row = load_word(x, place, x_l, place.first + j - TAPS, L);
#pragma unroll
        for (int half = 0; half < HALVES; half++) window[half].row[j] = half_of(row, half);
    }
    Word rows[LOADS], next[LOADS];
#pragma unroll
    for (int j = 0; j < LOADS; j++) next[j] = load_word(x, place, x_l, place.first + j, L);
#pragma unroll 1
    for (int i = 0; i < ROWS; i += LOADS) {
        const long long first = place.first + i, end = i + LOADS < ROWS ? L : 0;  // of the block's own rows
#pragma unroll
        for (int j = 0; j < LOADS; j++) rows[j] = next[j], next[j] = load_word(x, place, x_l, first + LOADS + j, end);
        if (first >= AHEAD && first + LOADS <= L)
            convolve_rows<true>(rows, window, filters, out, place, first, L, D);
        else
            convolve_rows<false>(rows, window, filters, out, place, first, L, D);
    }
}
KERNEL(conv_forward)

// Sums of one block over its rows.
struct Sums {
    float2 tap[DIRECTIONS][TAPS], bias[DIRECTIONS];
};

// dweight (parts, k, TAPS, d), dbias (parts, k, d); parts: samples, then blocks of rows
DEVICE void store_sums(float* dweight, float* dbias, const Sums& sums, const Place& place, long long D) {
    const long long part = (long long)blockIdx.z * gridDim.y + blockIdx.y;
#pragma unroll
    for (int i = 0; i < DIRECTIONS * (TAPS + 1); i++) {
        const int k = i / (TAPS + 1), j = i % (TAPS + 1);
        const float2 sum = j < TAPS ? sums.tap[k][j] : sums.bias[k];
        const long long row = part * DIRECTIONS + k;
        float* to = (j < TAPS ? dweight + (row * TAPS + j) * D : dbias + row * D) + place.channel;
        if (place.width > 0) to[0] = sum.x;
        if (place.width > 1) to[1] = sum.y;
    }
}

extern "C" __global__ void conv_backward(const Scalar* __restrict__ grad, const Scalar* __restrict__ x,
                                         const float* __restrict__ weight, const float* __restrict__ bias,
                                         Scalar* __restrict__ dx, float* dweight, float* dbias, long long L,
                                         long long D, long long x_b, long long x_l) {
    const Place place = place_of(D, 2);
    const Filters filters = filters_of(weight, bias, place, D);
    const long long sample = L * D;
    x += blockIdx.z * x_b + place.channel;
    grad += blockIdx.z * sample + place.channel, dx += blockIdx.z * sample + place.channel;
    Window rows, slopes[DIRECTIONS] = {};
    Sums sums = {};
#pragma unroll
    for (int j = 1; j < TAPS; j++) rows.row[j] = load_row(x, place, x_l, place.first + j - TAPS, L);
#pragma unroll 4
    for (int i = 0; i < ROWS + AHEAD; i++) {
        const long long last = place.first + i, first = last - AHEAD;
        push(rows, load_row(x, place, x_l, last, L));
        float2 total = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int k = 0; k < DIRECTIONS; k++) {
            const float2 g = load_row(grad + k * gridDim.z * sample, place, D, k ? first : last, L);
            const float2 y = convolve(rows, filters, k);
            const float2 s = make_float2(g.x * slope(y.x), g.y * slope(y.y));
            push(slopes[k], s);
            const bool own = k ? i >= AHEAD : i < ROWS;  // each row is summed by one block
            const float2 counted = own ? s : make_float2(0.0f, 0.0f);
            sums.bias[k] = make_float2(sums.bias[k].x + counted.x, sums.bias[k].y + counted.y);
#pragma unroll
            for (int j = 0; j < TAPS; j++) {
                sums.tap[k][j] = add_product(sums.tap[k][j], counted, rows.row[k ? AHEAD - j : j]);
                total = add_product(total, slopes[k].row[k ? j : AHEAD - j], filters.tap[k][j]);
            }
        }
        store_pair(dx + first * D, total, i >= AHEAD && first < L && place.width > 0, place.width > 1);
    }
    store_sums(dweight, dbias, sums, place, D);
}
KERNEL(conv_backward)
