// CUDA C on a CPU, slow but right: threads of a block are fibers which run from one barrier or shuffle to the next,
// blocks run one after another. Force-included before a .cu file; every kernel is then called through KERNEL's
// function. Shared memory is full of NaN when a block begins, and fibers may run in either order, so that a missing
// barrier shows.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <tuple>
#include <utility>
#include <vector>

#define CUDA_ON_CPU
#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuda_shared")))
#define KEEP(kind, value)
#define GLOBAL(pointer)
#define RENEW(x)
#define DYNAMIC_SHARED(name) float4* name = (float4*)cpu::dynamic_shared

struct dim3 { unsigned x, y, z; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cpu {
constexpr int STACK = 64 << 10, MOST = 1024;
struct Barrier {
    int arrived = 0, generation = 0;
    bool all = true, said = true;  // of the votes so far; of those of the last time
};
struct Fiber {
    ucontext_t start;
    jmp_buf place;
    Barrier* waits = nullptr;
    int until = 0;
    bool begun = false, done = false;
};
static Fiber fibers[MOST];
static char stacks[MOST][STACK];
static jmp_buf scheduler;
static int current;
static Barrier named[16], warps[MOST / 32];
static uint32_t slots[MOST / 32][2][32];  // of shuffles, by turns: the slow lanes still read the other row
static int turn[MOST];
static void (*body)();
alignas(128) static char dynamic_shared[256 << 10];
extern "C" char __start_cuda_shared[] __attribute__((weak)), __stop_cuda_shared[] __attribute__((weak));

static void wait(Barrier& barrier, int threads) {
    Fiber& me = fibers[current];
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        barrier.generation++;
        return;
    }
    me.waits = &barrier;
    me.until = barrier.generation + 1;
    if (!_setjmp(me.place)) _longjmp(scheduler, 1);
}

static void enter() {
    body();
    fibers[current].done = true;
    _longjmp(scheduler, 1);
}

static void resume(int i) {
    Fiber& fiber = fibers[i];
    current = i;
    threadIdx = {(unsigned)i, 0, 0};
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks[i];
    fiber.start.uc_stack.ss_size = STACK;
    makecontext(&fiber.start, enter, 0);
    setcontext(&fiber.start);
}

// false: threads wait for each other for ever
static bool run_block(int threads, bool reversed) {
    for (Barrier& barrier : named) barrier = {};
    for (Barrier& barrier : warps) barrier = {};
    for (int i = 0; i < threads; i++) fibers[i].waits = nullptr, fibers[i].begun = fibers[i].done = false, turn[i] = 0;
    memset(dynamic_shared, 0xff, sizeof dynamic_shared);
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    for (volatile int left = threads; left > 0;) {
        volatile bool moved = false;
        for (volatile int j = 0; j < threads; j++) {
            int i = reversed ? threads - 1 - j : j;
            Fiber& fiber = fibers[i];
            if (fiber.done || (fiber.waits && fiber.waits->generation < fiber.until)) continue;
            fiber.waits = nullptr;
            resume(i);
            moved = true;
            if (fibers[current].done) left = left - 1;
        }
        if (!moved) return false;
    }
    return true;
}

template <class T>
static T shuffle(T value, int from) {
    static_assert(sizeof(T) == 4, "32-bit values");
    int warp = current / 32, lane = current % 32, row = turn[current] ^= 1;
    memcpy(&slots[warp][row][lane], &value, 4);
    wait(warps[warp], 32);
    memcpy(&value, &slots[warp][row][from & 31], 4);
    return value;
}

template <class... Types, size_t... Index>
static int launch(void (*kernel)(Types...), const int* sizes, bool reversed, void** arguments,
                  std::index_sequence<Index...>) {
    static std::tuple<Types...> values;
    static void (*called)(Types...);
    values = std::tuple<Types...>(*(Types*)arguments[Index]...);
    called = kernel;
    body = [] { std::apply(called, values); };
    gridDim = {(unsigned)sizes[0], (unsigned)sizes[1], (unsigned)sizes[2]};
    blockDim = {(unsigned)sizes[3], 1, 1};
    for (int z = 0; z < sizes[2]; z++)
        for (int y = 0; y < sizes[1]; y++)
            for (int x = 0; x < sizes[0]; x++) {
                blockIdx = {(unsigned)x, (unsigned)y, (unsigned)z};
                if (!run_block(sizes[3], reversed)) return 1;
            }
    return 0;
}

template <class... Types>
static int launch(void (*kernel)(Types...), const int* sizes, bool reversed, void** arguments) {
    return launch(kernel, sizes, reversed, arguments, std::index_sequence_for<Types...>{});
}
}  // namespace cpu

