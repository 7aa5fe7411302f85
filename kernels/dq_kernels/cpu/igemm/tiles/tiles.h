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

// One register's codes: 64 bytes of each of its rows.
struct TileCodes {
    const uint8_t* first;
    int64_t pitch;  // bytes from row to row
};

// 4-bit weights of the next block, unpacked between the products of this one.
struct TileUnpack {
    const uint8_t* from;
    uint8_t* to;
    int64_t groups;
};

// Up to 32 pixels times a part of one panel: to = from + sum of codes times weights, modulo 2^32.
struct TileMultiply {
    const TileCodes* codes;  // [steps][2], the first 16 pixels and the others
    const uint8_t* weights;  // int8 [steps * 16][kPanelColumns][4]
    const int32_t* from;     // [32][kPanelColumns]; null: zeros
    int32_t* to;             // may be `from`
    int64_t steps;           // of 64 bytes
    const Finish* before;    // another result's epilogue, done between the products; may be null
    TileUnpack ahead;        // likewise; of no groups where there is nothing to unpack
    bool both;               // there are more than 16 pixels
};

// What the loop is given. Between `configure` and `release` a thread's registers are in use.
struct TileKernels {
    void (*configure)(int rows0, int rows1);  // pixels in the first and the second register, 1 to 16 and 0 to 16
    void (*release)();
    // Copies `bytes` of each of `count` rows to `to`, `pitch` apart.
    void (*gather)(const uint8_t* const* rows, int count, int64_t bytes, uint8_t* to, int64_t pitch);
    void (*multiply)(const TileMultiply&);
};

const Kernels& amx_kernels();           // the emulated ones where the compiler knows no AMX; then it is not offered
const Kernels& amx_emulated_kernels();  // the same source, each tile instruction by plain C++; for tests

// As igemm, for kernels that have tiles.
void igemm_by_tiles(Pool& pool, const dq_int_conv2d_args& args);

}  // namespace dq
