// softmax(scale q k^T) v by blocks of keys: scores never leave the cache, a row keeps its maximum and sum.
#include <algorithm>
#include <cstring>

#include "attention/attention.h"
#include "attention/pairs.h"
#include "attention/quads.h"
#include "context.h"
#include "float_linear/fgemm.h"
#include "simd/simd.h"

namespace dq {
namespace pairs {

const Kernels& kernels_of(int32_t isa) {
    if (isa == DQ_AMX_EMULATED) return amx_emulated;
#if defined(__x86_64__)
#if DQ_HAS_ATTENTION_TILES
    static const bool tiles = dq_has_bfloat16_tiles() != 0;
    if (tiles && isa == DQ_AMX) return amx;
#endif
#if DQ_HAS_BF16
    static const bool instruction = dq_has_bfloat16() != 0;
    if (instruction && (isa == DQ_AVX512_VNNI || isa == DQ_AMX)) return avx512_bf16;
#endif
    if (isa == DQ_AVX512_VNNI || isa == DQ_AMX) return avx512;
    if (isa == DQ_AVX2 || isa == DQ_AVX_VNNI) return avx2;
#endif
    (void)isa;
    return portable;
}

}  // namespace pairs

namespace {

using fgemm::kColumns;
using fgemm::kDepth;
using fgemm::kPitch;
using fgemm::round_up;

constexpr int64_t kMostRows = 192;
constexpr int64_t kMostOfRows = 16;  // what rows are rounded up to, at most
constexpr int64_t kWhole = 16;       // and words of a sum
constexpr int64_t kNarrowest = 16;  // what packed columns are rounded up to, on any instruction set

int64_t pieces_of(int64_t values) { return (values + kDepth - 1) / kDepth; }

// What both number types do to a block of `rows` queries and up to kDepth keys. `Word` holds what is multiplied: a
// float, or a pair of bfloat16 that follow each other along the sum.
template <class Kernels, class W>
struct Products {
    using Word = W;
    const Kernels& kernels;

    void pack_keys(const float* src, int64_t pitch, int64_t keys, int64_t depth, Word* packed) const {
        kernels.pack_transposed(src, pitch, keys, depth, packed);
    }
    void pack_values(const float* src, int64_t pitch, int64_t columns, int64_t keys, Word* packed) const {
        kernels.pack(src, pitch, columns, keys, packed);
    }
    void product(const Word* a, const Word* packed, int64_t rows, int64_t columns, int64_t words, float* c,
                 int64_t c_pitch, bool accumulate) const {
        kernels.product(a, packed, rows, columns, words, c, c_pitch, accumulate);
    }
};

struct Float32 : Products<fgemm::Kernels, float> {
    int64_t whole_rows() const { return fgemm::kRows; }
    int64_t words_of(int64_t values) const { return values; }
    void begin() const {}
    void end() const {}
    static constexpr const pairs::Turned* turned() { return nullptr; }
    static constexpr int64_t kValues = 1;  // of a word
    static constexpr int64_t kPitch = fgemm::kPitch;
    static constexpr int64_t kGroup = 1;    // what rows are rounded up to
    static constexpr int64_t kWeights = 0;  // pitch of the softmax's result; it lies where the scores were

    void query(const float* from, int64_t depth, float scale, Word* to) const {
        for (int64_t n = 0; n < depth; n++) to[n] = from[n] * scale;
    }
    const Word* softmax(float* scores, int64_t rows, int64_t keys, float* max, float* sum, float* shrink, Word*) const {
        kernels.softmax(scores, rows, keys, max, sum, shrink);
        return scores;
    }
    static float scale_of(float scale) { return scale; }
};

struct Bfloat16 : Products<pairs::Kernels, uint32_t> {
    int64_t whole_rows() const { return kernels.rows; }
    int64_t words_of(int64_t values) const { return round_up((values + 1) / 2, kernels.words); }
    void begin() const {
        if (kernels.begin != nullptr) kernels.begin();
    }
    void end() const {
        if (kernels.end != nullptr) kernels.end();
    }
    const pairs::Turned* turned() const { return kernels.turned; }
    static constexpr int64_t kValues = 2;
    static constexpr int64_t kPitch = pairs::kPitch;
    static constexpr int64_t kGroup = pairs::kGroup;
    static constexpr int64_t kWeights = pairs::kPitch;

