/* Selective scan and causal convolution on a CPU, forward and backward, float32.

   Channel-last; a vector holds neighbouring channels, so nothing is ever shuffled but for the sums over
   channels in the gradients of B and C. A task is one sample and GROUP channels in both directions; tasks
   write to disjoint places, so that results do not depend on the number of threads. Within a task time runs
   in chunks of CHUNK steps, which keep the rows of all blocks of the group in the cache.

   Layouts: u, delta (k b l d); A, states (.. n d), A times log2(e); B, C (k b l n); x, z rows may be strided.
   d is a multiple of LANES. NaN and infinity propagate: no -ffast-math. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX__)
#include <immintrin.h>
#define LANES 8
#else
#define LANES 4
#endif
#define CHUNK 64
#define GROUP 64
#define MAX_THREADS 256
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int ivec __attribute__((vector_size(4 * LANES)));
typedef vec rows __attribute__((aligned(4), may_alias)); /* as vectors lie in tensors */

INLINE vec load(const float *p) { return *(const rows *)p; }
INLINE void store(float *p, vec x) { *(rows *)p = x; }
INLINE vec all(float x) { return x - (vec){0}; }
/* NaN stays: comparisons with it are false, and the x86 instructions return their second operand. */
INLINE vec at_least(vec x, float low) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)all(low), (__m512)x);
#elif defined(__AVX__)
    return (vec)_mm256_max_ps((__m256)all(low), (__m256)x);
#else
    const ivec below = x < all(low);
    return (vec)((below & (ivec)all(low)) | (~below & (ivec)x));
#endif
}
INLINE float sum(vec x) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += x[i];
    return s;
}

/* 2**x for x < 128, 2**-126 at least, relative error 3e-7; near zero the error of 1 - 2**x, which is what a recurrence
   amplifies, is that of rounding 2**x. Adding 1.5 * 2**23 leaves the nearest integer in the low bits. */
INLINE vec exp2v(vec x) {
    x = at_least(x, -126.f);
#if defined(__AVX512F__)
    /* Thirty-seconds instead of integers, whose powers fit into two vectors: two terms are left of the polynomial.
       Bits of 2**(i/32), less those that the shift of the whole number of thirty-seconds adds. */
    const ivec low = {
        0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
        0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6};
    const ivec high = {
        0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
        0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};
    const vec round = all(393216.f), shifted = x + round, f = x - (shifted - round);
    const __m512i power = _mm512_permutex2var_epi32((__m512i)low, (__m512i)shifted, (__m512i)high);
    const vec scale = (vec)((ivec)power + ((ivec)shifted << 18));
    return scale * ((f * 2.402265070e-01f + 6.931471806e-01f) * f) + scale;
#else
    const vec round = all(12582912.f), shifted = x + round, f = x - (shifted - round);
    vec p = f * 1.339086735e-03f + 9.666373693e-03f;
    p = p * f + 5.550357104e-02f;
    p = p * f + 2.402234894e-01f;
    p = p * f + 6.931471880e-01f;
    p = p * f + 1.f;
    return p * (vec)(((ivec)shifted + 127) << 23);
#endif
}

INLINE vec sigmoid(vec x) { return 1.f / (1.f + exp2v(-at_least(x * 1.44269504f, -127.f))); }

/* log(1 + e**x) = max(x, 0) + log1p(e**-|x|), and log1p(e) = 2 atanh(e / (2 + e)). */
INLINE vec softplus(vec x) {
    const vec minus = (vec)((ivec)x | (int)0x80000000); /* -|x| */
    const vec e = exp2v(minus * 1.44269504f), s = e / (2.f + e), q = s * s;
    vec p = q * 2.817465726e-01f + 2.796141884e-01f;
    p = p * q + 4.002485372e-01f;
    p = p * q + 6.666631594e-01f;
    p = p * q + 2.000000008e+00f;
    return at_least(x, 0.f) + p * s;
}