// the function that Python calls: sizes are grid x, y, z and threads of a block
#define KERNEL(name)                                                                     \
    extern "C" int name##_on_cpu(const int* sizes, int reversed, void** arguments) {     \
        return cpu::launch(name, sizes, reversed != 0, arguments);                       \
    }

static inline void __syncthreads() { cpu::wait(cpu::named[0], (int)blockDim.x); }
static inline void __syncwarp() { cpu::wait(cpu::warps[cpu::current / 32], 32); }
static inline void barrier(int id, int threads) { cpu::wait(cpu::named[id], threads); }
static inline bool barrier_all(int id, int threads, bool yes) {
    cpu::Barrier& at = cpu::named[id];
    at.all = at.all && yes;
    if (at.arrived + 1 == threads) at.said = at.all, at.all = true;
    cpu::wait(at, threads);
    return at.said;
}
template <class T> static T __shfl_sync(unsigned, T x, int lane) { return cpu::shuffle(x, lane); }
template <class T> static T __shfl_xor_sync(unsigned, T x, int mask) { return cpu::shuffle(x, (cpu::current % 32) ^ mask); }

static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline float select(int yes, float a, float b) { return yes ? a : b; }
static inline float exp2_fast(float x) { return x < -126.0f ? 0.0f : exp2f(x); }  // no subnormal numbers
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float reciprocal(float x) { return 1.0f / x; }
static inline float half_to_float(unsigned short x) { _Float16 y; memcpy(&y, &x, 2); return (float)y; }
static inline unsigned half_bits(float x) { _Float16 y = (_Float16)x; unsigned short z; memcpy(&z, &y, 2); return z; }
static inline unsigned halves(float low, float high) { return half_bits(low) | half_bits(high) << 16; }
static inline unsigned bfloat_bits(float x) {
    unsigned y = __float_as_uint(x);
    return x != x ? 0x7fffu : (y + 0x7fffu + (y >> 16 & 1u)) >> 16;  // to nearest, ties to even
}
static inline unsigned bfloats(float low, float high) { return bfloat_bits(low) | bfloat_bits(high) << 16; }
// tensor cores: sums (16 x 8) += factors (16 x 8) times values (8 x 8), of whose numbers 11 bits are read
static inline void multiply(float (&sums)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    static float given[cpu::MOST / 32][2][32][6];
    int warp = cpu::current / 32, lane = cpu::current % 32;
    auto& all = given[warp][cpu::turn[cpu::current] ^= 1];
    float mine[6] = {a0, a1, a2, a3, b0, b1};
    for (int i = 0; i < 6; i++) all[lane][i] = __uint_as_float(__float_as_uint(mine[i]) & 0xffffe000u);
    cpu::wait(cpu::warps[warp], 32);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 8; k++)
            sums[i] += all[lane / 4 * 4 + k % 4][i / 2 + k / 4 * 2] * all[(lane % 4 * 2 + i % 2) * 4 + k % 4][4 + k / 4];
}
template <class T> static void forget(T&) {}
static inline void publish(unsigned* flag) { *flag = 1; }
static inline void await(const unsigned* flag) { if (!*flag) abort(); }
using std::min;
using std::max;