    void query(const float* from, int64_t depth, float scale, Word* to) const {
        kernels.pairs_of(from, depth, scale, to);
    }
    const Word* softmax(float* scores, int64_t rows, int64_t keys, float* max, float* sum, float* shrink,
                        Word* weights) const {
        kernels.softmax(scores, rows, keys, max, sum, shrink, weights);
        return weights;
    }
    static float scale_of(float scale) { return scale * 1.44269504f; }  // scores in units of log 2
};

// Elements of each array that a thread carves from its scratch, in this order; and of all keys and values packed.
template <class Type>
struct Sizes {
    int64_t rows, width, pieces, keys_of_block, values_of_block, kept;

    Sizes(const dq_attention_args& args, int64_t rows_of_task) {
        rows = round_up(rows_of_task, Type::kGroup);
        width = round_up(args.head_dim, kColumns);
        pieces = pieces_of(args.head_dim);
        keys_of_block = kDepth * round_up((args.head_dim + Type::kValues - 1) / Type::kValues, kWhole);
        values_of_block = kDepth / Type::kValues * round_up(args.head_dim, kNarrowest);
        kept = pieces_of(args.kv_rows) * (keys_of_block + values_of_block);
    }
    // Of one piece of keys or values, where they are packed again for each block of queries.
    static constexpr int64_t kPiece = kDepth / Type::kValues * kDepth;
    int64_t floats() const { return 3 * round_up(rows, 16) + rows * (kPitch + width); }
    int64_t words() const { return rows * (Type::kWeights + pieces * Type::kPitch); }
    int64_t bytes(bool keep) const { return 4 * (floats() + words() + (keep ? kept : kPiece)); }
};

// What one thread holds, carved from its scratch.
template <class Type>
struct Blocks {
    using Word = typename Type::Word;
    float *max, *sum, *shrink;
    float* scores;  // [rows, kPitch]
    float* out;     // [rows, width]
    Word* weights;  // [rows, kWeights]
    Word* q;        // [pieces, rows, Type::kPitch]
    Word* packed;   // of all blocks of keys, where they are kept; else of one piece
    Sizes<Type> sizes;
    bool keep;