typedef struct {
    const float *u, *delta, *A, *B, *C, *D, *z, *bias;
    float *out, *states;                                            /* states: chunks k b n d; forward may be NULL */
    const float *grad;                                              /* from here on backward only */
    float *d_u, *d_delta, *d_A, *d_B, *d_C, *d_D, *d_z, *d_bias;    /* d_A: b k n d; d_B, d_C: groups k b l n */
    long k, b, l, d, n, z_batch, z_row;
} Scan;

typedef struct {
    const float *x, *weight, *bias; /* weight: k w d */
    float *out;
    const float *grad;
    float *d_x, *d_weight, *d_bias; /* d_weight: b k w d; d_bias: b k d */
    long k, b, l, d, w, x_batch, x_row;
} Conv;

INLINE long least(long a, long b) { return a < b ? a : b; }

/* Step i of direction k is row t of the sequence. */
INLINE long row_of(const Scan *s, long k, long i) { return k ? s->l - 1 - i : i; }

/* One block of channels c, one chunk of steps: h and out move on. What does not depend on the state goes through
   the chunk before and after the recurrence, for its long chains of operations would hold up the next step. The
   recurrence in turn leaves time to fetch the rows of the next chunk, which no hardware expects. */
INLINE void scan_chunk(const Scan *s, long k, long b, long c, long from, long to, int N, vec *state) {
    const long row = (k * s->b + b) * s->l, ahead = k ? -CHUNK : CHUNK;
    vec A[N], h[N], dts[CHUNK], dus[CHUNK], ys[CHUNK];
    for (int n = 0; n < N; n++) A[n] = load(s->A + (k * N + n) * s->d + c), h[n] = state[n];
    const vec bias = load(s->bias + k * s->d + c), D = load(s->D + k * s->d + c);
    const float *z = s->z + b * s->z_batch + c;
    float *out = s->out + b * s->l * s->d + c;
    const float *saved = s->states + (((from / CHUNK + 1) * s->k + k) * s->b + b) * N * s->d + c; /* next chunk's */
    for (long i = from; i < to; i++) {
        const long at = (row + row_of(s, k, i)) * s->d + c;
        const vec dt = softplus(load(s->delta + at) + bias), u = load(s->u + at);
        dts[i - from] = dt, dus[i - from] = dt * u, ys[i - from] = D * u;
    }
    for (long i = from; i < to; i++) {
        const long t = row_of(s, k, i), next = t + ahead;
        const float *B = s->B + (row + t) * N, *C = s->C + (row + t) * N;
        const vec dt = dts[i - from], du = dus[i - from];
        vec y = ys[i - from], odd = all(0.f);
        __builtin_prefetch(s->delta + (row + next) * s->d + c), __builtin_prefetch(s->u + (row + next) * s->d + c);
        __builtin_prefetch(out + next * s->d, 1);
        if (k == s->k - 1) __builtin_prefetch(z + next * s->z_row);
        if (s->states && i - from < N) __builtin_prefetch(saved + (i - from) * s->d, 1);
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) {
            h[n] = exp2v(dt * A[n]) * h[n] + du * B[n];
            if (n & 1) odd += h[n] * C[n];
            else y += h[n] * C[n];
        }
        ys[i - from] = y + odd;
    }
    for (long i = from; i < to; i++) {
        const long t = row_of(s, k, i);
        vec y = ys[i - from];
        if (k) y += load(out + t * s->d);
        if (k == s->k - 1) {
            const vec gate = load(z + t * s->z_row);
            y *= gate * sigmoid(gate);
        }
        store(out + t * s->d, y);
    }
    for (int n = 0; n < N; n++) state[n] = h[n];
}

INLINE void scan_task(const Scan *s, long task, int N) {
    const long groups = (s->d + GROUP - 1) / GROUP, b = task / groups, first = task % groups * GROUP;
    const long last = least(first + GROUP, s->d);
    vec state[GROUP / LANES * N];
    for (long k = 0; k < s->k; k++) {
        memset(state, 0, sizeof state);
        for (long from = 0; from < s->l; from += CHUNK) {
            float *saved = s->states + ((from / CHUNK * s->k + k) * s->b + b) * N * s->d;
            for (long c = first; c < last; c += LANES) {
                vec *h = state + (c - first) / LANES * N;
                if (s->states)
                    for (int n = 0; n < N; n++) store(saved + n * s->d + c, h[n]);
                scan_chunk(s, k, b, c, from, least(from + CHUNK, s->l), N, h);
            }
        }
    }
}

