// Where tile registers find the codes of a task's pixels: 16 pixels equally far from each other, at every position.
//
// A linear layer's codes are loaded in place. Elsewhere the codes that a task needs are copied once, for all its panels,
// to planes of 64 channels, in one of three ways:
//   lines    input lines with their borders; the pixels of a register lie in one line
//   shifted  input lines once for each column of the window, cut to the result's width: then the pixels of several
//            short lines follow each other. For a vertical stride of 1
//   windows  each pixel's window behind the other; for everything else
// Outside the image lies the sample's zero code. Behind the last channel lie zeros: the weights there are others'.
#pragma once
#include "igemm/pixels.h"
#include "igemm/tiles/tiles.h"

namespace dq {
namespace {

constexpr int kTilePixels = 2 * kTileRows;
constexpr int64_t kChunkTiles = 16;          // of a task, at most
constexpr int64_t kRegionBytes = 1 << 20;    // of planes of a task, at most
constexpr int64_t kBlockSteps = 192;         // of a block of the weights, at most
constexpr int64_t kLongestWindow = 64;       // positions that are copied as lines
static_assert(kTileRows <= kMaxRows && kPanelColumns <= kMaxColumns, "what pixels.h shares holds a register");

enum class Place { kInPlace, kLines, kShifted, kWindows };

// How a layer's codes are placed.
struct Placing {
    Place place;
    int64_t chunks;     // of 64 bytes, of a position or of a window
    int64_t positions;  // 1 where windows are copied

    int64_t steps() const { return chunks * positions; }
};

// A task's pixels of one sample, and the input lines that their windows reach.
struct Segment {
    int32_t sample;
    int64_t first;  // input line
    int64_t lines;
    int64_t at;  // lines before these, of the region
};

// What is copied for a task: `lines` of `width` pixels, from input column `x`, for each of `shifts`.
struct Region {
    Segment segments[2 * kChunkTiles + 1];
    int count;
    int64_t lines;
    int64_t width;
    int64_t x;
    int64_t pixels;  // of a plane

    int64_t plane() const { return pixels * kTileBytes; }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t shifts_of(const Layer& layer, Place place) {
    return place == Place::kShifted ? layer.args->kernel_w : 1;
}

// No more pixels than this has a plane of `tiles` tiles.
inline int64_t most_pixels(const Layer& layer, Place place, int64_t tiles) {
    const dq_int_conv2d_args& g = *layer.args;
    const int64_t pixels = tiles * kTilePixels;
    if (place == Place::kWindows) return pixels;
    const int64_t lines = std::min((pixels - 1) / g.out_width + 2, g.batch * g.out_height);
    const int64_t samples = std::min((pixels - 1) / layer.pixels + 2, g.batch);
    const int64_t width = place == Place::kShifted ? g.out_width : (g.out_width - 1) * g.stride_w + layer.reach_w;
    return (lines * g.stride_h + samples * layer.reach_h) * width * shifts_of(layer, place);
}

inline Placing placing_of(const Layer& layer) {
    const dq_int_conv2d_args& g = *layer.args;
    const Packed& packed = *layer.packed;
    const bool point = packed.positions == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_top == 0 &&
                       g.pad_left == 0 && g.out_height == g.height && g.out_width == g.width;
    Placing placing = {Place::kWindows, ceil_div(packed.positions * packed.groups, kTileGroups), 1};
    if (point && packed.channels % kTileBytes == 0) {
        placing.place = Place::kInPlace;
        return placing;
    }
    const int64_t chunks = ceil_div(packed.groups, kTileGroups), steps = chunks * packed.positions;
    if (packed.positions == 1 || packed.positions > kLongestWindow || steps >= 2 * placing.chunks) return placing;
    Place place = Place::kWindows;
    if (g.out_width % kTileRows == 0) {
        place = Place::kLines;
    } else if (g.stride_h == 1 && layer.pixels % kTileRows == 0) {
        place = Place::kShifted;
    }
    if (place == Place::kWindows || most_pixels(layer, place, 1) * kTileBytes > kRegionBytes) return placing;
    return {place, chunks, packed.positions};
}

// The planes of one task.
class Planes {
  public:
    Planes(const Layer& layer, const Placing& placing, const Row* pixels, int64_t count, uint8_t* memory, uint8_t* row)
        : layer_(layer), g_(*layer.args), placing_(placing), pixels_(pixels), count_(count), memory_(memory), row_(row) {
        region_.pixels = count;
        if (placing.place != Place::kLines && placing.place != Place::kShifted) return;
        const Row &first = pixels[0], &last = pixels[count - 1];
        const bool one_line = first.sample == last.sample && first.y == last.y;
        const int64_t across = placing.place == Place::kShifted ? g_.out_width : 0;
        region_.x = one_line && across == 0 ? first.x : -int64_t{g_.pad_left};
        const int64_t columns = one_line ? count : g_.out_width;
        region_.width = across != 0 ? across : (columns - 1) * g_.stride_w + layer.reach_w;
        find_segments();
        region_.pixels = region_.lines * region_.width * shifts_of(layer, placing.place);
    }

