// softmax(scale q k^T) v by blocks of keys: scores never leave the cache, a row keeps its maximum and sum.
#include <algorithm>
#include <cstring>

#include "context.h"
#include "float_linear/fgemm.h"

namespace dq {
namespace {

using fgemm::kColumns;
using fgemm::kDepth;
using fgemm::kPitch;
using fgemm::kRows;
using fgemm::round_up;

constexpr int64_t kMostRows = 192;

// What one thread holds, carved from its scratch.
struct Blocks {
    float* packed;  // kDepth x kDepth of the keys or values
    float* scores;  // [rows, kPitch]
    float* max;
    float* sum;
    float* shrink;
    float* q;    // [head_dim / kDepth, rows, kPitch]
    float* out;  // [rows, width]
    int64_t rows;
    int64_t width;
};

int64_t floats_of(int64_t rows, int64_t head_dim) {
    const int64_t pieces = (head_dim + kDepth - 1) / kDepth;
    return kDepth * kDepth + 3 * round_up(rows, 16) +
           rows * (kPitch + pieces * kPitch + round_up(head_dim, kColumns));
}

Blocks carve(float* scratch, int64_t rows, int64_t head_dim) {
    Blocks b;
    b.rows = rows;
    b.width = round_up(head_dim, kColumns);
    b.packed = scratch;
    b.scores = b.packed + kDepth * kDepth;
    b.max = b.scores + rows * kPitch;
    b.sum = b.max + round_up(rows, 16);
    b.shrink = b.sum + round_up(rows, 16);
    b.q = b.shrink + round_up(rows, 16);
    b.out = b.q + rows * kPitch * ((head_dim + kDepth - 1) / kDepth);
    return b;
}

struct Head {
    const float* q;
    const float* k;
    const float* v;
    float* y;
};

void load_queries(const dq_attention_args& args, const Blocks& b, const float* q, int64_t rows) {
    for (int64_t d = 0, piece = 0; d < args.head_dim; d += kDepth, piece++) {
        const int64_t depth = std::min(kDepth, args.head_dim - d);
        for (int64_t i = 0; i < round_up(rows, kRows); i++) {
            float* to = b.q + (piece * b.rows + i) * kPitch;
            const float* from = q + i * args.q_stride[2] + d;
            for (int64_t n = 0; n < depth; n++) to[n] = i < rows ? from[n] * args.scale : 0.0f;
        }
    }
}

void rescale(const Blocks& b, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) {
        const float by = b.shrink[i];
        if (by == 1.0f) continue;
        float* out = b.out + i * b.width;
        for (int64_t n = 0; n < b.width; n++) out[n] *= by;
    }
}

void attend(const fgemm::Kernels& kernels, const dq_attention_args& args, const Blocks& b, const Head& head,
            int64_t rows) {
    const int64_t padded = round_up(rows, kRows);
    load_queries(args, b, head.q, rows);
    std::fill_n(b.max, padded, -3e38f);
    std::fill_n(b.sum, padded, 0.0f);
    for (int64_t key = 0; key < args.kv_rows; key += kDepth) {
        const int64_t keys = std::min(kDepth, args.kv_rows - key);
        for (int64_t d = 0, piece = 0; d < args.head_dim; d += kDepth, piece++) {
            const int64_t depth = std::min(kDepth, args.head_dim - d);
            kernels.pack_transposed(head.k + key * args.k_stride[2] + d, args.k_stride[2], keys, depth, b.packed);
            kernels.product(b.q + piece * b.rows * kPitch, b.packed, padded, keys, depth, b.scores, kPitch, d > 0);
        }
        kernels.softmax(b.scores, padded, keys, b.max, b.sum, b.shrink);
        if (key > 0) rescale(b, padded);
        for (int64_t d = 0; d < args.head_dim; d += kDepth) {
            const int64_t columns = std::min(kDepth, args.head_dim - d);
            kernels.pack(head.v + key * args.v_stride[2] + d, args.v_stride[2], columns, keys, b.packed);
            kernels.product(b.scores, b.packed, padded, columns, keys, b.out + d, b.width, key > 0);
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        const float by = 1.0f / b.sum[i];
        const float* out = b.out + i * b.width;
        float* y = head.y + i * args.y_stride[2];
        for (int64_t n = 0; n < args.head_dim; n++) y[n] = out[n] * by;
    }
}

// Rows of a task: few enough for the scratch, and that each thread has some, but not fewer than are worth the packing
// of the keys. No result depends on it.
int64_t block_rows(const dq_attention_args& args, int64_t threads) {
    const int64_t floats = static_cast<int64_t>(DQ_SCRATCH_BYTES / sizeof(float));
    int64_t most = kMostRows;
    while (most > kRows && floats_of(most, args.head_dim) > floats) most -= kRows;
    const int64_t heads = args.batch * args.heads;
    int64_t blocks = (args.q_rows + most - 1) / most;
    while (threads > 1 && heads * blocks < 2 * threads && args.q_rows / (blocks + 1) >= 2 * kRows) blocks++;
    return round_up((args.q_rows + blocks - 1) / blocks, kRows);
}

static_assert(kMostRows % kRows == 0, "blocks are whole");

}  // namespace

void attention(Pool& pool, const dq_attention_args& args) {
    if (args.q_rows < 1 || args.kv_rows < 1) return;
    const fgemm::Kernels& kernels = fgemm::kernels_of(pool.isa());
    const int64_t size = block_rows(args, pool.threads());
    const int64_t blocks = (args.q_rows + size - 1) / size;
    pool.each(args.batch * args.heads * blocks, [&](int64_t task, int32_t thread) {
        const int64_t first = task % blocks * size, head = task / blocks % args.heads;
        const int64_t batch = task / blocks / args.heads;
        const Head here{
            args.q + batch * args.q_stride[0] + head * args.q_stride[1] + first * args.q_stride[2],
            args.k + batch * args.k_stride[0] + head * args.k_stride[1],
            args.v + batch * args.v_stride[0] + head * args.v_stride[1],
            args.y + batch * args.y_stride[0] + head * args.y_stride[1] + first * args.y_stride[2],
        };
        const Blocks b = carve(static_cast<float*>(pool.scratch(thread)), size, args.head_dim);
        attend(kernels, args, b, here, std::min(size, args.q_rows - first));
    });
}

}  // namespace dq
