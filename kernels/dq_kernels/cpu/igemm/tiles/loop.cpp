// The loop around the tile kernels: tasks, blocks of the weights, tiles of 32 pixels.
//
// A task is some panels of output channels times a chunk of pixels. It goes through them block by block. 4-bit weights
// are unpacked once a task, those of the next block between the products of this one. Each tile of pixels finds where
// its codes lie, once for all panels: registers load them in place where the pixels are equally far from each other,
// elsewhere (at the image's sides, and where a pixel's codes do not fill a register's row) from a copy. A block is
// short enough for a tile's codes to stay in the first-level cache; the weights and sums stay in the second.
#include "igemm/pixels.h"
#include "igemm/tiles/tiles.h"

namespace dq {
namespace {

constexpr int kTilePixels = 2 * kTileRows;
constexpr int64_t kBlockBytes = 768;  // of codes of a pixel, at most; whole registers
constexpr int64_t kBlockGroups = kBlockBytes / 4;
constexpr int64_t kCopyPitch = kBlockBytes + kTileBytes;  // rows begin in different sets of the cache
constexpr int64_t kChunkTiles = 8;
constexpr int64_t kTaskPanels = 8;
constexpr int64_t kTasksPerThread = 2;  // at least, where there are so many
static_assert(kTileRows <= kMaxRows && kPanelColumns <= kMaxColumns, "what pixels.h shares holds a register");

struct Job {
    Layer layer;
    int64_t tiles;  // of all rows
    int64_t chunks;
    int64_t parts;  // of the panels
    int64_t block_positions;
    int64_t block_groups;
};

// One result ahead: the epilogue of a tile and panel runs while the next ones are multiplied.
struct Result {
    alignas(64) int32_t sums[kTilePixels * kPanelColumns];
    TileFinish<kTilePixels> end;
};

// A thread's scratch. Its parts do not depend on the layer's size.
struct Scratch {
    Row pixels[kChunkTiles * kTilePixels];
    alignas(64) int32_t sums[kChunkTiles][kTaskPanels][kTilePixels * kPanelColumns];
    alignas(64) uint8_t weights[2][kTaskPanels][kBlockGroups / kTileGroups * kPanelStep];
    alignas(64) uint8_t copies[2][kTileRows * kCopyPitch];
    uint8_t zeros[2][kTileRows][kBlockBytes];
    const uint8_t* rows[2][kBlockGroups * kTileRows];
    TileCodes codes[kBlockBytes / kTileBytes][2];
    uint32_t code_sums[kChunkTiles * kTilePixels];
    Columns columns[kTaskPanels];
    Result results[2];
};
static_assert(sizeof(Scratch) <= DQ_SCRATCH_BYTES, "a thread's scratch holds it");

struct Block {
    int64_t position;
    int64_t positions;
    int64_t group;
    int64_t groups;
    bool first;
    bool last;

