// Throughput of the instructions the kernels stand on, and of memory, measured on this machine.
//
// Every loop keeps 12 independent chains of the instruction, so that its latency does not show. A product and a sum are
// two operations.

#include <immintrin.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kChains = 12;
constexpr int64_t kSteps = 20000;

#define REPEAT_4(body) body(0) body(1) body(2) body(3)
#define REPEAT_8(body) REPEAT_4(body) body(4) body(5) body(6) body(7)
#define REPEAT_12(body) REPEAT_8(body) body(8) body(9) body(10) body(11)

// 16 float32 operations an instruction
__attribute__((target("avx2,fma"))) int64_t fma_ymm() {
    const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
#define SUM(n) __m256 sum##n = a;
    REPEAT_12(SUM)
    for (int64_t i = 0; i < kSteps; i++) {
#define STEP(n) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sum##n) : "x"(a), "x"(b));
        REPEAT_12(STEP)
    }
#undef SUM
#undef STEP
    return kSteps * kChains * 16;
}

__attribute__((target("avx512f"))) int64_t fma_zmm() {
    const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
#define SUM(n) __m512 sum##n = a;
    REPEAT_12(SUM)
    for (int64_t i = 0; i < kSteps; i++) {
#define STEP(n) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sum##n) : "v"(a), "v"(b));
        REPEAT_12(STEP)
    }
#undef SUM
#undef STEP
    return kSteps * kChains * 32;
}

// pairs summed in int16 as often as 4-bit weights allow, 8 times, then widened: 32 products a vpmaddubsw
__attribute__((target("avx2"))) int64_t maddubs_8() {
    const __m256i codes = _mm256_set1_epi8(3), weights = _mm256_set1_epi8(-2), ones = _mm256_set1_epi16(1);
#define SUM(n) __m256i total##n = codes, sum##n = codes, product##n = codes;
    REPEAT_4(SUM)
    for (int64_t i = 0; i < kSteps / 8; i++) {
#define FIRST(n) __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(sum##n) : "x"(codes), "x"(weights));
        REPEAT_4(FIRST)
#pragma GCC unroll 7
        for (int k = 1; k < 8; k++) {
#define MULTIPLY(n) __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(product##n) : "x"(codes), "x"(weights));
#define ADD(n) __asm__ volatile("vpaddw %1, %0, %0" : "+x"(sum##n) : "x"(product##n));
            REPEAT_4(MULTIPLY)
            REPEAT_4(ADD)
        }
#define WIDEN(n) __asm__ volatile("vpmaddwd %1, %0, %0" : "+x"(sum##n) : "x"(ones));
#define ADD_WIDE(n) __asm__ volatile("vpaddd %1, %0, %0" : "+x"(total##n) : "x"(sum##n));
        REPEAT_4(WIDEN)
        REPEAT_4(ADD_WIDE)
    }
#undef SUM
#undef FIRST
#undef MULTIPLY
#undef ADD
#undef WIDEN
#undef ADD_WIDE
    return kSteps / 8 * 8 * 4 * 64;
}

// 8-bit weights without saturation: weights in int16, 16 products a vpmaddwd
__attribute__((target("avx2"))) int64_t maddwd() {
    const __m256i codes = _mm256_set1_epi16(3), weights = _mm256_set1_epi16(-2);
#define SUM(n) __m256i total##n = codes, product##n = codes;
    REPEAT_4(SUM)
    for (int64_t i = 0; i < kSteps; i++) {
#define MULTIPLY(n) __asm__ volatile("vpmaddwd %2, %1, %0" : "=x"(product##n) : "x"(codes), "x"(weights));
#define ADD(n) __asm__ volatile("vpaddd %1, %0, %0" : "+x"(total##n) : "x"(product##n));
        REPEAT_4(MULTIPLY)
        REPEAT_4(ADD)
    }
#undef SUM
#undef MULTIPLY
#undef ADD
    return kSteps * 4 * 32;
}

__attribute__((target("avx2"))) int64_t dot_ymm() {
    const __m256i codes = _mm256_set1_epi8(3), weights = _mm256_set1_epi8(-2);
#define SUM(n) __m256i sum##n = codes;
    REPEAT_12(SUM)
    for (int64_t i = 0; i < kSteps; i++) {
#define STEP(n) __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum##n) : "x"(codes), "x"(weights));
        REPEAT_12(STEP)
    }
#undef SUM
#undef STEP
    return kSteps * kChains * 64;
}

__attribute__((target("avx512f"))) int64_t dot_zmm() {
    const __m512i codes = _mm512_set1_epi32(0x03030303), weights = _mm512_set1_epi32(0x7efefefe);
#define SUM(n) __m512i sum##n = codes;
    REPEAT_12(SUM)
    for (int64_t i = 0; i < kSteps; i++) {
#define STEP(n) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum##n) : "v"(codes), "v"(weights));
        REPEAT_12(STEP)
    }
#undef SUM
#undef STEP
    return kSteps * kChains * 128;
}

