// The pool of threads, and the loop over calls.
#include "context.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cfenv>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dq {
namespace {

// Rounding to nearest even, denormals kept, for as long as it lives: the caller may have set another mode, and bits
// would differ.
class FloatMode {
  public:
#if defined(__x86_64__)
    FloatMode() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~FloatMode() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#else
    FloatMode() { std::fegetenv(&before_), std::fesetenv(FE_DFL_ENV); }
    ~FloatMode() { std::fesetenv(&before_); }

  private:
    std::fenv_t before_;
#endif
};

// How long a thread looks for the next job before it sleeps: longer than the gap between two calls of one run.
constexpr std::chrono::microseconds kLook{50};
constexpr int kPauses = 64;  // between two looks at the clock

// Forks this process descends from, counted since the library was loaded.
std::atomic<uint32_t> forks{0};

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

void wait_change(std::atomic<uint32_t>& word, uint32_t old) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word, int64_t sleepers) {
    const int count = sleepers < INT_MAX ? static_cast<int>(sleepers) : INT_MAX;
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

int32_t usable_cpus() {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return DQ_MAX_THREADS;  // more CPUs than the set can name
    return CPU_COUNT(&set);
}

}  // namespace

Pool::Pool(int32_t threads, int32_t isa) : threads_(threads), isa_(isa) {
    static const int counting = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
    forks_ = forks.load();
    crowded_ = threads > usable_cpus();
    scratch_.assign(static_cast<size_t>(threads), nullptr);
    for (auto& part : scratch_) {
        part = std::aligned_alloc(64, DQ_SCRATCH_BYTES);
        if (part == nullptr) return;
    }
    ready_ = counting == 0 && start();
}

// Signals are left to the threads of the program: one that falls on a worker would not wake a sleeping caller.
bool Pool::start() {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = true;
    try {
        for (int32_t t = 1; t < threads_; t++) workers_.emplace_back([this, t] { work(t); });
    } catch (...) {
        started = false;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
}

bool Pool::orphaned() const { return forks_ != forks.load(std::memory_order_relaxed); }

void Pool::adopt() {
    forks_ = forks.load();
    static_cast<void>(new (std::nothrow) std::vector<std::thread>(std::move(workers_)));  // threads of the parent
    workers_.clear();
    helping_.store(0);
    sleepers_.store(0);
    open_.store(false);
    start();
}

Pool::~Pool() {
    if (orphaned()) {
        static_cast<void>(new (std::nothrow) std::vector<std::thread>(std::move(workers_)));
    } else {
        stop_.store(true);
        round_.fetch_add(1);
        wake(round_, INT_MAX);
        for (auto& worker : workers_) worker.join();
    }
    for (auto* part : scratch_) std::free(part);
}

void Pool::take(int32_t thread) noexcept {
    for (;;) {
        const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
        if (index >= count_) return;
        task_(job_, index, thread);
    }
}

// Closing a job and entering it are both sequentially consistent: either a thread sees the job closed and leaves
// without a look at it, or the caller sees the thread and waits. Only then is the next job written.
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
    open_.store(true);
    round_.fetch_add(1);  // before the look at the sleepers; a thread counts itself before it looks at the round
    if (sleepers_.load() > 0) wake(round_, count - 1);
    take(0);
    open_.store(false);
    for (int64_t i = 0; helping_.load() != 0; i++) {
        if (crowded_ || i > kPauses * kPauses) sched_yield();
        relax();
    }
}

void Pool::work(int32_t thread) {
    const FloatMode plain;
    uint32_t seen = 0;
    for (;;) {
        const auto until = std::chrono::steady_clock::now() + kLook;
        while (!crowded_ && round_.load(std::memory_order_acquire) == seen) {
            for (int i = 0; i < kPauses && round_.load(std::memory_order_relaxed) == seen; i++) relax();
            if (std::chrono::steady_clock::now() > until) break;
        }
        while (round_.load() == seen) {
            sleepers_.fetch_add(1);
            if (round_.load() == seen) wait_change(round_, seen);
            sleepers_.fetch_sub(1);
        }
        seen = round_.load();
        if (stop_.load()) return;
        helping_.fetch_add(1);
        if (open_.load()) take(thread);
        helping_.fetch_sub(1);
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
        case DQ_INT_LINEAR_CODES:
            int_linear_codes(pool, *static_cast<const dq_int_linear_codes_args*>(call.args));
            return true;
        default:
            return false;
    }
}

}  // namespace
}  // namespace dq

extern "C" {

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
        case DQ_INT_LINEAR_CODES:
            return sizeof(dq_int_linear_codes_args);
        default:
            return -1;
    }
}

dq_context* dq_open(int32_t threads, int32_t isa) {
    if (threads < 1 || threads > DQ_MAX_THREADS || isa < DQ_PORTABLE || isa >= DQ_ISAS) return nullptr;
    const int32_t refusal = dq_refusal_of_isa(isa);
    if (refusal != DQ_OFFERED && refusal != DQ_ONLY_IN_TESTS) return nullptr;
    dq_context* context = nullptr;
    try {
        context = new dq_context(threads, isa);
    } catch (...) {
        return nullptr;
    }
    if (context->pool.ready()) return context;
    delete context;
    return nullptr;
}

void dq_close(dq_context* context) { delete context; }

int64_t dq_run(dq_context* context, const dq_call* calls, int64_t count) {
    return dq_run_timed(context, calls, count, nullptr);
}

int64_t dq_run_timed(dq_context* context, const dq_call* calls, int64_t count, int64_t* nanoseconds) {
    if (context->pool.orphaned()) {
        new (&context->running) std::mutex;  // a thread of the parent may have held it
        context->pool.adopt();
    }
    const std::lock_guard<std::mutex> alone(context->running);
    const dq::FloatMode plain;
    for (int64_t i = 0; i < count; i++) {
        if (nanoseconds == nullptr) {
            if (!dq::call_one(context->pool, calls[i])) return i + 1;
            continue;
        }
        const auto start = std::chrono::steady_clock::now();
        if (!dq::call_one(context->pool, calls[i])) return i + 1;
        const auto spent = std::chrono::steady_clock::now() - start;
        nanoseconds[i] = std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
    }
    return 0;
}

}  // extern "C"
