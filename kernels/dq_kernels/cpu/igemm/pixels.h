// What the two loops of the integer product share: where a window's pixels lie, what a panel's columns and a tile's
// rows are finished with. The loop of tiles.h has its own blocks and scratch.
#pragma once
#include <algorithm>
#include <cstring>

#include "igemm/igemm.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace dq {
namespace {

// One call of the product.
struct Layer {
    const dq_int_conv2d_args* args;
    const Packed* packed;
    const Kernels* kernels;
    int64_t pixels;   // of one sample's result
    int64_t rows;     // of all samples
    int64_t reach_h;  // rows of the image that a window spans
    int64_t reach_w;
};

inline Layer layer_of(const dq_int_conv2d_args& g) {
    Layer layer = {};
    layer.args = &g;
    layer.packed = static_cast<const Packed*>(g.weights);
    layer.kernels = &kernels_of(layer.packed->isa);
    layer.pixels = g.out_height * g.out_width;
    layer.rows = g.batch * layer.pixels;
    layer.reach_h = int64_t{g.kernel_h - 1} * g.dilation_h + 1;
    layer.reach_w = int64_t{g.kernel_w - 1} * g.dilation_w + 1;
    return layer;
}

// One pixel of the result: its sample, and where its window starts.
struct Row {
    const uint8_t* image;
    int64_t codes;  // of the window's first pixel, from the image's; may be outside
    int64_t y;
    int64_t x;
    int32_t sample;
    bool inside;  // the whole window is
};

inline int32_t bucket(const dq_int_conv2d_args& g, int32_t sample) {
    return g.quantizer.steps == 1 ? 0 : g.step[sample];
}

inline int32_t zero_code(const dq_int_conv2d_args& g, int32_t sample) {
    return g.quantizer.zero_point[bucket(g, sample)] - g.quantizer.q_min;
}

inline uint32_t sum_bytes(const uint8_t* bytes, int64_t count) {
    uint32_t sum = 0;
    int64_t i = 0;
#if defined(__SSE2__)
    __m128i wide = _mm_setzero_si128();
    for (; i + 16 <= count; i += 16) {
        const __m128i some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i));
        wide = _mm_add_epi64(wide, _mm_sad_epu8(some, _mm_setzero_si128()));
    }
    sum = static_cast<uint32_t>(_mm_cvtsi128_si32(wide)) + static_cast<uint32_t>(_mm_extract_epi16(wide, 4)) +
          (static_cast<uint32_t>(_mm_extract_epi16(wide, 5)) << 16);
#endif
    for (; i < count; i++) sum += bytes[i];
    return sum;
}

inline bool within(int64_t at, int64_t size) { return static_cast<uint64_t>(at) < static_cast<uint64_t>(size); }

inline void find_pixels(const Layer& layer, int64_t first, int64_t count, Row* rows) {
    const dq_int_conv2d_args& g = *layer.args;
    int64_t sample = first / layer.pixels, pixel = first % layer.pixels;
    int64_t y = pixel / g.out_width, x = pixel % g.out_width;
    const int64_t image_bytes = g.height * g.width * g.code_pitch;
    for (int64_t r = 0; r < count; r++) {
        Row& row = rows[r];
        row.image = g.codes + sample * image_bytes;
        row.sample = static_cast<int32_t>(sample);
        row.y = y * g.stride_h - g.pad_top;
        row.x = x * g.stride_w - g.pad_left;
        row.codes = (row.y * g.width + row.x) * g.code_pitch;
        row.inside = row.y >= 0 && row.x >= 0 && row.y + layer.reach_h <= g.height && row.x + layer.reach_w <= g.width;
        if (++x < g.out_width) continue;
        x = 0;
        if (++y < g.out_height) continue;
        y = 0;
        sample++;
    }
}

// Rows of zero code, one for each row of a tile, where the sample before has another code.
template <size_t kBytes>
inline void fill_zeros(const Layer& layer, uint8_t (*filled_rows)[kBytes], const Row* rows, int count, int64_t bytes,
                       const uint8_t** zeros) {
    int32_t filled = -1;
    for (int r = 0; r < count; r++) {
        const int32_t code = zero_code(*layer.args, rows[r].sample);
        zeros[r] = code == filled ? zeros[r - 1] : filled_rows[r];
        if (code != filled) std::memset(filled_rows[r], code, static_cast<size_t>(bytes));
        filled = code;
    }
}

// Pointers of a tile's rows, at most kMaxRows, at positions [first, first + count), `offset` bytes into each pixel's
// codes; `zero_rows` is memory for the rows outside the image, `bytes` of each.
template <size_t kBytes>
inline void point(const Layer& layer, uint8_t (*zero_rows)[kBytes], const Row* rows, int tile_rows, int64_t first,
                  int64_t count, int64_t offset, int64_t bytes, const uint8_t** to) {
    const dq_int_conv2d_args& g = *layer.args;
    bool inside = true;
    for (int r = 0; r < tile_rows; r++) inside = inside && rows[r].inside;
    const uint8_t* zeros[kMaxRows];
    if (!inside) fill_zeros(layer, zero_rows, rows, tile_rows, bytes, zeros);
    const Row& first_row = rows[0];
    const Row& last_row = rows[tile_rows - 1];
    const bool one_line = first_row.y == last_row.y && first_row.sample == last_row.sample;
    const int64_t pixel_bytes = g.stride_w * g.code_pitch;
    int64_t i = first / g.kernel_w, j = first % g.kernel_w;
    for (int64_t p = 0; p < count; p++, to += tile_rows) {
        const int64_t dy = i * g.dilation_h, dx = j * g.dilation_w;
        const int64_t step = (dy * g.width + dx) * g.code_pitch + offset;
        if (++j == g.kernel_w) {
            j = 0;
            i++;
        }
        if (inside) {
            for (int r = 0; r < tile_rows; r++) to[r] = rows[r].image + (rows[r].codes + step);
            continue;
        }
        if (one_line && within(first_row.y + dy, g.height)) {  // only its ends may be outside
            const int64_t at = first_row.codes + step;
            for (int r = 0; r < tile_rows; r++) to[r] = first_row.image + (at + r * pixel_bytes);
            for (int r = 0; r < tile_rows && rows[r].x + dx < 0; r++) to[r] = zeros[r];
            for (int r = tile_rows - 1; r >= 0 && rows[r].x + dx >= g.width; r--) to[r] = zeros[r];
            continue;
        }
        for (int r = 0; r < tile_rows; r++) {
            const bool here = within(rows[r].y + dy, g.height) && within(rows[r].x + dx, g.width);
            to[r] = here ? rows[r].image + (rows[r].codes + step) : zeros[r];
        }
    }
}