/* What the backward pass of a block of channels carries from chunk to chunk. */
typedef struct {
    vec *g, *d_A; /* n each: gradient of the state behind the chunk, decayed into it; gradient of A */
    vec d_D, d_bias;
} Carry;

/* One block of channels and one chunk: forward again from the saved state, then backward in time. Both fetch rows of
   the chunk that comes next, the one before. */
INLINE void scan_chunk_backward(const Scan *s, long k, long b, long c, long from, long to, int N, Carry *carry,
                                vec *decay, vec *h, vec *sum_B, vec *sum_C) {
    const long row = (k * s->b + b) * s->l, ahead = k ? CHUNK : -CHUNK;
    const float *saved = s->states + ((from / CHUNK * s->k + k) * s->b + b) * N * s->d + c;
    const vec bias = load(s->bias + k * s->d + c), D = load(s->D + k * s->d + c);
    vec A[N], dts[CHUNK], gys[CHUNK];
    for (int n = 0; n < N; n++) A[n] = load(s->A + (k * N + n) * s->d + c), h[n] = load(saved + n * s->d);
    for (long i = 0; i < to - from; i++) {
        const long t = k ? s->l - 1 - from - i : from + i, at = (b * s->l + t) * s->d + c;
        const float *B = s->B + (row + t) * N, *C = s->C + (row + t) * N;
        const float *delta = s->delta + (row + t) * s->d + c, *u_row = s->u + (row + t) * s->d + c;
        const float *z_row = s->z + b * s->z_batch + t * s->z_row + c;
        const vec dt = softplus(load(delta) + bias), u = load(u_row), du = dt * u;
        vec y = D * u;
        __builtin_prefetch(delta + ahead * s->d), __builtin_prefetch(u_row + ahead * s->d);
        __builtin_prefetch(s->grad + at + ahead * s->d), __builtin_prefetch(z_row + ahead * s->z_row);
        __builtin_prefetch(s->d_z + at + ahead * s->d, 1);
        for (int n = 0; n < N; n++) {
            const vec a = exp2v(dt * A[n]), next = a * h[i * N + n] + du * B[n];
            decay[i * N + n] = a;
            h[(i + 1) * N + n] = next;
            y += next * C[n];
        }
        const vec grad = load(s->grad + at), z = load(z_row), gate = sigmoid(z);
        dts[i] = dt;
        gys[i] = grad * z * gate;
        vec d_z = grad * y * gate * (1.f + z * (1.f - gate));
        if (k) d_z += load(s->d_z + at);
        store(s->d_z + at, d_z);
    }
    for (long i = to - from - 1; i >= 0; i--) {
        const long t = k ? s->l - 1 - from - i : from + i, at = (row + t) * s->d + c;
        const float *B = s->B + (row + t) * N, *C = s->C + (row + t) * N;
        const vec dt = dts[i], gy = gys[i], u = load(s->u + at), du = dt * u;
        vec d_log = all(0.f), d_in = all(0.f);
        __builtin_prefetch(s->d_u + at + ahead * s->d, 1), __builtin_prefetch(s->d_delta + at + ahead * s->d, 1);
        for (int n = 0; n < N; n++) {
            const vec g = carry->g[n] + gy * C[n], back = g * decay[i * N + n], d_exponent = back * h[i * N + n];
            sum_C[i * N + n] += gy * h[(i + 1) * N + n];
            sum_B[i * N + n] += g * du;
            d_log += d_exponent * A[n];
            d_in += g * B[n];
            carry->d_A[n] += d_exponent * dt;
            carry->g[n] = back;
        }
        const vec raw = load(s->delta + at) + bias;
        const vec d_delta = (d_log * 0.693147181f + d_in * u) * sigmoid(raw);
        store(s->d_u + at, gy * D + d_in * dt);
        store(s->d_delta + at, d_delta);
        carry->d_D += gy * u;
        carry->d_bias += d_delta;
    }
}

