// The loop around the kernels of the integer product: tasks, blocks of the weights, tiles of pixels.
//
// A task is one panel of output channels times a chunk of pixels. It goes through its panel block by block, each
// small enough for the second-level cache, unpacks the block once and multiplies all tiles of the chunk by it.
// Where the result becomes codes, a task does so with its chunk; of a gated one it has two panels, of values and gates.
#include "igemm/pixels.h"
#include "igemm/tiles/tiles.h"

namespace dq {
namespace {

constexpr int64_t kBlockBytes = 128 << 10;  // of weights as the kernel takes them
constexpr int64_t kChunkRows = 256;         // of a task, at most: its sums take kChunkRows * kMaxColumns * 4 bytes
constexpr int64_t kTasksPerThread = 4;      // so that a late thread holds up the others by little
constexpr int64_t kUnpackedTiles = 4;       // with more tiles to a task, unpacking once beats unpacking in the kernel
constexpr int64_t kLeastGroupBytes = 32;    // a group of the narrowest panel as a kernel takes it

struct Job {
    Layer layer;
    int64_t tiles;  // of all rows
    int64_t tile_rows;
    int64_t longer_tiles;  // have one row more
    int64_t chunks;        // of the tiles
    int64_t block_positions;
    int64_t block_groups;
    bool past_caches;  // y is more than the caches hold, and panels are whole lines of it
};

// A thread's scratch. Its parts do not depend on the layer's size.
struct Scratch {
    Row pixels[kChunkRows + kMaxRows];
    alignas(64) int32_t sums[(kChunkRows + kMaxRows) * kMaxColumns];
    alignas(64) uint8_t panel[kBlockBytes];
    const uint8_t* rows[kBlockBytes / kLeastGroupBytes * kMaxRows];
    uint8_t zeros[kMaxRows][kBlockBytes / kLeastGroupBytes * 4];
    uint32_t code_sums[kChunkRows + kMaxRows];
    Columns columns;
    alignas(64) float strip[2][(kChunkRows + kMaxRows) * kMaxColumns];  // of the result, where it becomes codes
};
static_assert(sizeof(Scratch) <= DQ_SCRATCH_BYTES, "a thread's scratch holds it");

// Tiles differ by at most one row, so that none is much slower by the row than the others.
int64_t tile_start(const Job& job, int64_t tile) { return tile * job.tile_rows + std::min(tile, job.longer_tiles); }

// A block of a panel as the kernel takes it, and that kernel.
const void* block_weights(const Job& job, Scratch& s, const uint8_t* packed, int64_t groups, int64_t tiles,
                          const MultiplyRows** multiply) {
    const Kernels& kernels = *job.layer.kernels;
    *multiply = kernels.multiply;
    if (job.layer.packed->form == kWide) {
        *multiply = kernels.multiply_wide;
        kernels.widen(reinterpret_cast<const int8_t*>(packed), s.panel, groups);
        return s.panel;
    }
    if (job.layer.packed->form == kInt8) return packed;
    if (tiles <= kUnpackedTiles && kernels.multiply_int4 != nullptr) {
        *multiply = kernels.multiply_int4;
        return packed;
    }
    kernels.unpack(packed, s.panel, groups);
    return s.panel;
}

// Other threads see what was written past the caches.
void stream_end() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// The result is written, or lies in `strip` afterwards where that is not null.
void multiply_chunk(const Job& job, int64_t panel, int64_t chunk, Scratch& s, float* strip) {
    const Packed& packed = *job.layer.packed;
    const int64_t tile0 = chunk * job.tiles / job.chunks, tile1 = (chunk + 1) * job.tiles / job.chunks;
    const int64_t row0 = tile_start(job, tile0);
    find_pixels(job.layer, row0, tile_start(job, tile1) - row0, s.pixels);
    load_columns(job.layer, s.columns, panel);
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
                point(job.layer, s.zeros, rows, count, position, positions, group * 4, groups * 4, s.rows);
                int32_t* sums = s.sums + (first && last ? 0 : (start - row0) * packed.columns);
                const Multiply m = {s.rows, weights, sums, positions, groups, packed.pairs, first};
                multiply[count](m);
                if (packed.zeros != 0) {
                    uint32_t* code_sums = s.code_sums + (start - row0);
                    const int64_t bytes = std::min(groups * 4, packed.channels - group * 4);
                    add_codes(s.rows, count, positions, bytes, first, code_sums);
                    if (last) take_zeros(s.columns, count, packed.columns, code_sums, sums);
                }
                if (!last) continue;
                TileFinish<kMaxRows> end;
                end.set(job.layer, s.columns, start, rows, count, sums);
                end.finish.past_caches = job.past_caches && s.columns.count == packed.columns;
                if (strip != nullptr) {
                    end.finish.y = strip + (start - row0) * packed.columns;
                    end.finish.y_pitch = packed.columns;
                }
                job.layer.kernels->finish(end.finish);
            }
        }
    }
}

