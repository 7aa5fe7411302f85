// The loop around the kernels of the integer product: tasks, blocks of the weights, tiles of pixels.
//
// A task is one panel of output channels times a chunk of pixels. It goes through its panel block by block, each
// small enough to stay in the first-level cache, unpacks the block once and multiplies all tiles of the chunk by it.
#include "igemm.h"

#include <algorithm>
#include <cstring>

namespace dq {
namespace {

constexpr int64_t kBlockBytes = 16 << 10;  // of weights as the kernel takes them
constexpr int64_t kChunkRows = 256;        // of a task, at most: its sums take kChunkRows * kMaxColumns * 4 bytes
constexpr int64_t kTasksPerThread = 4;     // so that a late thread holds up the others by little

struct Job {
    const dq_int_conv2d_args* args;
    const Packed* packed;
    const Kernels* kernels;
    int64_t pixels;      // of one sample's result
    int64_t rows;        // of all samples
    int64_t tiles;       // of all rows
    int64_t chunks;      // of the tiles
    int64_t unit;        // bytes of one group of one panel as the kernel takes it
    int64_t block_positions;
    int64_t block_groups;
    bool padded;         // some window leaves the image
};

// A thread's scratch. Its parts do not depend on the layer's size.
struct Scratch {
    int32_t* sums;                // [kChunkRows + kMaxRows][kMaxColumns]
    void* panel;                  // kBlockBytes
    const uint8_t** rows;         // [kBlockBytes / (4 * columns of the narrowest panel * 4)][kMaxRows]
    uint8_t* zeros;               // [kMaxRows][kBlockBytes / 4]
    int32_t* weight_sums;         // [kMaxColumns]
    float* weight_scale;          // [kMaxColumns]
    float* bias;                  // [kMaxColumns]
};

// One row of a tile: which sample and pixel it is, and where its window starts.
struct Row {
    int64_t sample;
    int64_t pixel;
    const uint8_t* image;
    const uint8_t* zeros;
    int64_t y;
    int64_t x;
};

constexpr int64_t kSumBytes = (kChunkRows + kMaxRows) * kMaxColumns * 4;
constexpr int64_t kRowsBytes = kBlockBytes / 16 * kMaxRows * 8;  // a group of the narrowest panel has 32 bytes
constexpr int64_t kZeroBytes = kBlockBytes / 4;
static_assert(kSumBytes + kBlockBytes + kRowsBytes + kMaxRows * kZeroBytes + 3 * kMaxColumns * 4 <= DQ_SCRATCH_BYTES,
              "the parts of the scratch fit");

Scratch carve(void* memory) {
    uint8_t* at = static_cast<uint8_t*>(memory);
    const auto take = [&at](int64_t bytes) {
        uint8_t* part = at;
        at += bytes;
        return part;
    };
    Scratch s;
    s.sums = reinterpret_cast<int32_t*>(take(kSumBytes));
    s.panel = take(kBlockBytes);
    s.rows = reinterpret_cast<const uint8_t**>(take(kRowsBytes));
    s.zeros = take(kMaxRows * kZeroBytes);
    s.weight_sums = reinterpret_cast<int32_t*>(take(kMaxColumns * 4));
    s.weight_scale = reinterpret_cast<float*>(take(kMaxColumns * 4));
    s.bias = reinterpret_cast<float*>(take(kMaxColumns * 4));
    return s;
}

int32_t bucket(const dq_int_conv2d_args& g, int64_t sample) {
    return g.quantizer.steps == 1 ? 0 : g.step[sample];
}

int32_t zero_code(const dq_int_conv2d_args& g, int64_t sample) {
    return g.quantizer.zero_point[bucket(g, sample)] - g.quantizer.q_min;
}

// First row of a tile: tiles differ by at most one row, so that none is much slower by the row than the others.
int64_t tile_start(const Job& job, int64_t tile) {
    return tile * (job.rows / job.tiles) + std::min(tile, job.rows % job.tiles);
}

void find_rows(const Job& job, int64_t first, int count, Row* rows) {
    const dq_int_conv2d_args& g = *job.args;
    int64_t sample = first / job.pixels, pixel = first % job.pixels;
    int64_t y = pixel / g.out_width, x = pixel % g.out_width;
    for (int r = 0; r < count; r++) {
        rows[r].sample = sample;
        rows[r].pixel = pixel;
        rows[r].image = g.codes + sample * g.height * g.width * g.code_pitch;
        rows[r].y = y * g.stride_h - g.pad_top;
        rows[r].x = x * g.stride_w - g.pad_left;
        pixel++;
        if (++x == g.out_width) {
            x = 0;
            if (++y == g.out_height) {
                y = 0;
                pixel = 0;
                sample++;
            }
        }
    }
}

// Rows of zero code for the samples of a tile; samples of equal code share one.
void fill_zeros(const Job& job, const Scratch& s, int count, Row* rows, int64_t bytes) {
    int32_t filled = -1;
    const uint8_t* at = s.zeros;
    for (int r = 0; r < count; r++) {
        const int32_t code = zero_code(*job.args, rows[r].sample);
        if (code != filled) {
            uint8_t* to = s.zeros + r * kZeroBytes;
            std::memset(to, code, static_cast<size_t>(bytes));
            filled = code;
            at = to;
        }
        rows[r].zeros = at;
    }
}

// Pointers of a tile's rows at positions [first, first + count), `offset` bytes into each pixel's codes.
void point(const Job& job, const Row* rows, int tile_rows, int64_t first, int64_t count, int64_t offset,
           const uint8_t** to) {
    const dq_int_conv2d_args& g = *job.args;
    int64_t i = first / g.kernel_w, j = first % g.kernel_w;
    for (int64_t p = 0; p < count; p++) {
        const int64_t dy = i * g.dilation_h, dx = j * g.dilation_w;
        for (int r = 0; r < tile_rows; r++) {
            const int64_t y = rows[r].y + dy, x = rows[r].x + dx;
            const bool inside = static_cast<uint64_t>(y) < static_cast<uint64_t>(g.height) &&
                                static_cast<uint64_t>(x) < static_cast<uint64_t>(g.width);
            *to++ = inside ? rows[r].image + (y * g.width + x) * g.code_pitch + offset : rows[r].zeros;
        }
        if (++j == g.kernel_w) {
            j = 0;
            i++;
        }
    }
}

// The columns' constants of a panel, padded to its width.
void load_columns(const Job& job, const Scratch& s, int64_t panel, int columns) {
    const Packed& packed = *job.packed;
    const dq_epilogue& e = job.args->epilogue;
    const int32_t* sums = reinterpret_cast<const int32_t*>(reinterpret_cast<const uint8_t*>(&packed) + packed.sums);
    const int64_t first = panel * packed.columns;
    for (int i = 0; i < packed.columns; i++) {
        s.weight_sums[i] = sums[first + i];
        s.weight_scale[i] = i < columns && e.weight_scale != nullptr ? e.weight_scale[first + i] : 0.0f;
        s.bias[i] = i < columns && e.bias != nullptr ? e.bias[first + i] : 0.0f;
    }
}

void finish_tile(const Job& job, const Scratch& s, const Row* rows, int count, const int32_t* sums, int64_t panel,
                 int columns) {
    const dq_int_conv2d_args& g = *job.args;
    const dq_epilogue& e = g.epilogue;
    const int64_t n = panel * job.packed->columns;
    FinishRow out[kMaxRows];
    for (int r = 0; r < count; r++) {
        const int64_t at = rows[r].sample * job.pixels + rows[r].pixel;
        out[r].zero_code = zero_code(g, rows[r].sample);
        out[r].scale = g.quantizer.scale[bucket(g, rows[r].sample)];
        out[r].previous = e.previous != nullptr ? e.previous + at * e.y_pitch + n : nullptr;
        out[r].row = e.row != nullptr ? e.row + rows[r].sample * e.row_pitch + n : nullptr;
        out[r].residual = e.residual != nullptr ? e.residual + at * e.residual_pitch + n : nullptr;
        out[r].y = e.y != nullptr ? e.y + at * e.y_pitch + n : nullptr;
        out[r].accumulators = e.accumulators != nullptr ? e.accumulators + at * g.out_channels + n : nullptr;
    }
    const Finish f = {sums, s.weight_sums, s.weight_scale, e.bias != nullptr ? s.bias : nullptr, out, count, columns};
    job.kernels->finish(f);
}

// A block of a panel as the kernel takes it.
const void* block_weights(const Job& job, const Scratch& s, int64_t panel, int64_t position, int64_t group,
                          int64_t groups) {
    const Packed& packed = *job.packed;
    const int64_t step = (panel * packed.positions + position) * packed.groups + group;
    const uint8_t* at = reinterpret_cast<const uint8_t*>(&packed) + packed.weights + step * packed.step_bytes;
    if (packed.form == kInt4) {
        job.kernels->unpack(at, s.panel, groups);
        return s.panel;
    }
    if (packed.form == kWide) {
        job.kernels->widen(reinterpret_cast<const int8_t*>(at), s.panel, groups);
        return s.panel;
    }
    return at;
}

void run_task(const Job& job, int64_t panel, int64_t chunk, void* memory) {
    const Packed& packed = *job.packed;
    const Kernels& kernels = *job.kernels;
    const Scratch s = carve(memory);
    const int columns = static_cast<int>(std::min<int64_t>(packed.columns, packed.out_channels - panel * packed.columns));
    const int64_t tile0 = chunk * job.tiles / job.chunks, tile1 = (chunk + 1) * job.tiles / job.chunks;
    const int64_t row0 = tile_start(job, tile0);
    load_columns(job, s, panel, columns);
    for (int64_t position = 0; position < packed.positions; position += job.block_positions) {
        const int64_t positions = std::min(job.block_positions, packed.positions - position);
        for (int64_t group = 0; group < packed.groups; group += job.block_groups) {
            const int64_t groups = std::min(job.block_groups, packed.groups - group);
            const bool first = position == 0 && group == 0;
            const bool last = position + positions == packed.positions && group + groups == packed.groups;
            const void* weights = block_weights(job, s, panel, position, group, positions * groups);
            for (int64_t tile = tile0; tile < tile1; tile++) {
                const int64_t start = tile_start(job, tile);
                const int count = static_cast<int>(tile_start(job, tile + 1) - start);
                Row rows[kMaxRows] = {};
                find_rows(job, start, count, rows);
                if (job.padded) fill_zeros(job, s, count, rows, groups * 4);
                point(job, rows, count, position, positions, group * 4, s.rows);
                int32_t* sums = s.sums + (first && last ? 0 : (start - row0) * packed.columns);
                const Multiply m = {s.rows, weights, sums, positions, groups, packed.pairs, first};
                (packed.form == kWide ? kernels.multiply_wide : kernels.multiply)[count](m);
                if (last) finish_tile(job, s, rows, count, sums, panel, columns);
            }
        }
    }
}

bool leaves_image(const dq_int_conv2d_args& g) {
    const int64_t bottom = (g.out_height - 1) * g.stride_h - g.pad_top + int64_t{g.kernel_h - 1} * g.dilation_h;
    const int64_t right = (g.out_width - 1) * g.stride_w - g.pad_left + int64_t{g.kernel_w - 1} * g.dilation_w;
    return g.pad_top > 0 || g.pad_left > 0 || bottom >= g.height || right >= g.width;
}

Job plan(const dq_int_conv2d_args& g, int32_t threads) {
    Job job = {};
    job.args = &g;
    job.packed = static_cast<const Packed*>(g.weights);
    job.kernels = &kernels_of(job.packed->isa);
    job.pixels = g.out_height * g.out_width;
    job.rows = g.batch * job.pixels;
    job.tiles = (job.rows + job.kernels->rows - 1) / job.kernels->rows;
    const int64_t most = kChunkRows / job.kernels->rows;
    job.chunks = (job.tiles + most - 1) / most;
    if (threads > 1) {
        const int64_t wanted = (kTasksPerThread * threads + job.packed->panels - 1) / job.packed->panels;
        job.chunks = std::min(job.tiles, std::max(job.chunks, wanted));
    }
    job.unit = int64_t{job.packed->columns} * (job.packed->form == kWide ? 8 : 4);
    job.block_groups = std::min(job.packed->groups, kBlockBytes / job.unit);
    job.block_positions = std::min(job.packed->positions, std::max<int64_t>(1, kBlockBytes / (job.unit * job.packed->groups)));
    job.padded = leaves_image(g);
    return job;
}

}  // namespace

void igemm(Pool& pool, const dq_int_conv2d_args& args) {
    const Job job = plan(args, pool.threads());
    if (job.rows <= 0) return;
    pool.each(job.packed->panels * job.chunks, [&job, &pool](int64_t task, int32_t thread) {
        run_task(job, task / job.chunks, task % job.chunks, pool.scratch(thread));
    });
}

}  // namespace dq
