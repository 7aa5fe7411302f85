// y = A w^T + bias over the threads, a tile of y a task; rows of A come from a callable, so that a convolution
// is the same product with another way to collect its rows.
#pragma once
#include <algorithm>

#include "context.h"
#include "float_linear/fgemm.h"

namespace dq {
namespace fgemm {

constexpr int64_t kTile = 192;

struct Product {
    int64_t rows;
    int64_t columns;
    int64_t depth;
    const float* weights;  // [columns, depth]
    const float* bias;     // [columns], may be null
    float* y;              // [rows, y_pitch]
    int64_t y_pitch;
};

struct Tiles {
    int64_t rows;
    int64_t columns;
    int64_t down;
    int64_t across;
};

// Tiles small enough that each thread has some, `products` of these sizes given.
inline Tiles tiles_of(int64_t rows, int64_t columns, int64_t products, int64_t threads) {
    Tiles tiles{kTile, kTile, 0, 0};
    for (;;) {
        tiles.down = (rows + tiles.rows - 1) / tiles.rows;
        tiles.across = (columns + tiles.columns - 1) / tiles.columns;
        if (threads == 1 || tiles.down * tiles.across * products >= 3 * threads) return tiles;
        if (tiles.rows >= tiles.columns && tiles.rows > 24) {
            tiles.rows /= 2;
        } else if (tiles.columns > 32) {
            tiles.columns = tiles.columns == 96 ? 32 : 96;
        } else {
            return tiles;
        }
    }
}

// One tile; collect(first row, rows, first k, depth, a) writes rows of kPitch floats.
template <class Collect>
void multiply_tile(const Kernels& kernels, const Product& p, const Tiles& tiles, int64_t down, int64_t across,
                   float* scratch, const Collect& collect) {
    const int64_t row = down * tiles.rows, rows = std::min(tiles.rows, p.rows - row);
    const int64_t column = across * tiles.columns, columns = std::min(tiles.columns, p.columns - column);
    const int64_t padded = round_up(rows, kRows);
    float *a = scratch, *b = a + kTile * kPitch, *c = b + kDepth * kTile;
    for (int64_t first = 0; first < p.depth; first += kDepth) {
        const int64_t depth = std::min(kDepth, p.depth - first);
        collect(row, rows, first, depth, a);
        for (int64_t i = rows; i < padded; i++) std::fill_n(a + i * kPitch, depth, 0.0f);
        kernels.pack_transposed(p.weights + column * p.depth + first, p.depth, columns, depth, b);
        kernels.product(a, b, padded, columns, depth, c, kTile, first > 0);
    }
    for (int64_t i = 0; i < rows; i++) {
        float* y = p.y + (row + i) * p.y_pitch + column;
        const float* sums = c + i * kTile;
        if (p.bias == nullptr) {
            std::copy_n(sums, columns, y);
        } else {
            for (int64_t n = 0; n < columns; n++) y[n] = sums[n] + p.bias[column + n];
        }
    }
}

static_assert((kTile * kPitch + kDepth * kTile + kTile * kTile) * sizeof(float) <= DQ_SCRATCH_BYTES, "scratch");
static_assert(kTile % kRows == 0 && kTile % kColumns == 0, "tiles are whole blocks");

}  // namespace fgemm
}  // namespace dq
