// The loop around the tile kernels: tasks, blocks of the channels, panels, tiles of 32 pixels.
//
// A task is some panels of output channels times a chunk of pixels, whose codes planes.h places for registers. All
// products of a tile and a panel follow each other in registers; codes and weights come from the second-level cache,
// and of neighbouring windows mostly from the first. Of windows each panel is multiplied by all tiles of the chunk
// before the next one is; of single pixels, whose result is long beside their codes, each tile by all panels, so that
// it is written row by row. Meanwhile the next panel's weights are unpacked, or asked for. Only where a panel's weights
// or a chunk's planes are too many are the channels cut into blocks, with sums kept between them.
#include "igemm/tiles/planes.h"

namespace dq {
namespace {

constexpr int64_t kTasksPerThread = 4;  // so that a late thread holds up the others by little
constexpr int64_t kNearBytes = 1 << 20;  // of weights, which stay in the second-level cache
constexpr int64_t kMostPanels = 64;       // of a task that goes tile by tile
constexpr int64_t kKeptSums = 64;       // tiles times panels of a task whose channels are cut into blocks

struct Job {
    Layer layer;
    Placing placing;
    int64_t tiles;  // of all rows
    int64_t chunks;
    int64_t parts;         // of the panels
    int64_t block_chunks;  // of 64 channels
    bool tile_by_tile;     // else panel by panel
    bool far_weights;      // more than stay in the second-level cache
    bool plain;            // only y is asked for, of one part
    bool past_caches;      // y is more than the caches hold
};

// One result ahead: the epilogue of a tile and panel runs while the next ones are multiplied.
struct Result {
    alignas(64) int32_t sums[kTilePixels * kPanelColumns];
    TileFinish<kTilePixels> end;
};

// A thread's scratch. Its parts do not depend on the layer's size.
struct Scratch {
    alignas(64) uint8_t region[kRegionBytes];
    alignas(64) uint8_t weights[2 * kBlockSteps * kPanelStep];
    alignas(64) int32_t sums[kKeptSums][kTilePixels * kPanelColumns];
    alignas(64) uint8_t row[kBlockSteps * kTileBytes];
    Row pixels[kChunkTiles * kTilePixels];
    TileStep steps[kBlockSteps];
    uint32_t code_sums[kChunkTiles * kTilePixels];
    Columns columns[kMostPanels];
    Result results[2];
};
static_assert(sizeof(Scratch) <= DQ_SCRATCH_BYTES, "a thread's scratch holds it");

class TileTask {
  public:
    TileTask(const Job& job, int64_t part, int64_t chunk, Scratch& s)
        : job_(job),
          packed_(*job.layer.packed),
          tiles_(*job.layer.kernels->tiles),
          s_(s),
          panel0_(part * packed_.panels / job.parts),
          panels_((part + 1) * packed_.panels / job.parts - panel0_),
          tile0_(chunk * job.tiles / job.chunks),
          tile_count_((chunk + 1) * job.tiles / job.chunks - tile0_),
          row0_(tile0_ * kTilePixels),
          rows_(std::min(tile_count_ * kTilePixels, job.layer.rows - row0_)),
          planes_(job.layer, job.placing, found(), rows_, s.region, s.row) {}

    void run() {
        for (int64_t chunk = 0; chunk < job_.placing.chunks; chunk += job_.block_chunks) run_block(chunk);
        if (before_ != nullptr) job_.layer.kernels->finish(*before_);
        tiles_.release();
    }

  private:
    // The task's pixels, which the planes are made of.
    const Row* found() {
        find_pixels(job_.layer, row0_, rows_, s_.pixels);
        return s_.pixels;
    }

    bool unpacked() const { return packed_.form == kInt4; }