// What a panel's columns are finished with, padded to its width.
struct Columns {
    int32_t weight_sums[kMaxColumns];
    int32_t weight_zeros[kMaxColumns];
    float weight_scale[kMaxColumns];
    float bias[kMaxColumns];
    int64_t first;
    int count;  // that exist
};

inline void load_columns(const Layer& layer, Columns& c, int64_t panel) {
    const Packed& packed = *layer.packed;
    const dq_epilogue& e = layer.args->epilogue;
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&packed);
    const int32_t* sums = reinterpret_cast<const int32_t*>(bytes + packed.sums);
    const int32_t* zeros = reinterpret_cast<const int32_t*>(bytes + packed.zeros);
    c.first = panel * packed.columns;
    c.count = static_cast<int>(std::min(int64_t{packed.columns}, packed.out_channels - c.first));
    for (int i = 0; i < packed.columns; i++) {
        c.weight_sums[i] = sums[c.first + i];
        c.weight_zeros[i] = packed.zeros != 0 ? zeros[c.first + i] : 0;
        c.weight_scale[i] = i < c.count && e.weight_scale != nullptr ? e.weight_scale[c.first + i] : 0.0f;
        c.bias[i] = i < c.count && e.bias != nullptr && e.bias_pitch == 0 ? e.bias[c.first + i] : 0.0f;
    }
}

// Adds the codes that a tile's rows point to: `bytes` of each position; padding bytes of a pixel are no codes.
inline void add_codes(const uint8_t* const* rows, int count, int64_t positions, int64_t bytes, bool first,
                      uint32_t* code_sums) {
    for (int r = 0; r < count; r++) {
        uint32_t sum = first ? 0 : code_sums[r];
        for (int64_t p = 0; p < positions; p++) sum += sum_bytes(rows[p * count + r], bytes);
        code_sums[r] = sum;
    }
}

// Takes the weights' zero points out of a tile's sums, modulo 2^32: the result fits int32.
inline void take_zeros(const Columns& c, int count, int columns, const uint32_t* code_sums, int32_t* sums) {
    for (int r = 0; r < count; r++) {
        for (int n = 0; n < columns; n++) {
            int32_t& sum = sums[r * columns + n];
            sum = static_cast<int32_t>(static_cast<uint32_t>(sum) -
                                       static_cast<uint32_t>(c.weight_zeros[n]) * code_sums[r]);
        }
    }
}

// The epilogue of a tile, with what it reads by row.
template <int kRows>
struct TileFinish {
    Finish finish;
    int32_t codes[kRows];
    float scale[kRows];
    const float* row[kRows];
    const float* biases[kRows];

    // The tile's `count` rows begin at `start`, of all; its sums lie in `sums`. Where a kernel takes rows of one sample
    // together, `brief`, only what the first reads is set.
    void set(const Layer& layer, const Columns& c, int64_t start, const Row* rows, int count, const int32_t* sums,
             bool brief = false) {
        const dq_int_conv2d_args& g = *layer.args;
        const dq_epilogue& e = g.epilogue;
        const int64_t n = c.first;
        const bool by_step = e.bias != nullptr && e.bias_pitch != 0;
        for (int r = 0; r < (brief ? 1 : count); r++) {
            const int32_t at = bucket(g, rows[r].sample);
            codes[r] = g.quantizer.zero_point[at] - g.quantizer.q_min;
            scale[r] = g.quantizer.scale[at];
            if (e.row != nullptr) row[r] = e.row + rows[r].sample * e.row_pitch + n;
            if (by_step) biases[r] = e.bias + at * e.bias_pitch + n;
        }
        Finish& f = finish;
        f.sums = sums;
        f.weight_sums = c.weight_sums;
        f.weight_scale = c.weight_scale;
        f.bias = e.bias != nullptr && !by_step ? c.bias : nullptr;
        f.biases = by_step ? biases : nullptr;
        f.zero_code = codes;
        f.scale = scale;
        f.row = e.row != nullptr ? row : nullptr;
        f.previous = e.previous != nullptr ? e.previous + start * e.y_pitch + n : nullptr;
        f.residual = e.residual != nullptr ? e.residual + start * e.residual_pitch + n : nullptr;
        f.y = e.y != nullptr ? e.y + start * e.y_pitch + n : nullptr;
        f.accumulators = e.accumulators != nullptr ? e.accumulators + start * g.out_channels + n : nullptr;
        f.y_pitch = e.y_pitch;
        f.residual_pitch = e.residual_pitch;
        f.accumulators_pitch = g.out_channels;
        f.count = count;
        f.columns = c.count;
        f.together = brief;
        f.past_caches = false;
    }
};

}  // namespace
}  // namespace dq
