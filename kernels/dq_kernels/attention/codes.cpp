// Attention with both products in integers: queries, keys, values and probabilities are codes.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "attention/attention.h"
#include "attention/quads.h"
#include "context.h"

namespace dq {
namespace quads {

const Kernels& kernels_of(int32_t isa) {
    if (isa == DQ_AMX_EMULATED) return amx_emulated;
#if defined(__x86_64__)
#if DQ_HAS_ATTENTION_TILES
    static const bool tiles = dq_has_bfloat16_tiles() != 0;
    if (tiles && isa == DQ_AMX) return amx;
#endif
    if (isa == DQ_AVX512_VNNI || isa == DQ_AMX) return avx512;
    if (isa == DQ_AVX2 || isa == DQ_AVX_VNNI) return avx2;
#endif
    (void)isa;
    return portable;
}

}  // namespace quads

namespace {

using fgemm::round_up;
using quads::Coder;

constexpr int64_t kMostRows = 192;
constexpr int64_t kWidest = 64;      // what columns are rounded up to, on any instruction set
constexpr int64_t kWhole = 16;       // and quads of a sum
constexpr int64_t kMostOfRows = 16;  // and rows
constexpr int64_t kScores = 140000;  // of a block of queries, so that they stay in the cache

int64_t row_of_table(const dq_quantizer& quantizer, int32_t step) { return quantizer.steps == 1 ? 0 : step; }

Coder coder_of(const dq_quantizer& quantizer, int32_t step) {
    const int64_t t = row_of_table(quantizer, step);
    const int32_t zero = quantizer.zero_point[t];
    return {quantizer.inverse_scale[t], quantizer.q_min - zero, quantizer.q_max - zero};
}

float scale_of(const dq_quantizer& quantizer, int32_t step) {
    return quantizer.scale[row_of_table(quantizer, step)];
}

// What one thread carves from its scratch, in words.
struct Sizes {
    int64_t rows, pitch, depth, width, keys, values;

    Sizes(int64_t kv_rows, int64_t head_dim, int64_t rows_of_block) {
        rows = rows_of_block;
        pitch = round_up(kv_rows, kWidest) + 16;  // rows do not fall on the same cache set
        depth = round_up((head_dim + 3) / 4, kWhole);
        width = round_up(head_dim, 32);
        keys = round_up(kv_rows, 32) * depth;
        values = round_up((kv_rows + 3) / 4, kWhole) * round_up(head_dim, 16);
    }
    int64_t words() const {
        return round_up(keys, 16) + round_up(values, 16) + pitch + rows * (pitch + depth + width) + 2 * round_up(rows, 16);
    }
    bool fit() const { return 4 * words() <= static_cast<int64_t>(DQ_SCRATCH_BYTES); }
};

struct Blocks {
    uint32_t *keys, *values, *q;
    int32_t *by_column, *scores, *out, *row_sums, *code_sums;

    Blocks(void* scratch, const Sizes& s) {
        keys = static_cast<uint32_t*>(scratch);
        values = keys + round_up(s.keys, 16);
        by_column = reinterpret_cast<int32_t*>(values + round_up(s.values, 16));
        scores = by_column + s.pitch;
        out = scores + s.rows * s.pitch;
        row_sums = out + s.rows * s.width;
        code_sums = row_sums + round_up(s.rows, 16);
        q = reinterpret_cast<uint32_t*>(code_sums + round_up(s.rows, 16));
    }
};

// The tables of one sample.
struct Coders {
    Coder q, k, v;
    float score, inverse, value;  // value: s_v, and s_p s_v where the softmax is normed
    int32_t highest;

