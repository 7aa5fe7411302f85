// CPU features, the pool of threads, and the loop over calls.
#include "context.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <cstdlib>
#include <system_error>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace dq {
namespace {

// Spins before a waiting thread sleeps: about 50 microseconds, longer than the gap between two calls of one run.
constexpr int kSpins = 20000;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

void wait_change(std::atomic<uint32_t>& word, uint32_t old) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// The instruction sets this CPU and this operating system run, as bits 1 << dq_isa.
uint32_t known_isas() {
    uint32_t known = 1u << DQ_PORTABLE;
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return known;
    const bool osxsave = c & (1u << 27), fma = c & (1u << 12);
    if (!osxsave || !fma) return known;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 0x6) != 0x6) return known;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & (1u << 5))) return known;
    known |= 1u << DQ_AVX2;
    const bool avx512 = (low & 0xe6) == 0xe6 && (b & (1u << 16)) && (b & (1u << 30)) && (b & (1u << 31));
    if (avx512 && (c & (1u << 11))) known |= 1u << DQ_AVX512_VNNI;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4))) known |= 1u << DQ_AVX_VNNI;
#endif
    return known;
}

}  // namespace

Pool::Pool(int32_t threads, int32_t isa) : threads_(threads), isa_(isa) {
    scratch_.assign(static_cast<size_t>(threads), nullptr);
    for (auto& part : scratch_) {
        part = std::aligned_alloc(64, DQ_SCRATCH_BYTES);
        if (part == nullptr) return;
    }
    try {
        for (int32_t t = 1; t < threads; t++) workers_.emplace_back([this, t] { work(t); });
    } catch (const std::system_error&) {
        return;
    }
    ready_ = true;
}

Pool::~Pool() {
    stop_.store(true);
    round_.fetch_add(1);
    wake_all(round_);
    for (auto& worker : workers_) worker.join();
    for (auto* part : scratch_) std::free(part);
}

void Pool::take(int32_t thread) {
    for (;;) {
        const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
        if (index >= count_) return;
        task_(job_, index, thread);
    }
}

void Pool::run(int64_t count, Task task, const void* job) {
    if (count <= 0) return;
    if (threads_ == 1 || count == 1) {
        for (int64_t i = 0; i < count; i++) task(job, i, 0);
        return;
    }
    task_ = task;
    job_ = job;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(threads_ - 1, std::memory_order_relaxed);
    round_.fetch_add(1);  // sequentially consistent: ordered before the look at the sleepers
    if (sleepers_.load() > 0) wake_all(round_);
    take(0);
    while (busy_.load(std::memory_order_acquire) != 0) relax();
}

void Pool::work(int32_t thread) {
    uint32_t seen = 0;
    for (;;) {
        for (int i = 0; i < kSpins && round_.load(std::memory_order_acquire) == seen; i++) relax();
        while (round_.load() == seen) {
            sleepers_.fetch_add(1);
            if (round_.load() == seen) wait_change(round_, seen);
            sleepers_.fetch_sub(1);
        }
        seen = round_.load(std::memory_order_acquire);
        if (stop_.load()) return;
        take(thread);
        busy_.fetch_sub(1, std::memory_order_acq_rel);
    }
}

namespace {

bool call_one(Pool& pool, const dq_call& call) {
    switch (call.op) {
        case DQ_QUANTIZE:
            quantize(pool, *static_cast<const dq_quantize_args*>(call.args));
            return true;
        case DQ_GROUP_NORM_SILU_QUANTIZE:
            group_norm_silu_quantize(pool, *static_cast<const dq_group_norm_silu_quantize_args*>(call.args));
            return true;
        case DQ_LAYER_NORM_QUANTIZE:
            layer_norm_quantize(pool, *static_cast<const dq_layer_norm_quantize_args*>(call.args));
            return true;
        case DQ_GEGLU_QUANTIZE:
            geglu_quantize(pool, *static_cast<const dq_geglu_quantize_args*>(call.args));
            return true;
        case DQ_INT_LINEAR:
            int_linear(pool, *static_cast<const dq_int_linear_args*>(call.args));
            return true;
        case DQ_INT_CONV2D:
            int_conv2d(pool, *static_cast<const dq_int_conv2d_args*>(call.args));
            return true;
        case DQ_ELEMENTWISE:
            elementwise(pool, *static_cast<const dq_elementwise_args*>(call.args));
            return true;
        case DQ_ATTENTION:
            attention(pool, *static_cast<const dq_attention_args*>(call.args));
            return true;
        case DQ_FLOAT_LINEAR:
            float_linear(pool, *static_cast<const dq_float_linear_args*>(call.args));
            return true;
        case DQ_FLOAT_CONV2D:
            float_conv2d(pool, *static_cast<const dq_float_conv2d_args*>(call.args));
            return true;
        default:
            return false;
    }
}

}  // namespace
}  // namespace dq

extern "C" {

int32_t dq_known_isas(void) { return static_cast<int32_t>(dq::known_isas()); }

int64_t dq_struct_bytes(int32_t op) {
    switch (op) {
        case DQ_QUANTIZE:
            return sizeof(dq_quantize_args);
        case DQ_GROUP_NORM_SILU_QUANTIZE:
            return sizeof(dq_group_norm_silu_quantize_args);
        case DQ_LAYER_NORM_QUANTIZE:
            return sizeof(dq_layer_norm_quantize_args);
        case DQ_GEGLU_QUANTIZE:
            return sizeof(dq_geglu_quantize_args);
        case DQ_INT_LINEAR:
            return sizeof(dq_int_linear_args);
        case DQ_INT_CONV2D:
            return sizeof(dq_int_conv2d_args);
        case DQ_ELEMENTWISE:
            return sizeof(dq_elementwise_args);
        case DQ_ATTENTION:
            return sizeof(dq_attention_args);
        case DQ_FLOAT_LINEAR:
            return sizeof(dq_float_linear_args);
        case DQ_FLOAT_CONV2D:
            return sizeof(dq_float_conv2d_args);
        default:
            return -1;
    }
}

dq_context* dq_open(int32_t threads, int32_t isa) {
    if (threads < 1 || threads > DQ_MAX_THREADS || isa < DQ_PORTABLE || isa > DQ_AVX512_VNNI) return nullptr;
    if (!(dq::known_isas() >> isa & 1)) return nullptr;
    auto* context = new dq_context(threads, isa);
    if (context->pool.ready()) return context;
    delete context;
    return nullptr;
}

void dq_close(dq_context* context) { delete context; }

int64_t dq_run(dq_context* context, const dq_call* calls, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (!dq::call_one(context->pool, calls[i])) return i + 1;
    }
    return 0;
}

int64_t dq_run_timed(dq_context* context, const dq_call* calls, int64_t count, int64_t* nanoseconds) {
    for (int64_t i = 0; i < count; i++) {
        const auto start = std::chrono::steady_clock::now();
        if (!dq::call_one(context->pool, calls[i])) return i + 1;
        const auto spent = std::chrono::steady_clock::now() - start;
        nanoseconds[i] = std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
    }
    return 0;
}

}  // extern "C"