    // Copies `count` chunks from `first` on.
    void fill(int64_t first, int64_t count) {
        first_ = first;
        bytes_ = std::min(count * kTileBytes, bytes_of_position() - first * kTileBytes);
        if (placing_.place == Place::kWindows) {
            for (int64_t r = 0; r < count_; r++) fill_window(r);
            return;
        }
        if (placing_.place == Place::kInPlace) return;
        const int64_t shifts = shifts_of(layer_, placing_.place);
        const int64_t by = placing_.place == Place::kShifted ? g_.stride_w : 1;
        for (int s = 0; s < region_.count; s++) {
            const Segment& segment = region_.segments[s];
            for (int64_t j = 0; j < shifts; j++) {
                uint8_t* to = memory_ + (j * region_.lines + segment.at) * region_.width * kTileBytes;
                for (int64_t i = 0; i < segment.lines; i++, to += region_.width * kTileBytes) {
                    fill_line(segment.sample, segment.first + i, region_.x + j * g_.dilation_w, by, to);
                }
            }
        }
    }

    // The first of 16 pixels, from pixel `r` of the task on.
    const uint8_t* codes(int64_t r) const {
        const Row& row = pixels_[r];
        switch (placing_.place) {
            case Place::kInPlace:
                return row.image + row.codes + first_ * kTileBytes;
            case Place::kWindows:
                return memory_ + r * kTileBytes;
            default:
                break;
        }
        const Segment& segment = region_.segments[row.sample - pixels_[0].sample];
        const int64_t line = segment.at + row.y - segment.first;
        const int64_t x = placing_.place == Place::kShifted ? (row.x + g_.pad_left) / g_.stride_w : row.x - region_.x;
        return memory_ + (line * region_.width + x) * kTileBytes;
    }

    int64_t pitch() const {
        if (placing_.place == Place::kInPlace) return g_.code_pitch;
        return placing_.place == Place::kLines ? g_.stride_w * kTileBytes : kTileBytes;
    }

    // Bytes from a pixel's codes at the first chunk and position to those at others.
    int64_t distance(int64_t chunk, int64_t position) const {
        if (placing_.place == Place::kInPlace) return chunk * kTileBytes;
        const int64_t i = position / g_.kernel_w, j = position % g_.kernel_w;
        int64_t pixels = 0;
        if (placing_.place == Place::kLines) pixels = i * g_.dilation_h * region_.width + j * g_.dilation_w;
        if (placing_.place == Place::kShifted) pixels = (j * region_.lines + i * g_.dilation_h) * region_.width;
        return chunk * region_.plane() + pixels * kTileBytes;
    }

  private:
    int64_t bytes_of_position() const {
        const Packed& packed = *layer_.packed;
        return placing_.place == Place::kWindows ? packed.positions * packed.groups * 4 : packed.channels;
    }