    void run_block(int64_t chunk) {
        const int64_t chunks = std::min(job_.block_chunks, job_.placing.chunks - chunk);
        first_ = chunk == 0;
        last_ = chunk + chunks == job_.placing.chunks;
        planes_.fill(chunk, chunks);
        find_steps(chunk, chunks);
        if (packed_.zeros != 0) add_codes_of_block();
        if (unpacked()) tiles_.unpack({packed_panel(0), unpacked_panel(0), s_.steps, steps_});
        for (int64_t i = 0; i < panels_ * tile_count_; i++) {
            if (job_.tile_by_tile) {
                multiply_tile(i % panels_, i / panels_);
            } else {
                multiply_tile(i / tile_count_, i % tile_count_);
            }
        }
    }

    // All positions of 64 channels, then the next 64: a window's neighbours are met again soon.
    void find_steps(int64_t chunk, int64_t chunks) {
        const Placing& placing = job_.placing;
        const int64_t groups = placing.place == Place::kWindows ? packed_.positions * packed_.groups : packed_.groups;
        steps_ = 0;
        for (int64_t c = chunk; c < chunk + chunks; c++) {
            const int64_t here = std::min(int64_t{kTileGroups}, groups - c * kTileGroups);
            for (int64_t p = 0; p < placing.positions; p++) {
                const int64_t group = p * packed_.groups + c * kTileGroups;
                s_.steps[steps_++] = {planes_.distance(c - chunk, p), group * packed_.step_bytes, here};
            }
        }
    }

    void add_codes_of_block() {
        for (int64_t r = 0; r < rows_; r++) {
            const uint8_t* codes = planes_.codes(r / kTileRows * kTileRows) + r % kTileRows * planes_.pitch();
            uint32_t sum = first_ ? 0 : s_.code_sums[r];
            for (int64_t i = 0; i < steps_; i++) sum += sum_bytes(codes + s_.steps[i].codes, kTileBytes);
            s_.code_sums[r] = sum;
        }
    }

    const uint8_t* packed_panel(int64_t panel) const {
        const int64_t group = (panel0_ + panel) * packed_.positions * packed_.groups;
        return reinterpret_cast<const uint8_t*>(&packed_) + packed_.weights + group * packed_.step_bytes;
    }

    uint8_t* unpacked_panel(int64_t panel) const {
        return s_.weights + (job_.tile_by_tile ? panel * steps_ : (panel & 1) * kBlockSteps) * kPanelStep;
    }

    Columns& columns(int64_t panel) const { return s_.columns[panel % kMostPanels]; }

    // The share of the next panel's weights that is made ready while this one is multiplied by this tile.
    TileAhead ahead(int64_t panel, int64_t tile) {
        if (panel + 1 == panels_ || !(unpacked() || job_.far_weights)) return {};
        if (job_.tile_by_tile && tile > 0) return {};
        const int64_t tiles = job_.tile_by_tile ? 1 : tile_count_;
        const int64_t first = tile * steps_ / tiles, end = (tile + 1) * steps_ / tiles;
        uint8_t* const to = unpacked() ? unpacked_panel(panel + 1) + first * kPanelStep : nullptr;
        return {packed_panel(panel + 1), to, s_.steps + first, end - first};
    }

    void configure(int rows0, int rows1) {
        if (rows0 == configured_[0] && rows1 == configured_[1]) return;
        tiles_.configure(rows0, rows1);
        configured_[0] = rows0;
        configured_[1] = rows1;
    }

    void multiply_tile(int64_t panel, int64_t tile) {
        const int64_t row = tile * kTilePixels;
        const int count = static_cast<int>(std::min(int64_t{kTilePixels}, rows_ - row));
        const int rows0 = std::min(count, kTileRows), rows1 = count - rows0;
        int32_t* const sums = first_ && last_ ? nullptr : s_.sums[panel * tile_count_ + tile];
        Result& result = s_.results[turn_];
        TileMultiply m = {};
        configure(rows0, rows1);
        m.both = rows1 > 0;
        m.codes[0] = planes_.codes(row);
        m.codes[1] = m.both ? planes_.codes(row + kTileRows) : nullptr;
        m.code_pitch = planes_.pitch();
        m.unpacked = unpacked();
        m.weights = m.unpacked ? unpacked_panel(panel) : packed_panel(panel);
        m.step = s_.steps;
        m.steps = steps_;
        m.from = first_ ? nullptr : sums;
        m.to = last_ ? result.sums : sums;
        m.before = before_;
        m.ahead = ahead(panel, tile);
        tiles_.multiply(m);
        before_ = nullptr;
        if (!last_) return;
        Columns& columns = this->columns(panel);
        if (tile == 0) load_columns(job_.layer, columns, panel0_ + panel);
        if (packed_.zeros != 0) take_zeros(columns, count, kPanelColumns, s_.code_sums + row, result.sums);
        const bool together = job_.plain && columns.count == kPanelColumns &&
                              s_.pixels[row].sample == s_.pixels[row + count - 1].sample;
        result.end.set(job_.layer, columns, row0_ + row, s_.pixels + row, count, result.sums, together);
        result.end.finish.past_caches = together && job_.past_caches;
        before_ = &result.end.finish;
        turn_ ^= 1;
    }