    Blocks(void* scratch, const Sizes<Type>& given, bool all) : sizes(given), keep(all) {
        const int64_t rows = sizes.rows;
        packed = static_cast<Word*>(scratch);
        scores = reinterpret_cast<float*>(packed + round_up(keep ? sizes.kept : sizes.kPiece, 16));
        out = scores + rows * kPitch;
        max = out + rows * sizes.width;
        sum = max + round_up(rows, 16);
        shrink = sum + round_up(rows, 16);
        weights = reinterpret_cast<Word*>(shrink + round_up(rows, 16));
        q = weights + rows * Type::kWeights;
    }
    Word* keys_at(int64_t block, int64_t piece) const {
        if (!keep) return packed;
        const int64_t before = piece * (kDepth / Type::kValues) * kDepth;
        return packed + block * (sizes.keys_of_block + sizes.values_of_block) + before;
    }
    Word* values_at(int64_t block, int64_t piece) const {
        if (!keep) return packed;
        const int64_t before = piece * (kDepth / Type::kValues) * kDepth;
        return packed + block * (sizes.keys_of_block + sizes.values_of_block) + sizes.keys_of_block + before;
    }
};

struct Head {
    const float* q;
    const float* k;
    const float* v;
    float* y;
};

template <class Type>
void load_queries(const Type& type, const dq_attention_args& args, const Blocks<Type>& b, const float* q,
                  int64_t rows) {
    const float scale = Type::scale_of(args.scale);
    for (int64_t d = 0, piece = 0; d < args.head_dim; d += kDepth, piece++) {
        const int64_t depth = std::min(kDepth, args.head_dim - d);
        for (int64_t i = 0; i < round_up(rows, type.whole_rows()); i++) {
            auto* to = b.q + (piece * b.sizes.rows + i) * Type::kPitch;
            if (i < rows) {
                type.query(q + i * args.q_stride[2] + d, depth, scale, to);
            } else {
                std::memset(to, 0, static_cast<size_t>(type.words_of(depth)) * sizeof *to);
            }
        }
    }
}

// One block of queries of a head that is not too wide, in groups: all keys for one group after the other, or, where keys
// are not kept, all groups for 32 keys. The same bits.
template <class Type>
void attend_turned(const Type& type, const dq_attention_args& args, const Blocks<Type>& b, const Head& head, int64_t rows,
                   bool pack) {
    using pairs::kGroup;
    const pairs::Turned& turned = *type.turned();
    const int64_t words = type.words_of(args.head_dim), of_keys = kGroup * words;
    const int64_t of_block = of_keys + round_up(args.head_dim, kWhole) * kGroup / 2;
    auto* q = reinterpret_cast<uint32_t*>(b.q);
    auto* packed = reinterpret_cast<uint32_t*>(b.packed);
    auto pack_block = [&](int64_t key, uint32_t* to) {
        const int64_t keys = std::min(kGroup, args.kv_rows - key);
        turned.keys(head.k + key * args.k_stride[2], args.k_stride[2], keys, args.head_dim, to);
        turned.values(head.v + key * args.v_stride[2], args.v_stride[2], keys, args.head_dim, to + of_keys);
    };
    auto attend = [&](int64_t row, int64_t key, int64_t keys) {
        turned.group({q + row * words, packed, keys, words, args.head_dim, b.scores, reinterpret_cast<uint32_t*>(b.weights),
                      b.max + row, b.sum + row, b.out + row * b.sizes.width, key == 0});
    };
    std::fill_n(b.max, round_up(rows, kGroup), -3e38f);
    std::fill_n(b.sum, round_up(rows, kGroup), 0.0f);
    for (int64_t row = 0; row < rows; row += kGroup) {
        turned.queries(head.q + row * args.q_stride[2], args.q_stride[2], std::min(kGroup, rows - row), args.head_dim,
                       Type::scale_of(args.scale), q + row * words);
    }
    if (b.keep) {
        for (int64_t key = 0; pack && key < args.kv_rows; key += kGroup) pack_block(key, packed + key / kGroup * of_block);
        for (int64_t row = 0; row < rows; row += kGroup) attend(row, 0, args.kv_rows);
    } else {
        for (int64_t key = 0; key < args.kv_rows; key += kGroup) {
            pack_block(key, packed);
            for (int64_t row = 0; row < rows; row += kGroup) attend(row, key, std::min(kGroup, args.kv_rows - key));
        }
    }
    for (int64_t row = 0; row < rows; row += kGroup) {
        turned.quotients(b.out + row * b.sizes.width, b.sum + row, std::min(kGroup, rows - row), args.head_dim,
                         head.y + row * args.y_stride[2], args.y_stride[2]);
    }
}

template <class Type>
void rescale(const Blocks<Type>& b, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) {
        const float by = b.shrink[i];
        if (by == 1.0f) continue;
        float* out = b.out + i * b.sizes.width;
        for (int64_t n = 0; n < b.sizes.width; n++) out[n] *= by;
    }
}

// One block of queries. Keys and values are packed where they are not kept from the block before.
template <class Type>
void attend(const Type& type, const dq_attention_args& args, const Blocks<Type>& b, const Head& head, int64_t rows,
            bool pack) {
    if (type.turned() != nullptr && args.head_dim <= pairs::kWidestTurned) return attend_turned(type, args, b, head, rows, pack);
    const int64_t padded = round_up(rows, type.whole_rows());
    load_queries(type, args, b, head.q, rows);
    std::fill_n(b.max, padded, -3e38f);
    std::fill_n(b.sum, padded, 0.0f);
    for (int64_t key = 0, block = 0; key < args.kv_rows; key += kDepth, block++) {
        const int64_t keys = std::min(kDepth, args.kv_rows - key);
        for (int64_t d = 0, piece = 0; d < args.head_dim; d += kDepth, piece++) {
            const int64_t depth = std::min(kDepth, args.head_dim - d);
            auto* packed = b.keys_at(block, piece);
            if (pack) type.pack_keys(head.k + key * args.k_stride[2] + d, args.k_stride[2], keys, depth, packed);
            type.product(b.q + piece * b.sizes.rows * Type::kPitch, packed, padded, keys, type.words_of(depth),
                         b.scores, kPitch, d > 0);
        }
        const auto* weights = type.softmax(b.scores, padded, keys, b.max, b.sum, b.shrink, b.weights);
        if (key > 0) rescale(b, padded);
        for (int64_t d = 0, piece = 0; d < args.head_dim; d += kDepth, piece++) {
            const int64_t columns = std::min(kDepth, args.head_dim - d);
            auto* packed = b.values_at(block, piece);
            if (pack) type.pack_values(head.v + key * args.v_stride[2] + d, args.v_stride[2], columns, keys, packed);
            type.product(weights, packed, padded, columns, type.words_of(keys), b.out + d, b.sizes.width, key > 0);
        }
    }
    for (int64_t i = 0; i < rows; i++) {
        const float by = 1.0f / b.sum[i];
        const float* out = b.out + i * b.sizes.width;
        float* y = head.y + i * args.y_stride[2];
        for (int64_t n = 0; n < args.head_dim; n++) y[n] = out[n] * by;
    }
}

// How the queries of a head are divided. No result depends on it: a row's sums run over the keys in order.
struct Division {
    int64_t rows;    // of a block
    int64_t blocks;  // of a head
    int64_t tasks;   // of a head: runs of blocks for which keys and values are packed once, where they fit
    bool keep;
};

// Rows of a block: few enough for the scratch, and that each thread has some, but not fewer than are worth the packing
// of the keys.
template <class Type>
Division divide(const dq_attention_args& args, int64_t threads, int64_t whole) {
    Division found;
    int64_t most = kMostRows;
    while (most > whole && Sizes<Type>(args, most).bytes(false) > DQ_SCRATCH_BYTES) most -= whole;
    const int64_t heads = args.batch * args.heads;
    int64_t blocks = (args.q_rows + most - 1) / most;
    while (threads > 1 && heads * blocks < 2 * threads && args.q_rows / (blocks + 1) >= 2 * whole) blocks++;
    found.rows = round_up((args.q_rows + blocks - 1) / blocks, whole);
    found.blocks = (args.q_rows + found.rows - 1) / found.rows;
    found.keep = Sizes<Type>(args, found.rows).bytes(true) <= static_cast<int64_t>(DQ_SCRATCH_BYTES) - 4096;
    found.tasks = found.keep ? std::min(found.blocks, (4 * threads + heads - 1) / heads) : found.blocks;
    return found;
}

template <class Type>
void run(Pool& pool, const dq_attention_args& args, const Type& type) {
    const Division division = divide<Type>(args, pool.threads(), type.whole_rows());
    pool.each(args.batch * args.heads * division.tasks, [&](int64_t task, int32_t thread) {
        const int64_t own = task % division.tasks, head = task / division.tasks % args.heads;
        const int64_t batch = task / division.tasks / args.heads;
        const int64_t first = own * division.blocks / division.tasks;
        const int64_t end = (own + 1) * division.blocks / division.tasks;
        const Blocks<Type> b(pool.scratch(thread), Sizes<Type>(args, division.rows), division.keep);
        type.begin();
        for (int64_t block = first; block < end; block++) {
            const int64_t row = block * division.rows;
            const Head here{
                args.q + batch * args.q_stride[0] + head * args.q_stride[1] + row * args.q_stride[2],
                args.k + batch * args.k_stride[0] + head * args.k_stride[1],
                args.v + batch * args.v_stride[0] + head * args.v_stride[1],
                args.y + batch * args.y_stride[0] + head * args.y_stride[1] + row * args.y_stride[2],
            };
            const int64_t rows = std::min(division.rows, args.q_rows - row);
            attend(type, args, b, here, rows, !division.keep || block == first);
        }
        type.end();
    });
}

static_assert(kMostRows % fgemm::kRows == 0 && kMostRows % kMostOfRows == 0, "blocks are whole");
static_assert(kDepth / 2 % kWhole == 0, "a piece has whole words");

}  // namespace

void attention(Pool& pool, const dq_attention_args& args) {
    if (args.q_rows < 1 || args.kv_rows < 1) return;
    if (args.precision == DQ_INT8) return attention_in_codes(pool, args);
    if (args.precision == DQ_BFLOAT16) return run(pool, args, Bfloat16{{pairs::kernels_of(pool.isa())}});
    return run(pool, args, Float32{{fgemm::kernels_of(pool.isa())}});
}

}  // namespace dq

extern "C" const char* dq_attention_form(int32_t isa, int32_t precision) {
    if (precision == DQ_INT8) return dq::quads::kernels_of(isa).form;
    return precision == DQ_BFLOAT16 ? dq::pairs::kernels_of(isa).form : "float32 multiply-adds";
}
