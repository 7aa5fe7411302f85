// Weights in the access order of one instruction set.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "igemm/igemm.h"

namespace dq {
namespace {

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// The largest number of pairs (8, 4 or 2) whose products cannot leave int16; 0 if two can. One pair would do without
// wide weights, but widening each of its sums costs more than it spares (measured: 78 against 92 GMAC/s).
int32_t pairs_of(int32_t code_span, int32_t largest) {
    for (int32_t pairs = 8; pairs > 1; pairs /= 2) {
        if (int64_t{pairs} * 2 * code_span * largest <= 32767) return pairs;
    }
    return 0;
}

int32_t bits_of(int32_t low, int32_t high) {
    int32_t bits = 1;
    while (low < -(1 << (bits - 1)) || high > (1 << (bits - 1)) - 1) bits++;
    return bits;
}

Packed head_of(int32_t isa, int64_t out_channels, int64_t positions, int64_t channels, const int8_t* weights,
               const int32_t* weight_zero, int32_t code_span) {
    Packed head = {};
    int32_t low = 0, high = 0;
    for (int64_t i = 0; i < out_channels * positions * channels; i++) {
        low = std::min<int32_t>(low, weights[i]);
        high = std::max<int32_t>(high, weights[i]);
    }
    head.isa = isa;
    head.columns = kernels_of(isa).columns;
    head.bits = bits_of(low, high);
    head.code_span = code_span;
    head.pairs = isa == DQ_AVX2 ? pairs_of(code_span, std::max(-low, high)) : 0;
    const bool wide = isa == DQ_PORTABLE || (isa == DQ_AVX2 && head.pairs == 0);
    head.form = head.bits <= 4 ? kInt4 : wide ? kWide : kInt8;
    head.out_channels = out_channels;
    head.positions = positions;
    head.channels = channels;
    head.groups = (channels + 3) / 4;
    head.panels = (out_channels + head.columns - 1) / head.columns;
    head.step_bytes = head.columns * (head.form == kInt4 ? 2 : 4);
    head.sums = round_up(sizeof(Packed), 64);
    const int64_t table = round_up(head.panels * head.columns * 4, 64);
    head.zeros = weight_zero == nullptr ? 0 : head.sums + table;
    head.weights = head.sums + (weight_zero == nullptr ? table : 2 * table);
    return head;
}

// A tile of int8 weights is loaded whole: the last one may reach past the last panel.
int64_t bytes_of(const Packed& head) {
    const int64_t past = kernels_of(head.isa).tiles != nullptr && head.form == kInt8 ? DQ_TILE_REACH : 0;
    return head.weights + round_up(head.panels * head.positions * head.groups * head.step_bytes, 64) + past;
}

void put_weight(const Packed& head, uint8_t* group, int64_t column, int64_t channel, int8_t value) {
    const int64_t half = head.columns / 2;
    if (head.form != kInt4) {
        group[column * 4 + channel] = static_cast<uint8_t>(value);
    } else if (column < half) {
        group[column * 4 + channel] |= static_cast<uint8_t>(value & 15);
    } else {
        group[(column - half) * 4 + channel] |= static_cast<uint8_t>((value & 15) << 4);
    }
}

}  // namespace
}  // namespace dq

extern "C" {

int64_t dq_packed_bytes(int32_t isa, int64_t out_channels, int64_t positions, int64_t channels, const int8_t* weights,
                        const int32_t* weight_zero, int32_t code_span) {
    return dq::bytes_of(dq::head_of(isa, out_channels, positions, channels, weights, weight_zero, code_span));
}

void dq_pack_weights(int32_t isa, int64_t out_channels, int64_t positions, int64_t channels, const int8_t* weights,
                     const int32_t* weight_zero, int32_t code_span, void* packed) {
    const dq::Packed head = dq::head_of(isa, out_channels, positions, channels, weights, weight_zero, code_span);
    uint8_t* bytes = static_cast<uint8_t*>(packed);
    std::memset(bytes, 0, static_cast<size_t>(dq::bytes_of(head)));
    std::memcpy(bytes, &head, sizeof(head));
    int32_t* sums = reinterpret_cast<int32_t*>(bytes + head.sums);
    if (weight_zero != nullptr) std::memcpy(bytes + head.zeros, weight_zero, static_cast<size_t>(out_channels) * 4);
    for (int64_t n = 0; n < out_channels; n++) {
        if (weight_zero != nullptr) sums[n] -= static_cast<int32_t>(positions * channels) * weight_zero[n];
        const int64_t panel = n / head.columns, column = n % head.columns;
        uint8_t* of_panel = bytes + head.weights + panel * positions * head.groups * head.step_bytes;
        for (int64_t p = 0; p < positions; p++) {
            for (int64_t k = 0; k < channels; k++) {
                const int8_t value = weights[(n * positions + p) * channels + k];
                sums[n] += value;
                dq::put_weight(head, of_panel + (p * head.groups + k / 4) * head.step_bytes, column, k % 4, value);
            }
        }
    }
}

int64_t dq_form_bytes(void) {
    return sizeof(dq_product_form);
}

void dq_form_of_product(const void* packed, dq_product_form* form) {
    const dq::Packed& head = *static_cast<const dq::Packed*>(packed);
    form->isa = head.isa;
    form->memory_bits = head.form == dq::kInt4 ? 4 : 8;
    form->pairs = head.isa == DQ_AVX2 && head.form != dq::kWide ? head.pairs : 0;
    form->reserved = 0;
}

int64_t dq_packed_form(const void* packed, char* text, int64_t bytes) {
    const dq::Packed& head = *static_cast<const dq::Packed*>(packed);
    char line[128];
    const char* memory = head.form == dq::kInt4 ? "int4 in memory" : "int8 in memory";
    int written;
    if (head.isa == DQ_PORTABLE) {
        written = std::snprintf(line, sizeof(line), "plain C++, %s", memory);
    } else if (head.isa == DQ_AMX || head.isa == DQ_AMX_EMULATED) {
        const char* how = head.isa == DQ_AMX ? "" : " in plain C++";
        written = std::snprintf(line, sizeof(line), "tdpbusd%s, %s", how, memory);
    } else if (head.isa != DQ_AVX2) {
        written = std::snprintf(line, sizeof(line), "vpdpbusd %s, %s", head.isa == DQ_AVX_VNNI ? "ymm" : "zmm", memory);
    } else if (head.form == dq::kWide) {
        written = std::snprintf(line, sizeof(line), "vpmaddwd, %s", memory);
    } else {
        written = std::snprintf(line, sizeof(line), "vpmaddubsw, %d summed in int16, %s", head.pairs, memory);
    }
    if (text != nullptr && bytes > 0) {
        const size_t kept = static_cast<size_t>(std::min<int64_t>(written, bytes - 1));
        std::memcpy(text, line, kept);
        text[kept] = 0;
    }
    return written + 1;
}

}  // extern "C"