/* False where there is no memory to work in; the gradients then are not whole. */
INLINE bool scan_task_backward(const Scan *s, long task, int N) {
    const long groups = (s->d + GROUP - 1) / GROUP, b = task / groups, group = task % groups;
    const long first = group * GROUP, last = least(first + GROUP, s->d), blocks = GROUP / LANES;
    vec *room = aligned_alloc(64, (sizeof(vec) * N * (4 * CHUNK + 1 + 2 * blocks) + 63) & ~63L);
    if (!room) return false;
    vec *decay = room, *h = decay + CHUNK * N, *sum_B = h + (CHUNK + 1) * N, *sum_C = sum_B + CHUNK * N;
    vec *rest = sum_C + CHUNK * N;
    for (long k = 0; k < s->k; k++) {
        Carry carry[GROUP / LANES];
        memset(carry, 0, sizeof carry);
        memset(rest, 0, sizeof(vec) * 2 * blocks * N);
        for (long i = 0; i < blocks; i++) carry[i].g = rest + 2 * i * N, carry[i].d_A = carry[i].g + N;
        for (long from = (s->l - 1) / CHUNK * CHUNK; from >= 0; from -= CHUNK) {
            const long to = least(from + CHUNK, s->l);
            memset(sum_B, 0, sizeof(vec) * 2 * CHUNK * N);
            for (long c = first; c < last; c += LANES)
                scan_chunk_backward(s, k, b, c, from, to, N, carry + (c - first) / LANES, decay, h, sum_B, sum_C);
            for (long i = 0; i < to - from; i++) {
                const long t = k ? s->l - 1 - from - i : from + i;
                const long at = (((group * s->k + k) * s->b + b) * s->l + t) * N;
                for (int n = 0; n < N; n++) s->d_B[at + n] = sum(sum_B[i * N + n]), s->d_C[at + n] = sum(sum_C[i * N + n]);
            }
        }
        for (long c = first; c < last; c += LANES) {
            const Carry *end = carry + (c - first) / LANES;
            for (int n = 0; n < N; n++) store(s->d_A + ((b * s->k + k) * N + n) * s->d + c, end->d_A[n]);
            store(s->d_D + (b * s->k + k) * s->d + c, end->d_D);
            store(s->d_bias + (b * s->k + k) * s->d + c, end->d_bias);
        }
    }
    free(room);
    return true;
}

/* Before SiLU; direction 1 looks into the future, its last tap at the present too. */
INLINE vec convolve(const Conv *s, long k, long b, long c, long t, int W) {
    const float *x = s->x + b * s->x_batch + c, *w = s->weight + k * W * s->d + c;
    vec y = load(s->bias + k * s->d + c);
#pragma GCC unroll 4
    for (int j = 0; j < W; j++) {
        const long from = k ? t + W - 1 - j : t - W + 1 + j;
        if (from >= 0 && from < s->l) y += load(w + j * s->d) * load(x + from * s->x_row);
    }
    return y;
}

INLINE void conv_task(const Conv *s, long task, int W) {
    const long groups = (s->d + GROUP - 1) / GROUP, b = task / groups, first = task % groups * GROUP;
    const long last = least(first + GROUP, s->d);
    const long ahead = 8; /* rows: enough to hide the memory */
    for (long t = 0; t < s->l; t++)
        for (long k = 0; k < s->k; k++)
            for (long c = first; c < last; c += LANES) {
                float *out = s->out + ((k * s->b + b) * s->l + t) * s->d + c;
                __builtin_prefetch(s->x + b * s->x_batch + (t + ahead) * s->x_row + c);
                __builtin_prefetch(out + ahead * s->d, 1);
                const vec y = convolve(s, k, b, c, t, W);
                store(out, y * sigmoid(y));
            }
}

