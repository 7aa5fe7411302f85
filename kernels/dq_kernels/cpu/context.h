// The pool of threads a context owns, and what kernels ask of it.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "dq_kernels.h"

#define DQ_MAX_THREADS 256
#define DQ_SCRATCH_BYTES (4u << 20)  // of each thread, reserved once; kernels carve it, never allocate

namespace dq {

using Task = void (*)(const void* job, int64_t index, int32_t thread);

// The caller takes tasks itself and the other threads help: none is waited for that has not begun a task, so that a
// short job does not pay for a thread that sleeps or has lost its CPU.
class Pool {
  public:
    Pool(int32_t threads, int32_t isa);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // Run task(job, i, thread) for i in 0..count-1, spread over the threads; returns when all are done.
    // A task must not throw, nor run another job.
    void run(int64_t count, Task task, const void* job);

    // The same for a callable f(index, thread).
    template <class F>
    void each(int64_t count, const F& f) {
        run(count, [](const void* job, int64_t index, int32_t thread) { (*static_cast<const F*>(job))(index, thread); },
            &f);
    }

    int32_t threads() const { return threads_; }
    int32_t isa() const { return isa_; }
    // 64-byte aligned memory of one thread, DQ_SCRATCH_BYTES long.
    void* scratch(int32_t thread) const { return scratch_[static_cast<size_t>(thread)]; }
    bool ready() const { return ready_; }
    // Whether this process is a fork of the one that started the threads, which it does not have.
    bool orphaned() const;
    // Start the threads again in a forked process; without them jobs run in the caller alone.
    void adopt();

  private:
    bool start();
    void work(int32_t thread);
    void take(int32_t thread) noexcept;

    int32_t threads_;
    int32_t isa_;
    bool ready_ = false;
    bool crowded_ = false;  // more threads than CPUs: waiting threads sleep at once
    uint32_t forks_ = 0;
    std::vector<void*> scratch_;
    std::vector<std::thread> workers_;
    Task task_ = nullptr;
    const void* job_ = nullptr;
    int64_t count_ = 0;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<int32_t> helping_{0};  // threads between entering and leaving a job
    alignas(64) std::atomic<int32_t> sleepers_{0};
    std::atomic<bool> open_{false};  // whether a job may be entered
    std::atomic<bool> stop_{false};
};

}  // namespace dq

struct dq_context {
    dq::Pool pool;
    std::mutex running;  // two threads that run calls on one context do so one after the other
    dq_context(int32_t threads, int32_t isa) : pool(threads, isa) {}
};

// Each op's entry, in dq_kernels/<op>/cpu.cpp.
namespace dq {
void quantize(Pool&, const dq_quantize_args&);
void group_norm_silu_quantize(Pool&, const dq_group_norm_silu_quantize_args&);
void layer_norm_quantize(Pool&, const dq_layer_norm_quantize_args&);
void geglu_quantize(Pool&, const dq_geglu_quantize_args&);
void int_linear(Pool&, const dq_int_linear_args&);
void int_conv2d(Pool&, const dq_int_conv2d_args&);
void elementwise(Pool&, const dq_elementwise_args&);
void attention(Pool&, const dq_attention_args&);
void float_linear(Pool&, const dq_float_linear_args&);
void float_conv2d(Pool&, const dq_float_conv2d_args&);
void int_linear_codes(Pool&, const dq_int_linear_codes_args&);
}  // namespace dq