    Coders(const dq_attention_args& args, int32_t step) {
        const dq_attention_codes& codes = args.codes;
        q = coder_of(codes.q, step), k = coder_of(codes.k, step), v = coder_of(codes.v, step);
        score = scale_of(codes.q, step) * scale_of(codes.k, step) * args.scale;
        inverse = codes.p.inverse_scale[row_of_table(codes.p, step)];
        value = scale_of(codes.v, step);
        if (codes.normed) value = scale_of(codes.p, step) * value;
        highest = codes.p.q_max;
    }
};

// A = sum cq ck of the packed bytes uq = cq - low_q and sk = ck - low_k - 128:
// sum (uq + low_q) (sk + low_k + 128), of which sum uq sk is the product.
void pack_head(const quads::Kernels& kernels, const dq_attention_args& args, const Coders& own, const float* k,
               const float* v, const Blocks& b, bool* nan) {
    kernels.pack_transposed(k, args.k_stride[2], args.kv_rows, args.head_dim, own.k, b.keys, b.by_column, nan);
    const int32_t both = static_cast<int32_t>(args.head_dim) * own.q.lowest * (own.k.lowest + 128);
    for (int64_t n = 0; n < args.kv_rows; n++) b.by_column[n] = b.by_column[n] * own.q.lowest + both;
    kernels.pack(v, args.v_stride[2], args.head_dim, args.kv_rows, own.v, b.values, nan);
}

int64_t words_of(const quads::Kernels& kernels, int64_t codes) { return round_up((codes + 3) / 4, kernels.words); }

void attend(const quads::Kernels& kernels, const dq_attention_args& args, const Coders& own, const Sizes& s,
            const Blocks& b, const float* q, float* y, int64_t rows, int64_t first, bool* nan) {
    const int64_t padded = round_up(rows, kernels.rows);
    for (int64_t i = 0; i < rows; i++) {
        b.row_sums[i] = kernels.row(q + i * args.q_stride[2], args.head_dim, own.q, b.q + i * s.depth, nan);
    }
    if (padded > rows) std::memset(b.q + rows * s.depth, 0, static_cast<size_t>((padded - rows) * s.depth) * 4);
    kernels.product(b.q, s.depth, b.keys, padded, args.kv_rows, words_of(kernels, args.head_dim), b.scores, s.pitch);
    const dq_attention_codes& codes = args.codes;
    for (int64_t i = 0; i < padded; i++) {
        int32_t* row = b.scores + i * s.pitch;
        if (i >= rows) {
            std::memset(row, 0, static_cast<size_t>(round_up(args.kv_rows, kWidest)));
            continue;
        }
        int32_t* seen = codes.scores == nullptr ? nullptr : codes.scores + (first + i) * args.kv_rows;
        b.code_sums[i] = kernels.softmax(row, args.kv_rows, b.row_sums[i] * (own.k.lowest + 128), b.by_column,
                                         own.score, own.inverse, codes.normed != 0, own.highest, seen);
        if (codes.weights != nullptr) {
            std::memcpy(codes.weights + (first + i) * args.kv_rows, row, static_cast<size_t>(args.kv_rows));
        }
    }
    kernels.product(reinterpret_cast<const uint32_t*>(b.scores), s.pitch, b.values, padded, args.head_dim,
                    words_of(kernels, args.kv_rows), b.out, s.width);
    for (int64_t i = 0; i < rows; i++) {
        const int32_t zero = b.code_sums[i] * (own.v.lowest + 128);
        const int32_t* out = b.out + i * s.width;
        const float by = codes.normed ? own.value : own.value / static_cast<float>(b.code_sums[i]);
        float* to = y + i * args.y_stride[2];
        for (int64_t n = 0; n < args.head_dim; n++) to[n] = static_cast<float>(out[n] + zero) * by;
        if (codes.sums == nullptr) continue;
        for (int64_t n = 0; n < args.head_dim; n++) codes.sums[(first + i) * args.head_dim + n] = out[n] + zero;
    }
}

// Rows of a block: as many as keep their scores in the cache, and that each thread has some. No result depends on it.
int64_t rows_of(const dq_attention_args& args, int64_t threads, int64_t whole) {
    int64_t most = kMostRows;
    while (most > whole && most * round_up(args.kv_rows, kWidest) > kScores) most -= whole;
    while (most > whole && !Sizes(args.kv_rows, args.head_dim, most).fit()) most -= whole;
    const int64_t heads = args.batch * args.heads;
    int64_t blocks = (args.q_rows + most - 1) / most;
    while (threads > 1 && heads * blocks < 2 * threads && args.q_rows / (blocks + 1) >= 2 * whole) blocks++;
    return round_up((args.q_rows + blocks - 1) / blocks, whole);
}

}  // namespace

void attention_in_codes(Pool& pool, const dq_attention_args& args) {
    const quads::Kernels& kernels = quads::kernels_of(pool.isa());
    const int64_t rows = rows_of(args, pool.threads(), kernels.rows);
    const Sizes sizes(args.kv_rows, args.head_dim, rows);
    const int64_t heads = args.batch * args.heads, blocks = (args.q_rows + rows - 1) / rows;
    const int64_t tasks = std::min<int64_t>(blocks, (4 * pool.threads() + heads - 1) / heads);
    std::atomic<bool> found{false};
    pool.each(heads * tasks, [&](int64_t task, int32_t thread) {
        const int64_t own = task % tasks, index = task / tasks, head = index % args.heads, batch = index / args.heads;
        const Blocks b(pool.scratch(thread), sizes);
        const Coders coders(args, args.codes.step[batch]);
        bool nan = false;
        if (kernels.begin != nullptr) kernels.begin();
        pack_head(kernels, args, coders, args.k + batch * args.k_stride[0] + head * args.k_stride[1],
                  args.v + batch * args.v_stride[0] + head * args.v_stride[1], b, &nan);
        for (int64_t block = own * blocks / tasks; block < (own + 1) * blocks / tasks; block++) {
            const int64_t row = block * rows;
            attend(kernels, args, coders, sizes, b,
                   args.q + batch * args.q_stride[0] + head * args.q_stride[1] + row * args.q_stride[2],
                   args.y + batch * args.y_stride[0] + head * args.y_stride[1] + row * args.y_stride[2],
                   std::min(rows, args.q_rows - row), index * args.q_rows + row, &nan);
        }
        if (kernels.end != nullptr) kernels.end();
        if (nan) found = true;
    });
    if (found && args.codes.nan_seen != nullptr) *args.codes.nan_seen = 1;
}

}  // namespace dq

extern "C" int32_t dq_attention_codes_fit(int64_t kv_rows, int64_t head_dim) {
    return dq::Sizes(kv_rows, head_dim, dq::kMostOfRows).fit();
}
