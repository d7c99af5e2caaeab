// What the CUDA scan kernels share: element types, the few instructions that need PTX, and the scalar maths.
//
// No headers, so that NVRTC needs none. Everything that differs between a GPU and the tests' emulation on a CPU
// (tests/cuda_on_cpu.h, which defines CUDA_ON_CPU) is inside the one #ifndef below. Macros given when compiling:
// DTYPE 0 float32, 1 float16, 2 bfloat16.
#pragma once

#ifndef CUDA_ON_CPU
#define KERNEL(name)  // kernels are found by their names
#define KEEP(kind, value) asm("" : kind(value))  // in registers, rather than found anew at every use
#define GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))  // so that shared memory is read ahead of stores to it
#define RENEW(x) asm volatile("" : "+r"(x))  // what follows from it is found anew, rather than kept in registers
#define DYNAMIC_SHARED(name) extern __shared__ float4 name[]

// 2^x; -inf gives 0, NaN stays
static __device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

static __device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// yes ? a : b without a branch, which the compiler likes to make of a row of them, shuffles and all
static __device__ __forceinline__ float select(int yes, float a, float b) {
    float y;
    asm("{ .reg .pred p; setp.ne.s32 p, %1, 0; selp.f32 %0, %2, %3, p; }" : "=f"(y) : "r"(yes), "f"(a), "f"(b));
    return y;
}

// wait for `threads` threads of the block; id 1 to 15, since __syncthreads has 0
static __device__ __forceinline__ void barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// barrier that says whether `yes` was so in all of the threads
static __device__ __forceinline__ bool barrier_all(int id, int threads, bool yes) {
    int all;
    asm volatile(
        "{ .reg .pred p, q; setp.ne.s32 p, %1, 0; bar.red.and.pred q, %2, %3, p; selp.s32 %0, 1, 0, q; }"
        : "=r"(all) : "r"((int)yes), "r"(id), "r"(threads) : "memory");
    return all != 0;
}

// tell another block, in one thread after a barrier, that what this one wrote is there
static __device__ __forceinline__ void publish(unsigned* flag) {
    asm volatile("fence.acq_rel.gpu; st.relaxed.gpu.u32 [%0], 1;" ::"l"(flag) : "memory");
}

// wait, in one thread before a barrier, for the word of another block
static __device__ __forceinline__ void await(const unsigned* flag) {
    unsigned seen;
    do {
        asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
    } while (seen == 0);
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

static __device__ __forceinline__ float half_to_float(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}

// two float16, the first in the low half
static __device__ __forceinline__ unsigned halves(float low, float high) {
    unsigned y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// two bfloat16, the first in the low half
static __device__ __forceinline__ unsigned bfloats(float low, float high) {
    unsigned y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
#endif

#define DEVICE static __device__ __forceinline__
#define WARP 32
#define ALL 0xffffffffu  // every lane of a warp
#define LOG2E 1.4426950408889634f
#define NOT_THERE __uint_as_float(0xff800000u)  // minus infinity: the delta of a step of which softplus makes 0
#define LN2 0.6931471805599453f
#define GONE -127.0f  // exponentials of 2 flush to zero here

// A scalar as it lies in memory, two and four neighbours of them as one word.
#if DTYPE == 0
typedef float Scalar;
typedef float2 Pair;
typedef float4 Quad;
#else
typedef unsigned short Scalar;
typedef unsigned Pair;
typedef uint2 Quad;
#endif

#if DTYPE == 0
DEVICE float to_float(Scalar x) { return x; }
DEVICE Scalar from_float(float x) { return x; }
DEVICE float2 unpack(Pair x) { return x; }
DEVICE Pair pack(float low, float high) { return make_float2(low, high); }
DEVICE Pair pair_of(Scalar low, Scalar high) { return make_float2(low, high); }
DEVICE float4 unpack(Quad x) { return x; }
DEVICE Quad quad_of(Pair low, Pair high) { return make_float4(low.x, low.y, high.x, high.y); }
#else
#if DTYPE == 1
DEVICE float to_float(Scalar x) { return half_to_float(x); }
DEVICE float2 unpack(Pair x) {
    return make_float2(half_to_float((Scalar)(x & 0xffffu)), half_to_float((Scalar)(x >> 16)));
}
DEVICE Pair pack(float low, float high) { return halves(low, high); }
#else
DEVICE float to_float(Scalar x) { return __uint_as_float((unsigned)x << 16); }
DEVICE float2 unpack(Pair x) { return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)); }
DEVICE Pair pack(float low, float high) { return bfloats(low, high); }
#endif
DEVICE Scalar from_float(float x) { return (Scalar)pack(x, 0.0f); }
DEVICE Pair pair_of(Scalar low, Scalar high) { return (unsigned)low | ((unsigned)high << 16); }
DEVICE Quad quad_of(Pair low, Pair high) { return make_uint2(low, high); }
DEVICE float4 unpack(Quad x) {
    float2 low = unpack(x.x), high = unpack(x.y);
    return make_float4(low.x, low.y, high.x, high.y);
}
#endif

#ifdef PAIRS  // 1: two neighbouring channels are one aligned word
// `on`: the first channel is there, `second`: the second one exists
DEVICE Pair load_pair(const Scalar* at, bool on, bool second, Pair otherwise) {
#if PAIRS
    return on ? *(const Pair*)at : otherwise;
#else
    float2 x = unpack(otherwise);
    return pair_of(on ? at[0] : from_float(x.x), on && second ? at[1] : from_float(x.y));
#endif
}

DEVICE void store_pair(Scalar* at, float2 value, bool on, bool second) {
#if PAIRS
    const Pair packed = pack(value.x, value.y);
    if (on) *(Pair*)at = packed;
#else
    if (on) at[0] = from_float(value.x);
    if (on && second) at[1] = from_float(value.y);
#endif
}
#endif

// Of two directions in a block each waits for its own threads, and votes. Two constants: of a number that it does not
// know the compiler reserves all 16.
DEVICE void wait_for_side(int side, int threads) {
    if (side)
        barrier(2, threads);
    else
        barrier(1, threads);
}

DEVICE bool all_of_side(int side, int threads, bool yes) {
    return side ? barrier_all(2, threads, yes) : barrier_all(1, threads, yes);
}

// log(1 + exp(x)) to float32 accuracy also where it is tiny: log1p(e) / e is a polynomial on [0, 1]
DEVICE float softplus(float x) {
    float e = exp2_fast(-fabsf(x) * LOG2E);
    float p = fmaf(0.0051261018961668015f, e, -0.029074065387248993f);
    p = fmaf(p, e, 0.0775160863995552f);
    p = fmaf(p, e, -0.13602247834205627f);
    p = fmaf(p, e, 0.19076880812644958f);
    p = fmaf(p, e, -0.2483539879322052f);
    p = fmaf(p, e, 0.3331812024116516f);
    p = fmaf(p, e, -0.4999944567680359f);
    p = fmaf(p, e, 0.9999999403953552f);
    return fmaf(p, e, fmaxf(x, 0.0f));
}

DEVICE float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-x * LOG2E)); }