    void find_segments() {
        for (int64_t r = 0; r < count_;) {
            const int32_t sample = pixels_[r].sample;
            const int64_t end = std::min(count_, r + layer_.pixels - pixel_of(pixels_[r]));
            const int64_t first = pixels_[r].y, lines = pixels_[end - 1].y - first + layer_.reach_h;
            region_.segments[region_.count++] = {sample, first, lines, region_.lines};
            region_.lines += lines;
            r = end;
        }
    }

    // A pixel's number in its sample.
    int64_t pixel_of(const Row& row) const {
        return (row.y + g_.pad_top) / g_.stride_h * g_.out_width + (row.x + g_.pad_left) / g_.stride_w;
    }

    void fill_zeros_of(int32_t sample, int64_t pixels, uint8_t* to) const {
        const int code = zero_code(g_, sample);
        for (int64_t at = 0; at < bytes_; at += kTileBytes, to += region_.plane()) {
            const int64_t here = std::min(bytes_ - at, int64_t{kTileBytes});
            for (int64_t p = 0; p < pixels; p++) {
                std::memset(to + p * kTileBytes, code, static_cast<size_t>(here));
                std::memset(to + p * kTileBytes + here, 0, static_cast<size_t>(kTileBytes - here));
            }
        }
    }

    // `region_.width` pixels of an input line, from column `x` on, each `by` columns from the one before.
    void fill_line(int32_t sample, int64_t y, int64_t x, int64_t by, uint8_t* to) const {
        const int64_t width = region_.width;
        const int64_t before = x < 0 ? std::min(width, ceil_div(-x, by)) : 0;
        const int64_t until = x < g_.width ? std::min(width, ceil_div(g_.width - x, by)) : 0;
        if (!within(y, g_.height) || until <= before) return fill_zeros_of(sample, width, to);
        fill_zeros_of(sample, before, to);
        fill_zeros_of(sample, width - until, to + until * kTileBytes);
        const uint8_t* line = g_.codes + (sample * g_.height + y) * g_.width * g_.code_pitch;
        const uint8_t* from = line + (x + before * by) * g_.code_pitch + first_ * kTileBytes;
        const TileSpread spread = {from,   by * g_.code_pitch,       until - before,
                                   bytes_, to + before * kTileBytes, region_.plane()};
        layer_.kernels->tiles->spread(spread);
    }

    void fill_window(int64_t r) const {
        const Row& pixel = pixels_[r];
        const int64_t from = first_ * kTileBytes, until = from + bytes_, each = layer_.packed->groups * 4;
        for (int64_t p = from / each; p * each < until; p++) {
            const int64_t y = pixel.y + p / g_.kernel_w * g_.dilation_h, x = pixel.x + p % g_.kernel_w * g_.dilation_w;
            const int64_t begin = std::max(from, p * each), end = std::min(until, p * each + each);
            const int64_t filled = std::max(begin, std::min(end, p * each + layer_.packed->channels));
            uint8_t* const to = row_ + (begin - from);
            const size_t bytes = static_cast<size_t>(filled - begin);
            if (within(y, g_.height) && within(x, g_.width)) {
                std::memcpy(to, pixel.image + (y * g_.width + x) * g_.code_pitch + (begin - p * each), bytes);
            } else {
                std::memset(to, zero_code(g_, pixel.sample), bytes);
            }
            std::memset(to + bytes, 0, static_cast<size_t>(end - filled));
        }
        layer_.kernels->tiles->spread({row_, 0, 1, bytes_, memory_ + r * kTileBytes, region_.plane()});
    }

    const Layer& layer_;
    const dq_int_conv2d_args& g_;
    const Placing placing_;
    const Row* const pixels_;
    const int64_t count_;
    uint8_t* const memory_;
    uint8_t* const row_;
    Region region_ = {};
    int64_t first_ = 0;  // chunk that was filled
    int64_t bytes_ = 0;  // of a pixel, from there on
};

}  // namespace
}  // namespace dq