// A panel times a chunk, or the panels of a value and its gate: `set` of `sets`.
void run_task(const Job& job, int64_t set, int64_t sets, int64_t chunk, const Follow* follow, Scratch& s) {
    if (follow == nullptr) {
        multiply_chunk(job, set, chunk, s, nullptr);
        if (job.past_caches) stream_end();
        return;
    }
    const int64_t row0 = tile_start(job, chunk * job.tiles / job.chunks);
    const int64_t rows = tile_start(job, (chunk + 1) * job.tiles / job.chunks) - row0;
    const int64_t pitch = job.layer.packed->columns;
    const float* gate = nullptr;
    if (follow->gated()) {
        multiply_chunk(job, sets + set, chunk, s, s.strip[1]);
        gate = s.strip[1];
    }
    multiply_chunk(job, set, chunk, s, s.strip[0]);
    write_codes(*follow, {s.strip[0], gate, pitch, row0, rows, s.columns.first, s.columns.count});
}

// Whether pixels are so few that they leave a matrix tile's rows empty; 4-bit weights have to be unpacked for tiles.
bool few_pixels(const dq_int_conv2d_args& g) {
    const int64_t most = static_cast<const Packed*>(g.weights)->form == kInt4 ? 8 : 3;
    return g.batch * g.out_height * g.out_width <= most;
}

Job plan(const dq_int_conv2d_args& g, const Kernels& kernels, int32_t threads) {
    Job job = {};
    job.layer = layer_of(g);
    job.layer.kernels = &kernels;
    if (job.layer.rows <= 0) return job;
    const Packed& packed = *job.layer.packed;
    const int64_t rows = job.layer.kernels->rows;
    job.tiles = (job.layer.rows + rows - 1) / rows;
    job.tile_rows = job.layer.rows / job.tiles;
    job.longer_tiles = job.layer.rows % job.tiles;
    const int64_t most = kChunkRows / rows;
    job.chunks = (job.tiles + most - 1) / most;
    if (threads > 1) {
        const int64_t wanted = (kTasksPerThread * threads + packed.panels - 1) / packed.panels;
        job.chunks = std::min(job.tiles, std::max(job.chunks, wanted));
    }
    const int64_t bytes[] = {1, job.layer.kernels->int4_bytes, 2};  // of a weight as the kernel takes it, by form
    const int64_t unit = packed.columns * 4 * bytes[packed.form];
    const dq_epilogue& e = g.epilogue;
    job.past_caches = kernels.columns == kMaxColumns && e.y != nullptr && e.previous == nullptr &&
                      job.layer.rows * e.y_pitch * 4 >= kFarBytes && e.y_pitch % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(e.y) % 64 == 0;
    job.block_groups = std::min(packed.groups, kBlockBytes / unit);
    job.block_positions = std::min(packed.positions, std::max(int64_t{1}, kBlockBytes / (unit * packed.groups)));
    return job;
}

}  // namespace

void igemm(Pool& pool, const dq_int_conv2d_args& args, const Follow* follow) {
    const Kernels* kernels = &kernels_of(static_cast<const Packed*>(args.weights)->isa);
    if (kernels->tiles != nullptr) {
        if (kernels->of_few == nullptr || (follow == nullptr && !few_pixels(args))) return igemm_by_tiles(pool, args);
        kernels = &kernels->of_few();
    }
    const Job job = plan(args, *kernels, pool.threads());
    if (job.layer.rows <= 0) return;
    const int64_t sets = job.layer.packed->panels / (follow != nullptr && follow->gated() ? 2 : 1);
    pool.each(sets * job.chunks, [&job, &pool, sets, follow](int64_t task, int32_t thread) {
        // All panels of a chunk first: its codes stay in the cache, and a layer's weights are fewer bytes than its codes.
        run_task(job, task % sets, sets, task / sets, follow, *static_cast<Scratch*>(pool.scratch(thread)));
    });
}

}  // namespace dq
