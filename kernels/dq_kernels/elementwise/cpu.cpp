// Elementwise kinds over strided arrays: axes are joined where they can be, then rows of the last one are handed to
// loops on contiguous memory, directly where a row is contiguous and through a small buffer where it is not.
#include <algorithm>
#include <cstring>

#include "context.h"
#include "simd/simd.h"

namespace dq {
namespace {

#define DQ_KERNELS "elementwise/rows.inc"
#include "simd/each.inc"

constexpr int kAxes = 6;
constexpr int64_t kChunk = 4096;   // of a row at a time: a buffer of it stays in the first cache
constexpr int64_t kGrain = 16384;  // elements of a task: less is not worth another thread

struct Axis {
    int64_t size;
    int64_t a;
    int64_t b;
    int64_t y;
};

struct Plan {
    Axis axis[kAxes];
    int axes = 0;
    bool two = false;  // whether b is read

    bool joins(const Axis& outer, const Axis& inner) const {
        return outer.y == inner.y * inner.size && outer.a == inner.a * inner.size &&
               (!two || outer.b == inner.b * inner.size);
    }
};

bool reads_b(int32_t kind) { return kind == DQ_ADD || kind == DQ_SUB || kind == DQ_MUL || kind == DQ_DIV; }

// Axes by falling stride of y, those of one element left out, neighbours joined; the last one is the row.
Plan plan_of(const dq_elementwise_args& args) {
    Axis found[kAxes];
    int count = 0;
    for (int i = 0; i < kAxes; i++) {
        if (args.size[i] == 1) continue;
        found[count++] = {args.size[i], args.a_stride[i], args.b_stride[i], args.y_stride[i]};
    }
    std::stable_sort(found, found + count, [](const Axis& l, const Axis& r) { return std::abs(l.y) > std::abs(r.y); });
    Plan plan;
    plan.two = reads_b(args.kind);
    for (int i = 0; i < count; i++) {
        Axis* last = plan.axes > 0 ? &plan.axis[plan.axes - 1] : nullptr;
        if (last != nullptr && plan.joins(*last, found[i])) {
            *last = {last->size * found[i].size, found[i].a, found[i].b, found[i].y};
        } else {
            plan.axis[plan.axes++] = found[i];
        }
    }
    if (plan.axes == 0) plan.axis[plan.axes++] = {1, 1, 1, 1};
    return plan;
}

// Where one operand of a row is read: in place, or from a buffer filled from strided memory.
const float* row_of(const float* from, int64_t stride, int64_t count, float* buffer) {
    if (stride == 1) return from;
    if (stride == 0) {
        std::fill_n(buffer, count, *from);
    } else {
        for (int64_t i = 0; i < count; i++) buffer[i] = from[i * stride];
    }
    return buffer;
}

void run_row(const dq_elementwise_args& args, int32_t isa, const Plan& plan, const float* a, const float* b, float* y,
             int64_t count) {
    alignas(64) float left[kChunk], right[kChunk], out[kChunk];
    const Axis& row = plan.axis[plan.axes - 1];
    const bool plain = row.a == 1 && row.y == 1 && (!plan.two || row.b == 1);
    if (plain && args.kind == DQ_COPY) {
        std::memmove(y, a, static_cast<size_t>(count) * sizeof(float));
        return;
    }
    if (plain) {
        DQ_FOR_ISA(isa, apply(args.kind, args.scalar, a, b, y, count));
        return;
    }
    for (int64_t first = 0; first < count; first += kChunk) {
        const int64_t here = std::min(kChunk, count - first);
        const float* from_a = row_of(a + first * row.a, row.a, here, left);
        const float* from_b = plan.two ? row_of(b + first * row.b, row.b, here, right) : nullptr;
        float* to = row.y == 1 ? y + first : out;
        DQ_FOR_ISA(isa, apply(args.kind, args.scalar, from_a, from_b, to, here));
        for (int64_t i = 0; row.y != 1 && i < here; i++) y[(first + i) * row.y] = out[i];
    }
}

// Rows [first, last) of the axes before the last; `begin` and `count` choose a part of each row.
void run_rows(const dq_elementwise_args& args, int32_t isa, const Plan& plan, int64_t first, int64_t last,
              int64_t begin, int64_t count) {
    const Axis& row = plan.axis[plan.axes - 1];
    int64_t at[kAxes] = {0, 0, 0, 0, 0, 0}, a = begin * row.a, b = begin * row.b, y = begin * row.y;
    for (int64_t rest = first, i = plan.axes - 2; i >= 0; i--) {
        const Axis& axis = plan.axis[i];
        at[i] = rest % axis.size;
        rest /= axis.size;
        a += at[i] * axis.a;
        b += at[i] * axis.b;
        y += at[i] * axis.y;
    }
    for (int64_t r = first; r < last; r++) {
        run_row(args, isa, plan, args.a + a, plan.two ? args.b + b : nullptr, args.y + y, count);
        for (int i = plan.axes - 2; i >= 0; i--) {
            const Axis& axis = plan.axis[i];
            a += axis.a;
            b += axis.b;
            y += axis.y;
            if (++at[i] < axis.size) break;
            at[i] = 0;
            a -= axis.size * axis.a;
            b -= axis.size * axis.b;
            y -= axis.size * axis.y;
        }
    }
}

}  // namespace

void elementwise(Pool& pool, const dq_elementwise_args& args) {
    for (int i = 0; i < kAxes; i++) {
        if (args.size[i] <= 0) return;
    }
    const Plan plan = plan_of(args);
    const int32_t isa = pool.isa();
    const int64_t row = plan.axis[plan.axes - 1].size;
    int64_t rows = 1;
    for (int i = 0; i + 1 < plan.axes; i++) rows *= plan.axis[i].size;
    if (row >= 2 * kGrain) {  // long rows in parts, one row after the other
        const int64_t parts = (row + kGrain - 1) / kGrain;
        pool.each(rows * parts, [&](int64_t task, int32_t) {
            const int64_t begin = task % parts * kGrain;
            run_rows(args, isa, plan, task / parts, task / parts + 1, begin, std::min(kGrain, row - begin));
        });
        return;
    }
    const int64_t together = std::max<int64_t>(1, kGrain / row);
    pool.each((rows + together - 1) / together, [&](int64_t task, int32_t) {
        const int64_t first = task * together;
        run_rows(args, isa, plan, first, std::min(rows, first + together), 0, row);
    });
}

}  // namespace dq
