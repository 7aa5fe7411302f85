// The loop around the kernels of the integer product: tasks, blocks of the weights, tiles of pixels.
//
// A task is one panel of output channels times a chunk of pixels. It goes through its panel block by block, each
// small enough for the second-level cache, unpacks the block once and multiplies all tiles of the chunk by it.
#include "igemm/igemm.h"

#include <algorithm>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace dq {
namespace {

constexpr int64_t kBlockBytes = 128 << 10;  // of weights as the kernel takes them
constexpr int64_t kChunkRows = 256;         // of a task, at most: its sums take kChunkRows * kMaxColumns * 4 bytes
constexpr int64_t kTasksPerThread = 4;      // so that a late thread holds up the others by little
constexpr int64_t kUnpackedTiles = 4;       // with more tiles to a task, unpacking once beats unpacking in the kernel
constexpr int64_t kLeastGroupBytes = 32;    // a group of the narrowest panel as a kernel takes it

struct Job {
    const dq_int_conv2d_args* args;
    const Packed* packed;
    const Kernels* kernels;
    int64_t pixels;  // of one sample's result
    int64_t rows;    // of all samples
    int64_t tiles;   // of all rows
    int64_t tile_rows;
    int64_t longer_tiles;  // have one row more
    int64_t chunks;        // of the tiles
    int64_t block_positions;
    int64_t block_groups;
    int64_t reach_h;  // rows of the image that a window spans
    int64_t reach_w;
};

// One pixel of the result: its sample, and where its window starts.
struct Row {
    const uint8_t* image;
    int64_t codes;  // of the window's first pixel, from the image's; may be outside
    int64_t y;
    int64_t x;
    int32_t sample;
    bool inside;  // the whole window is
};

// A thread's scratch. Its parts do not depend on the layer's size.
struct Scratch {
    Row pixels[kChunkRows + kMaxRows];
    alignas(64) int32_t sums[(kChunkRows + kMaxRows) * kMaxColumns];
    alignas(64) uint8_t panel[kBlockBytes];
    const uint8_t* rows[kBlockBytes / kLeastGroupBytes * kMaxRows];
    uint8_t zeros[kMaxRows][kBlockBytes / kLeastGroupBytes * 4];
    int32_t weight_sums[kMaxColumns];
    int32_t weight_zeros[kMaxColumns];
    uint32_t code_sums[kChunkRows + kMaxRows];
    float weight_scale[kMaxColumns];
    float bias[kMaxColumns];
};
static_assert(sizeof(Scratch) <= DQ_SCRATCH_BYTES, "a thread's scratch holds it");

int32_t bucket(const dq_int_conv2d_args& g, int32_t sample) { return g.quantizer.steps == 1 ? 0 : g.step[sample]; }

int32_t zero_code(const dq_int_conv2d_args& g, int32_t sample) {
    return g.quantizer.zero_point[bucket(g, sample)] - g.quantizer.q_min;
}

uint32_t sum_bytes(const uint8_t* bytes, int64_t count) {
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

bool within(int64_t at, int64_t size) { return static_cast<uint64_t>(at) < static_cast<uint64_t>(size); }

// Tiles differ by at most one row, so that none is much slower by the row than the others.
int64_t tile_start(const Job& job, int64_t tile) { return tile * job.tile_rows + std::min(tile, job.longer_tiles); }

void find_pixels(const Job& job, int64_t first, int64_t count, Row* rows) {
    const dq_int_conv2d_args& g = *job.args;
    int64_t sample = first / job.pixels, pixel = first % job.pixels;
    int64_t y = pixel / g.out_width, x = pixel % g.out_width;
    const int64_t image_bytes = g.height * g.width * g.code_pitch;
    for (int64_t r = 0; r < count; r++) {
        Row& row = rows[r];
        row.image = g.codes + sample * image_bytes;
        row.sample = static_cast<int32_t>(sample);
        row.y = y * g.stride_h - g.pad_top;
        row.x = x * g.stride_w - g.pad_left;
        row.codes = (row.y * g.width + row.x) * g.code_pitch;
        row.inside = row.y >= 0 && row.x >= 0 && row.y + job.reach_h <= g.height && row.x + job.reach_w <= g.width;
        if (++x < g.out_width) continue;
        x = 0;
        if (++y < g.out_height) continue;
        y = 0;
        sample++;
    }
}

// Rows of zero code, one for each row of a tile, where the sample before has another code.
void fill_zeros(const Job& job, Scratch& s, const Row* rows, int count, int64_t bytes, const uint8_t** zeros) {
    int32_t filled = -1;
    for (int r = 0; r < count; r++) {
        const int32_t code = zero_code(*job.args, rows[r].sample);
        zeros[r] = code == filled ? zeros[r - 1] : s.zeros[r];
        if (code != filled) std::memset(s.zeros[r], code, static_cast<size_t>(bytes));
        filled = code;
    }
}

// Pointers of a tile's rows at positions [first, first + count), `offset` bytes into each pixel's codes.
void point(const Job& job, Scratch& s, const Row* rows, int tile_rows, int64_t first, int64_t count, int64_t offset,
           int64_t bytes) {
    const dq_int_conv2d_args& g = *job.args;
    bool inside = true;
    for (int r = 0; r < tile_rows; r++) inside = inside && rows[r].inside;
    const uint8_t* zeros[kMaxRows];
    if (!inside) fill_zeros(job, s, rows, tile_rows, bytes, zeros);
    const Row& first_row = rows[0];
    const Row& last_row = rows[tile_rows - 1];
    const bool one_line = first_row.y == last_row.y && first_row.sample == last_row.sample;
    const int64_t pixel_bytes = g.stride_w * g.code_pitch;
    int64_t i = first / g.kernel_w, j = first % g.kernel_w;
    const uint8_t** to = s.rows;
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

// The columns' constants of a panel, padded to its width.
void load_columns(const Job& job, Scratch& s, int64_t panel, int columns) {
    const Packed& packed = *job.packed;
    const dq_epilogue& e = job.args->epilogue;
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&packed);
    const int32_t* sums = reinterpret_cast<const int32_t*>(bytes + packed.sums);
    const int32_t* zeros = reinterpret_cast<const int32_t*>(bytes + packed.zeros);
    const int64_t first = panel * packed.columns;
    for (int i = 0; i < packed.columns; i++) {
        s.weight_sums[i] = sums[first + i];
        s.weight_zeros[i] = packed.zeros != 0 ? zeros[first + i] : 0;
        s.weight_scale[i] = i < columns && e.weight_scale != nullptr ? e.weight_scale[first + i] : 0.0f;
        s.bias[i] = i < columns && e.bias != nullptr ? e.bias[first + i] : 0.0f;
    }
}

// Adds the codes that a tile's rows point to: `bytes` of each position; padding bytes of a pixel are no codes.
void add_codes(const Scratch& s, int count, int64_t positions, int64_t bytes, bool first, uint32_t* code_sums) {
    for (int r = 0; r < count; r++) {
        uint32_t sum = first ? 0 : code_sums[r];
        for (int64_t p = 0; p < positions; p++) sum += sum_bytes(s.rows[p * count + r], bytes);
        code_sums[r] = sum;
    }
}

// Takes the weights' zero points out of a tile's sums, modulo 2^32: the result fits int32.
void take_zeros(const Scratch& s, int count, int columns, const uint32_t* code_sums, int32_t* sums) {
    for (int r = 0; r < count; r++) {
        for (int n = 0; n < columns; n++) {
            int32_t& sum = sums[r * columns + n];
            sum = static_cast<int32_t>(static_cast<uint32_t>(sum) -
                                       static_cast<uint32_t>(s.weight_zeros[n]) * code_sums[r]);
        }
    }
}

void finish_tile(const Job& job, const Scratch& s, int64_t start, const Row* rows, int count, const int32_t* sums,
                 int64_t panel, int columns) {
    const dq_int_conv2d_args& g = *job.args;
    const dq_epilogue& e = g.epilogue;
    const int64_t n = panel * job.packed->columns;
    int32_t codes[kMaxRows];
    float scale[kMaxRows];
    const float* row[kMaxRows];
    for (int r = 0; r < count; r++) {
        const int32_t at = bucket(g, rows[r].sample);
        codes[r] = g.quantizer.zero_point[at] - g.quantizer.q_min;
        scale[r] = g.quantizer.scale[at];
        if (e.row != nullptr) row[r] = e.row + rows[r].sample * e.row_pitch + n;
    }
    Finish f = {};
    f.sums = sums;
    f.weight_sums = s.weight_sums;
    f.weight_scale = s.weight_scale;
    f.bias = e.bias != nullptr ? s.bias : nullptr;
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
    f.columns = columns;
    job.kernels->finish(f);
}

// A block of a panel as the kernel takes it, and that kernel.
const void* block_weights(const Job& job, Scratch& s, const uint8_t* packed, int64_t groups, int64_t tiles,
                          const MultiplyRows** multiply) {
    const Kernels& kernels = *job.kernels;
    *multiply = kernels.multiply;
    if (job.packed->form == kWide) {
        *multiply = kernels.multiply_wide;
        kernels.widen(reinterpret_cast<const int8_t*>(packed), s.panel, groups);
        return s.panel;
    }
    if (job.packed->form == kInt8) return packed;
    if (tiles <= kUnpackedTiles && kernels.multiply_int4 != nullptr) {
        *multiply = kernels.multiply_int4;
        return packed;
    }
    kernels.unpack(packed, s.panel, groups);
    return s.panel;
}

void run_task(const Job& job, int64_t panel, int64_t chunk, Scratch& s) {
    const Packed& packed = *job.packed;
    const int columns = static_cast<int>(std::min(int64_t{packed.columns}, packed.out_channels - panel * packed.columns));
    const int64_t tile0 = chunk * job.tiles / job.chunks, tile1 = (chunk + 1) * job.tiles / job.chunks;
    const int64_t row0 = tile_start(job, tile0);
    find_pixels(job, row0, tile_start(job, tile1) - row0, s.pixels);
    load_columns(job, s, panel, columns);
    const uint8_t* at = reinterpret_cast<const uint8_t*>(&packed) + packed.weights +
                        panel * packed.positions * packed.groups * packed.step_bytes;
    for (int64_t position = 0; position < packed.positions; position += job.block_positions) {
        const int64_t positions = std::min(job.block_positions, packed.positions - position);
        for (int64_t group = 0; group < packed.groups; group += job.block_groups) {
            const int64_t groups = std::min(job.block_groups, packed.groups - group);
            const bool first = position == 0 && group == 0;
            const bool last = position + positions == packed.positions && group + groups == packed.groups;
            const MultiplyRows* multiply;
            const void* weights = block_weights(job, s, at, positions * groups, tile1 - tile0, &multiply);
            at += positions * groups * packed.step_bytes;
            for (int64_t tile = tile0; tile < tile1; tile++) {
                const int64_t start = tile_start(job, tile);
                const int count = static_cast<int>(tile_start(job, tile + 1) - start);
                const Row* rows = s.pixels + (start - row0);
                point(job, s, rows, count, position, positions, group * 4, groups * 4);
                int32_t* sums = s.sums + (first && last ? 0 : (start - row0) * packed.columns);
                const Multiply m = {s.rows, weights, sums, positions, groups, packed.pairs, first};
                multiply[count](m);
                if (packed.zeros != 0) {
                    uint32_t* code_sums = s.code_sums + (start - row0);
                    const int64_t bytes = std::min(groups * 4, packed.channels - group * 4);
                    add_codes(s, count, positions, bytes, first, code_sums);
                    if (last) take_zeros(s, count, packed.columns, code_sums, sums);
                }
                if (last) finish_tile(job, s, start, rows, count, sums, panel, columns);
            }
        }
    }
}

Job plan(const dq_int_conv2d_args& g, int32_t threads) {
    Job job = {};
    job.args = &g;
    job.packed = static_cast<const Packed*>(g.weights);
    job.kernels = &kernels_of(job.packed->isa);
    job.pixels = g.out_height * g.out_width;
    job.rows = g.batch * job.pixels;
    if (job.rows <= 0) return job;
    const Packed& packed = *job.packed;
    job.tiles = (job.rows + job.kernels->rows - 1) / job.kernels->rows;
    job.tile_rows = job.rows / job.tiles;
    job.longer_tiles = job.rows % job.tiles;
    const int64_t most = kChunkRows / job.kernels->rows;
    job.chunks = (job.tiles + most - 1) / most;
    if (threads > 1) {
        const int64_t wanted = (kTasksPerThread * threads + packed.panels - 1) / packed.panels;
        job.chunks = std::min(job.tiles, std::max(job.chunks, wanted));
    }
    const int64_t bytes[] = {1, job.kernels->int4_bytes, 2};  // of a weight as the kernel takes it, by form
    const int64_t unit = packed.columns * 4 * bytes[packed.form];
    job.block_groups = std::min(packed.groups, kBlockBytes / unit);
    job.block_positions = std::min(packed.positions, std::max(int64_t{1}, kBlockBytes / (unit * packed.groups)));
    job.reach_h = int64_t{g.kernel_h - 1} * g.dilation_h + 1;
    job.reach_w = int64_t{g.kernel_w - 1} * g.dilation_w + 1;
    return job;
}

}  // namespace

void igemm(Pool& pool, const dq_int_conv2d_args& args) {
    const Job job = plan(args, pool.threads());
    if (job.rows <= 0) return;
    const int64_t panels = job.packed->panels;
    pool.each(panels * job.chunks, [&job, &pool, panels](int64_t task, int32_t thread) {
        // All panels of a chunk first: its codes stay in the cache, and a layer's weights are fewer bytes than its codes.
        run_task(job, task % panels, task / panels, *static_cast<Scratch*>(pool.scratch(thread)));
    });
}

}  // namespace dq