    const Job& job_;
    const Packed& packed_;
    const TileKernels& tiles_;
    Scratch& s_;
    const int64_t panel0_;
    const int64_t panels_;
    const int64_t tile0_;
    const int64_t tile_count_;
    const int64_t row0_;
    const int64_t rows_;
    Planes planes_;
    int64_t steps_ = 0;
    bool first_ = false;  // of the blocks
    bool last_ = false;
    int configured_[2] = {-1, -1};
    int turn_ = 0;
    const Finish* before_ = nullptr;
};

Job plan(const dq_int_conv2d_args& g, int32_t threads) {
    Job job = {};
    job.layer = layer_of(g);
    if (job.layer.rows <= 0) return job;
    const Packed& packed = *job.layer.packed;
    job.placing = placing_of(job.layer);
    job.tiles = ceil_div(job.layer.rows, kTilePixels);
    const int64_t longest = std::min(job.placing.chunks, kBlockSteps / job.placing.positions);
    const auto chunks_held = [&](int64_t tiles) {
        if (job.placing.place == Place::kInPlace) return longest;
        return std::min(longest, kRegionBytes / (most_pixels(job.layer, job.placing.place, tiles) * kTileBytes));
    };
    int64_t tiles = std::min(job.tiles, kChunkTiles), panels = packed.panels;
    while (tiles > 1 && chunks_held(tiles) < longest) tiles = ceil_div(tiles, 2);
    job.block_chunks = chunks_held(tiles);
    job.tile_by_tile = job.placing.positions == 1;
    if (job.tile_by_tile) panels = std::min({panels, kMostPanels, 2 * kBlockSteps / job.block_chunks});
    const auto tasks = [&] { return ceil_div(job.tiles, tiles) * ceil_div(packed.panels, panels); };
    const auto halve = [&](bool all) {
        int64_t& longer = all && tiles >= panels ? tiles : panels;
        longer = ceil_div(longer, 2);
    };
    while (job.block_chunks < job.placing.chunks && tiles * panels > kKeptSums) halve(tiles > panels);
    while (threads > 1 && tasks() < kTasksPerThread * threads && tiles * panels > 1) halve(true);
    job.far_weights = packed.panels * packed.positions * packed.groups * packed.step_bytes > kNearBytes;
    const dq_epilogue& e = g.epilogue;
    job.plain = e.y != nullptr && e.accumulators == nullptr && e.previous == nullptr;
    job.past_caches = job.plain && job.layer.rows * e.y_pitch * 4 >= kFarBytes && e.y_pitch % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(e.y) % 64 == 0;
    job.chunks = ceil_div(job.tiles, tiles);
    job.parts = ceil_div(packed.panels, panels);
    return job;
}

}  // namespace

void igemm_by_tiles(Pool& pool, const dq_int_conv2d_args& args) {
    const Job job = plan(args, pool.threads());
    if (job.layer.rows <= 0) return;
    pool.each(job.parts * job.chunks, [&job, &pool](int64_t task, int32_t thread) {
        // All panels of a chunk first: its codes stay in the cache.
        TileTask(job, task % job.parts, task / job.parts, *static_cast<Scratch*>(pool.scratch(thread))).run();
    });
}

}  // namespace dq