    int64_t bytes() const { return groups * 4; }  // of a pixel's codes at one position
    int64_t steps() const { return (positions * groups + kTileGroups - 1) / kTileGroups; }
};

// Whether rows lie equally far from each other, `pitch` bytes.
bool equally_far(const uint8_t* const* rows, int count, int64_t* pitch) {
    *pitch = count > 1 ? rows[1] - rows[0] : 0;
    bool equal = true;
    for (int r = 2; r < count; r++) equal = equal && rows[r] - rows[r - 1] == *pitch;
    return equal;
}

// Where a register finds the codes of `count` pixels at each step of a block.
void place_codes(const Job& job, Scratch& s, const Block& block, const Row* pixels, int count, int half) {
    const uint8_t** rows = s.rows[half];
    point(job.layer, s.zeros[half], pixels, count, block.position, block.positions, block.group * 4, block.bytes(),
          rows);
    const bool whole = block.groups % kTileGroups == 0;
    const int64_t steps = block.groups / kTileGroups;
    uint8_t* copy = s.copies[half];
    for (int64_t p = 0; p < block.positions; p++, rows += count) {
        TileCodes at = {rows[0], 0};
        if (!whole || !equally_far(rows, count, &at.pitch)) {
            at = {copy + p * block.bytes(), kCopyPitch};
            job.layer.kernels->tiles->gather(rows, count, block.bytes(), copy + p * block.bytes(), kCopyPitch);
        }
        for (int64_t i = 0; whole && i < steps; i++) {
            s.codes[p * steps + i][half] = {at.first + i * kTileBytes, at.pitch};
        }
    }
    if (whole) return;
    // Positions behind each other; zeros behind the last, since the weights there are those of the next block.
    const int64_t filled = block.positions * block.bytes(), full = block.steps() * kTileBytes;
    for (int r = 0; r < count; r++) std::memset(copy + r * kCopyPitch + filled, 0, static_cast<size_t>(full - filled));
    for (int64_t i = 0; i < block.steps(); i++) s.codes[i][half] = {copy + i * kTileBytes, kCopyPitch};
}

class TileTask {
  public:
    TileTask(const Job& job, int64_t part, int64_t chunk, Scratch& s)
        : job_(job), packed_(*job.layer.packed), tiles_(*job.layer.kernels->tiles), s_(s) {
        panel0_ = part * packed_.panels / job.parts;
        panels_ = (part + 1) * packed_.panels / job.parts - panel0_;
        tile0_ = chunk * job.tiles / job.chunks;
        tile1_ = (chunk + 1) * job.tiles / job.chunks;
        row0_ = tile0_ * kTilePixels;
        find_pixels(job.layer, row0_, std::min(tile1_ * kTilePixels, job.layer.rows) - row0_, s.pixels);
        for (int64_t p = 0; p < panels_; p++) load_columns(job.layer, s.columns[p], panel0_ + p);
    }

    void run() {
        Block block = block_at(0, 0);
        for (int64_t p = 0; unpacked() && p < panels_; p++) {
            job_.layer.kernels->unpack(packed_weights(block, p), s_.weights[0][p], block.positions * block.groups);
        }
        for (;;) {
            const Block next = block.last ? block : next_of(block);
            for (int64_t tile = tile0_; tile < tile1_; tile++) multiply_tile(block, next, tile);
            if (block.last) break;
            block = next;
            weights_turn_ ^= 1;
        }
        if (before_ != nullptr) job_.layer.kernels->finish(*before_);
        tiles_.release();
    }

  private:
    Block block_at(int64_t position, int64_t group) const {
        Block block = {position, 0, group, 0, position == 0 && group == 0, false};
        block.positions = std::min(job_.block_positions, packed_.positions - position);
        block.groups = std::min(job_.block_groups, packed_.groups - group);
        block.last = position + block.positions == packed_.positions && group + block.groups == packed_.groups;
        return block;
    }

    Block next_of(const Block& block) const {
        const int64_t group = block.group + block.groups;
        return group < packed_.groups ? block_at(block.position, group)
                                      : block_at(block.position + block.positions, 0);
    }

    bool unpacked() const { return packed_.form == kInt4; }

    const uint8_t* packed_weights(const Block& block, int64_t panel) const {
        const int64_t group = ((panel0_ + panel) * packed_.positions + block.position) * packed_.groups + block.group;
        return reinterpret_cast<const uint8_t*>(&packed_) + packed_.weights + group * packed_.step_bytes;
    }

    // The share of the next block's weights that is unpacked while this tile is multiplied by this panel.
    TileUnpack ahead(const Block& next, int64_t tile, int64_t panel) const {
        const int64_t groups = next.positions * next.groups, tiles = tile1_ - tile0_, at = tile - tile0_;
        const int64_t first = at * groups / tiles, end = (at + 1) * groups / tiles;
        return {packed_weights(next, panel) + first * packed_.step_bytes,
                s_.weights[weights_turn_ ^ 1][panel] + first * kPanelColumns * 4, end - first};
    }