INLINE void conv_task_backward(const Conv *s, long task, int W) {
    const long groups = (s->d + GROUP - 1) / GROUP, b = task / groups, first = task % groups * GROUP;
    for (long c = first; c < least(first + GROUP, s->d); c += LANES)
        for (long k = 0; k < s->k; k++) {
            const float *x = s->x + b * s->x_batch + c, *w = s->weight + k * W * s->d + c;
            vec d_bias = all(0.f), d_weight[W];
            for (int j = 0; j < W; j++) d_weight[j] = all(0.f);
            for (long t = 0; t < s->l; t++) {
                const vec y = convolve(s, k, b, c, t, W), gate = sigmoid(y);
                const vec up = load(s->grad + ((k * s->b + b) * s->l + t) * s->d + c);
                const vec g = up * gate * (1.f + y * (1.f - gate));
                d_bias += g;
#pragma GCC unroll 4
                for (int j = 0; j < W; j++) {
                    const long from = k ? t + W - 1 - j : t - W + 1 + j;
                    if (from < 0 || from >= s->l) continue;
                    float *d_x = s->d_x + (b * s->l + from) * s->d + c;
                    d_weight[j] += g * load(x + from * s->x_row);
                    store(d_x, load(d_x) + g * load(w + j * s->d));
                }
            }
            store(s->d_bias + (b * s->k + k) * s->d + c, d_bias);
            for (int j = 0; j < W; j++) store(s->d_weight + ((b * s->k + k) * W + j) * s->d + c, d_weight[j]);
        }
}

/* The usual 16 states and 4 taps are unrolled and stay in registers; any other number works too. */
static bool scan_any(const void *args, long task) {
    const Scan *s = args;
    if (s->n == 16) scan_task(s, task, 16);
    else scan_task(s, task, s->n);
    return true;
}

static bool scan_any_backward(const void *args, long task) {
    const Scan *s = args;
    return s->n == 16 ? scan_task_backward(s, task, 16) : scan_task_backward(s, task, s->n);
}

static bool conv_any(const void *args, long task) {
    const Conv *s = args;
    if (s->w == 4) conv_task(s, task, 4);
    else conv_task(s, task, s->w);
    return true;
}

static bool conv_any_backward(const void *args, long task) {
    const Conv *s = args;
    if (s->w == 4) conv_task_backward(s, task, 4);
    else conv_task_backward(s, task, s->w);
    return true;
}

typedef struct {
    bool (*task)(const void *, long);
    const void *args;
    long tasks;
    atomic_long next;
    atomic_bool failed;
} Queue;

static void work(void *queue) {
    Queue *q = queue;
    for (long task; (task = atomic_fetch_add(&q->next, 1)) < q->tasks;)
        if (!q->task(q->args, task)) atomic_store(&q->failed, true);
}

static void *help(void *queue) {
    work(queue);
    return NULL;
}

/* GOMP_parallel of torch's OpenMP, or null: calls a function in so many threads. */
typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned);

/* In torch's own threads: they spin for a while after each of its operators, and would take the cores from any other
   threads. Without a team threads live for one call.
   The team is always whole, as OpenMP ends the threads that a smaller one leaves over. */
static int run(bool (*task)(const void *, long), const void *args, long b, long d, long threads, Team team) {
    Queue queue = {task, args, b * ((d + GROUP - 1) / GROUP), 0, false};
    pthread_t helpers[MAX_THREADS];
    long started = 0, wanted = least(least(threads, queue.tasks), MAX_THREADS);
    if (team && wanted > 1) team(work, &queue, threads, 0);
    else {
        while (started < wanted - 1 && !pthread_create(helpers + started, NULL, help, &queue)) started++;
        work(&queue);
        while (started) pthread_join(helpers[--started], NULL);
    }
    return atomic_load(&queue.failed);
}

/* Not zero where memory ran out. */
int flexvideo_scan(const Scan *s, long threads, Team team) { return run(scan_any, s, s->b, s->d, threads, team); }
int flexvideo_scan_backward(const Scan *s, long threads, Team team) {
    return run(scan_any_backward, s, s->b, s->d, threads, team);
}
int flexvideo_conv(const Conv *s, long threads, Team team) { return run(conv_any, s, s->b, s->d, threads, team); }
int flexvideo_conv_backward(const Conv *s, long threads, Team team) {
    return run(conv_any_backward, s, s->b, s->d, threads, team);
}
