// The integer product by matrix tiles (AMX): registers of 16 rows of 64 bytes, multiplied as matrices.
//
// A tile of the result is 16 pixels times 16 output channels, int32. Two by two of them, 32 pixels times one panel of
// 32 channels, take four of the eight registers; two hold codes, 16 pixels times 64 bytes, and two hold weights,
// 16 groups of 4 channels times 16 columns. Packed weights already lie so: a panel's group is a row of two tiles.
#pragma once
#include "igemm/igemm.h"

namespace dq {

constexpr int kTileRows = 16;      // of a register
constexpr int kTileBytes = 64;     // of a register's row
constexpr int kTileGroups = 16;    // of 4 channels, in a row of codes or a column of weights
constexpr int kPanelColumns = 32;  // two registers of weights side by side
constexpr int kPanelStep = kTileGroups * kPanelColumns * 4;  // bytes of weights of one product

// What one product takes: where its codes lie, from a register's first pixel, and its weights, from the panel's.
struct TileStep {
    int64_t codes;
    int64_t weights;  // as they are packed
    int64_t groups;   // of weights, at most kTileGroups; what follows them meets codes of 0
};

// Weights of the next panel, made ready between the products of this one: 4-bit ones unpacked, others asked for.
struct TileAhead {
    const uint8_t* from;   // the packed panel; null: nothing to do
    uint8_t* to;           // its unpacked steps; null: ask for them
    const TileStep* step;  // the first
    int64_t steps;
};

// Up to 32 pixels times a part of one panel: to = from + sum of codes times weights, modulo 2^32.
struct TileMultiply {
    const uint8_t* codes[2];  // of the first 16 pixels and the others
    int64_t code_pitch;       // bytes from pixel to pixel
    const uint8_t* weights;
    bool unpacked;         // weights lie step behind step, each register's bytes together; else as they are packed
    const TileStep* step;  // the first
    int64_t steps;
    const int32_t* from;   // [32][kPanelColumns]; null: zeros
    int32_t* to;           // may be `from`
    const Finish* before;  // another result's epilogue, done between the products; may be null
    TileAhead ahead;
    bool both;  // there are more than 16 pixels
};

// Codes of pixels, spread over planes of 64 channels: plane [pixel][64], zeros behind the last channel.
struct TileSpread {
    const uint8_t* from;
    int64_t pitch;  // bytes from pixel to pixel
    int64_t pixels;
    int64_t bytes;  // of a pixel
    uint8_t* to;
    int64_t plane;  // bytes from plane to plane
};

// What the loop is given. Between `configure` and `release` a thread's registers are in use.
struct TileKernels {
    void (*configure)(int rows0, int rows1);  // pixels in the first and the second register, 1 to 16 and 0 to 16
    void (*release)();
    void (*spread)(const TileSpread&);
    void (*unpack)(const TileAhead&);
    void (*multiply)(const TileMultiply&);
};

const Kernels& amx_kernels();           // the emulated ones where the compiler knows no AMX; then it is not offered
const Kernels& amx_emulated_kernels();  // the same source, each tile instruction by plain C++; for tests

// As igemm, for kernels that have tiles.
void igemm_by_tiles(Pool& pool, const dq_int_conv2d_args& args);

}  // namespace dq