    void configure(int rows0, int rows1) {
        if (rows0 == configured_[0] && rows1 == configured_[1]) return;
        tiles_.configure(rows0, rows1);
        configured_[0] = rows0;
        configured_[1] = rows1;
    }

    void multiply_tile(const Block& block, const Block& next, int64_t tile) {
        const int64_t start = tile * kTilePixels;
        const int count = static_cast<int>(std::min(int64_t{kTilePixels}, job_.layer.rows - start));
        const int rows0 = std::min(count, kTileRows), rows1 = count - rows0;
        const Row* pixels = s_.pixels + (start - row0_);
        uint32_t* code_sums = s_.code_sums + (start - row0_);
        configure(rows0, rows1);
        for (int half = 0; half < (rows1 > 0 ? 2 : 1); half++) {
            const int rows = half == 0 ? rows0 : rows1;
            place_codes(job_, s_, block, pixels + half * kTileRows, rows, half);
            if (packed_.zeros == 0) continue;
            const int64_t bytes = std::min(block.bytes(), packed_.channels - block.group * 4);
            add_codes(s_.rows[half], rows, block.positions, bytes, block.first, code_sums + half * kTileRows);
        }
        for (int64_t p = 0; p < panels_; p++) {
            int32_t* const sums = s_.sums[tile - tile0_][p];
            Result& result = s_.results[turn_];
            TileMultiply m = {};
            m.codes = s_.codes[0];
            m.weights = unpacked() ? s_.weights[weights_turn_][p] : packed_weights(block, p);
            m.from = block.first ? nullptr : sums;
            m.to = block.last ? result.sums : sums;
            m.steps = block.steps();
            m.before = before_;
            if (unpacked() && !block.last) m.ahead = ahead(next, tile, p);
            m.both = rows1 > 0;
            tiles_.multiply(m);
            before_ = nullptr;
            if (!block.last) continue;
            if (packed_.zeros != 0) take_zeros(s_.columns[p], count, kPanelColumns, code_sums, result.sums);
            result.end.set(job_.layer, s_.columns[p], start, pixels, count, result.sums);
            before_ = &result.end.finish;
            turn_ ^= 1;
        }
    }

    const Job& job_;
    const Packed& packed_;
    const TileKernels& tiles_;
    Scratch& s_;
    int64_t panel0_;
    int64_t panels_;
    int64_t tile0_;
    int64_t tile1_;
    int64_t row0_;
    int weights_turn_ = 0;
    int configured_[2] = {-1, -1};
    int turn_ = 0;
    const Finish* before_ = nullptr;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Job plan(const dq_int_conv2d_args& g, int32_t threads) {
    Job job = {};
    job.layer = layer_of(g);
    if (job.layer.rows <= 0) return job;
    const Packed& packed = *job.layer.packed;
    job.tiles = ceil_div(job.layer.rows, kTilePixels);
    int64_t tiles = std::min(job.tiles, kChunkTiles), panels = std::min(packed.panels, kTaskPanels);
    const auto tasks = [&] { return ceil_div(job.tiles, tiles) * ceil_div(packed.panels, panels); };
    while (threads > 1 && tasks() < kTasksPerThread * threads && tiles * panels > 1) {
        int64_t& longer = tiles >= panels ? tiles : panels;
        longer = ceil_div(longer, 2);
    }
    job.chunks = ceil_div(job.tiles, tiles);
    job.parts = ceil_div(packed.panels, panels);
    job.block_groups = packed.groups;
    job.block_positions = 1;
    if (packed.groups > kBlockGroups) {
        const int64_t each = ceil_div(packed.groups, ceil_div(packed.groups, kBlockGroups));
        job.block_groups = ceil_div(each, kTileGroups) * kTileGroups;
    } else {
        const int64_t blocks = ceil_div(packed.positions, kBlockGroups / packed.groups);
        job.block_positions = ceil_div(packed.positions, blocks);
    }
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
