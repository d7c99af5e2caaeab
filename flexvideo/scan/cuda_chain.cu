// Replace what each span leaves of a zero state by the state it truly begins (`last`: ends) with.
//
// One thread a channel and state. Macros: STATES (N), PADDED (states of a channel, with padding).
#define DTYPE 0
#include "cuda_common.cuh"

#define AHEAD 8  // spans whose values are on their way at a time

// carry (k, b, spans, PADDED, d) in place; decay (k, b, spans, d), the sums of dt
extern "C" __global__ void chain_kernel(float* carry, const float* decay, const float* A, long long spans, long long D,
                                        long long last) {
    const int threads = blockDim.x, blocks = (int)((D + threads - 1) / threads);
    const long long d = (long long)(blockIdx.x % blocks) * threads + threadIdx.x, n = blockIdx.x / blocks;
    if (d >= D) return;
    const long long kb = (long long)blockIdx.z * gridDim.y + blockIdx.y;
    const float a = n < STATES ? A[((long long)blockIdx.z * D + d) * STATES + n] * LOG2E : 0.0f;
    carry += (kb * spans * PADDED + n) * D + d, decay += kb * spans * D + d;
    float h = 0.0f;
    for (long long first = 0; first < spans; first += AHEAD) {
        float left[AHEAD], sum[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            long long c = last ? spans - 1 - first - i : first + i;
            bool here = first + i < spans;
            left[i] = here ? carry[c * PADDED * D] : 0.0f;
            sum[i] = here ? decay[c * D] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            long long c = last ? spans - 1 - first - i : first + i;
            if (first + i < spans) carry[c * PADDED * D] = h;
            h = fmaf(exp2_fast(a * sum[i]), h, left[i]);
        }
    }
}
KERNEL(chain_kernel)