__attribute__((target("avx512f"))) int64_t dot_bf16() {
    const __m512i pairs = _mm512_set1_epi32(0x3f803f80);
#define SUM(n) __m512 sum##n = _mm512_setzero_ps();
    REPEAT_12(SUM)
    for (int64_t i = 0; i < kSteps; i++) {
#define STEP(n) __asm__ volatile("vdpbf16ps %1, %1, %0" : "+v"(sum##n) : "v"(pairs));
        REPEAT_12(STEP)
    }
#undef SUM
#undef STEP
    return kSteps * kChains * 64;
}

// AMX: two by two tiles of sums, as the kernels have them; with loads, the two of codes and the two of weights come from
// the first-level cache each time. The process must have been granted the tiles. The bytes differ as codes and weights
// do: on zeros alone the clock was a fifth higher than on any data (seen on a Xeon of 2023).
template <bool kLoads, bool kBfloat16 = false>
int64_t dot_tiles() {
    alignas(64) uint8_t config[64] = {1}, codes[2048] = {}, weights[2048] = {};
    for (int t = 0; t < 8; t++) {
        config[16 + 2 * t] = 64;
        config[48 + t] = 16;
    }
    for (int i = 0; i < 2048; i++) {
        codes[i] = static_cast<uint8_t>(i * 37);
        weights[i] = static_cast<uint8_t>(i * 101);
    }
    const int64_t near = 64, far = 128;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
    for (int64_t i = 0; i < kSteps / 8; i++) {
        if (kLoads || i == 0) {
            __asm__ volatile("tileloadd (%0,%1,1), %%tmm4" : : "r"(codes), "r"(near) : "memory");
            __asm__ volatile("tileloadd (%0,%1,1), %%tmm5" : : "r"(codes + 1024), "r"(near) : "memory");
            __asm__ volatile("tileloadd (%0,%1,1), %%tmm6" : : "r"(weights), "r"(far) : "memory");
            __asm__ volatile("tileloadd (%0,%1,1), %%tmm7" : : "r"(weights + 64), "r"(far) : "memory");
        }
        if (kBfloat16) {
            __asm__ volatile("tdpbf16ps %tmm6, %tmm4, %tmm0");
            __asm__ volatile("tdpbf16ps %tmm7, %tmm4, %tmm1");
            __asm__ volatile("tdpbf16ps %tmm6, %tmm5, %tmm2");
            __asm__ volatile("tdpbf16ps %tmm7, %tmm5, %tmm3");
        } else {
            __asm__ volatile("tdpbusd %tmm6, %tmm4, %tmm0");
            __asm__ volatile("tdpbusd %tmm7, %tmm4, %tmm1");
            __asm__ volatile("tdpbusd %tmm6, %tmm5, %tmm2");
            __asm__ volatile("tdpbusd %tmm7, %tmm5, %tmm3");
        }
    }
    __asm__ volatile("tilerelease");
    return kSteps / 8 * 4 * (2 * 16 * 16 * (kBfloat16 ? 32 : 64));
}

using Loop = int64_t (*)();
constexpr Loop kLoops[] = {fma_ymm, fma_zmm, maddubs_8, maddwd, dot_ymm, dot_zmm, dot_tiles<false>, dot_tiles<true>,
                            dot_bf16, dot_tiles<true, true>};

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Work a second of `threads` threads that call `part(thread)` for `seconds`; it returns the work it did.
template <typename Part>
double rate(int threads, double seconds, Part part) {
    std::vector<double> rates(static_cast<size_t>(threads));
    std::vector<std::thread> running;
    for (int t = 0; t < threads; t++) {
        running.emplace_back([&, t] {
            part(t);  // the clock rises, pages come
            const auto start = Clock::now();
            double work = 0, spent = 0;
            while ((spent = seconds_since(start)) < seconds) work += static_cast<double>(part(t));
            rates[static_cast<size_t>(t)] = work / spent;
        });
    }
    double sum = 0;
    for (auto &thread : running) thread.join();
    for (double value : rates) sum += value;
    return sum;
}

}  // namespace

// Operations a second of instruction `kind` (the order of kLoops) on `threads` threads.
extern "C" __attribute__((visibility("default"))) double peak_operations(int kind, int threads, double seconds) {
    return rate(threads, seconds, [&](int) { return kLoops[kind](); });
}

// Bytes read and written a second by copies of `bytes` in all, shared by the threads.
extern "C" __attribute__((visibility("default"))) double peak_copy(int64_t bytes, int threads, double seconds) {
    const auto share = static_cast<size_t>(bytes / 2 / threads + 64);
    std::vector<std::vector<char>> from(static_cast<size_t>(threads), std::vector<char>(share, 1)), to = from;
    return rate(threads, seconds, [&](int t) {
        const auto n = static_cast<size_t>(t);
        std::memcpy(to[n].data(), from[n].data(), share);
        __asm__ volatile("" : : "r"(to[n].data()) : "memory");
        return static_cast<int64_t>(2 * share);
    });
}
