// Runs the AMX kernels as they are compiled on a CPU that lacks the tiles: each tile instruction raises SIGILL, the
// handler decodes it and does by plain C++ what it says. Compares layers with the portable kernels.
#include <ucontext.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "igemm/tiles/tiles.h"
#include "simd/simd.h"

namespace emulated {
#include "igemm/tiles/emulated.inc"
}  // namespace emulated

namespace dq {
const Kernels& avx2_kernels() { return portable_kernels(); }
const Kernels& avx_vnni_kernels() { return portable_kernels(); }
const Kernels& avx512_vnni_kernels() { return portable_kernels(); }
void quantize(Pool&, const dq_quantize_args&) {}
void group_norm_silu_quantize(Pool&, const dq_group_norm_silu_quantize_args&) {}
void layer_norm_quantize(Pool&, const dq_layer_norm_quantize_args&) {}
void geglu_quantize(Pool&, const dq_geglu_quantize_args&) {}
void int_linear(Pool&, const dq_int_linear_args&) {}
void int_conv2d(Pool& pool, const dq_int_conv2d_args& args) { igemm(pool, args); }
void int_linear_codes(Pool&, const dq_int_linear_codes_args&) {}
void write_codes(const Follow&, const Strip&) {}
void attention(Pool&, const dq_attention_args&) {}
void float_linear(Pool&, const dq_float_linear_args&) {}
void float_conv2d(Pool&, const dq_float_conv2d_args&) {}
void elementwise(Pool&, const dq_elementwise_args&) {}
}  // namespace dq

namespace {

enum Kind { kConfigure, kRelease, kZero, kLoad, kStore, kDot, kKinds };
long seen[kKinds];

// A three-byte VEX instruction of the map 0F 38, with 128 bits and W 0, as all of AMX is.
struct Instruction {
    int prefix;  // 0: none, 1: 66, 2: F3, 3: F2
    int opcode;
    int reg;
    int rm;
    int third;  // the register in VEX.vvvv
    bool memory;
    uint8_t* address;
    int64_t pitch;  // what the index register holds
    int length;
};

int64_t value_of(const greg_t* registers, int number) {
    static const int kPlaces[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return registers[kPlaces[number]];
}

bool decode(const greg_t* registers, Instruction& found) {
    const auto* code = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
    if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x84) != 0) return false;
    const bool extended_index = !(code[1] & 0x40), extended_base = !(code[1] & 0x20);
    if (!(code[1] & 0x80)) return false;  // no ninth tile register
    found = {};
    found.prefix = code[2] & 3;
    found.third = ~(code[2] >> 3) & 15;
    found.opcode = code[3];
    const int mode = code[4] >> 6;
    found.reg = code[4] >> 3 & 7;
    found.rm = code[4] & 7;
    found.memory = mode != 3;
    found.length = 5;
    if (!found.memory) return true;
    int64_t base = 0;
    if (found.rm == 4) {
        const int sib = code[found.length++];
        const int index = (sib >> 3 & 7) + 8 * extended_index;
        if ((sib & 7) == 5 && mode == 0) return false;
        base = value_of(registers, (sib & 7) + 8 * extended_base);
        if (index != 4) found.pitch = value_of(registers, index) << (sib >> 6);
    } else {
        if (found.rm == 5 && mode == 0) return false;
        base = value_of(registers, found.rm + 8 * extended_base);
    }
    if (mode == 1) base += static_cast<int8_t>(code[found.length++]);
    if (mode == 2) {
        int32_t distance;
        memcpy(&distance, code + found.length, 4);
        base += distance;
        found.length += 4;
    }
    found.address = reinterpret_cast<uint8_t*>(base);
    return true;
}

bool execute(const Instruction& i) {
    if (i.opcode == 0x49 && i.prefix == 0 && i.memory && i.reg == 0) {
        seen[kConfigure]++;
        emulated::emulated_configure(i.address);
    } else if (i.opcode == 0x49 && i.prefix == 0 && !i.memory && i.reg == 0 && i.rm == 0) {
        seen[kRelease]++;
        emulated::tiles.configured = false;
    } else if (i.opcode == 0x49 && i.prefix == 3 && !i.memory && i.rm == 0) {
        seen[kZero]++;
        emulated::emulated_zero(i.reg);
    } else if (i.opcode == 0x4b && i.prefix == 3 && i.memory && i.rm == 4) {
        seen[kLoad]++;
        emulated::emulated_load(i.reg, i.address, i.pitch);
    } else if (i.opcode == 0x4b && i.prefix == 2 && i.memory && i.rm == 4) {
        seen[kStore]++;
        emulated::emulated_store(i.reg, i.address, i.pitch);
    } else if (i.opcode == 0x5e && i.prefix == 1 && !i.memory) {  // tdpbusd alone: unsigned times signed
        seen[kDot]++;
        emulated::emulated_dot(i.reg, i.rm, i.third);
    } else {
        return false;
    }
    return true;
}

void answer(int, siginfo_t*, void* context) {
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    Instruction found;
    if (decode(registers, found) && execute(found)) {
        registers[REG_RIP] += found.length;
    } else {
        std::signal(SIGILL, SIG_DFL);  // some other illegal instruction: it comes again and ends the process
    }
}

uint32_t state = 1;
int random_below(int limit) {
    state = state * 1664525u + 1013904223u;
    return static_cast<int>(state >> 8) % limit;
}

struct Shape {
    int batch, height, width, channels, out_channels, window, bits;
};

// Floats of y and the accumulators, behind each other.
std::vector<uint32_t> run(int32_t isa, const Shape& s) {
    state = 7;
    const int pad = s.window / 2, positions = s.window * s.window, span = 1 << s.bits;
    std::vector<int8_t> weights(static_cast<size_t>(s.out_channels) * positions * s.channels);
    for (auto& w : weights) w = static_cast<int8_t>(random_below(span) - span / 2);
    const int64_t pitch = (s.channels + 3) / 4 * 4;
    std::vector<uint8_t> codes(static_cast<size_t>(s.batch * s.height * s.width * pitch));
    for (auto& c : codes) c = static_cast<uint8_t>(random_below(256));
    std::vector<float> scale(s.out_channels), bias(s.out_channels);
    for (auto& v : scale) v = 1e-3f * (1 + random_below(100));
    for (auto& v : bias) v = 0.1f * random_below(100);
    const float step_scale[2] = {0.01f, 0.02f};
    const int32_t zero_point[2] = {-100, 27};
    std::vector<int32_t> step(s.batch);
    for (int b = 0; b < s.batch; b++) step[b] = b % 2;
    const int64_t bytes = dq_packed_bytes(isa, s.out_channels, positions, s.channels, weights.data(), nullptr, 255);
    void* packed = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    dq_pack_weights(isa, s.out_channels, positions, s.channels, weights.data(), nullptr, 255, packed);
    const size_t size = static_cast<size_t>(s.batch) * s.height * s.width * s.out_channels;
    std::vector<uint32_t> result(2 * size);
    dq_int_conv2d_args a = {};
    a.codes = codes.data();
    a.weights = packed;
    a.step = step.data();
    a.batch = s.batch;
    a.height = a.out_height = s.height;
    a.width = a.out_width = s.width;
    a.channels = s.channels;
    a.code_pitch = pitch;
    a.out_channels = s.out_channels;
    a.kernel_h = a.kernel_w = s.window;
    a.stride_h = a.stride_w = a.dilation_h = a.dilation_w = 1;
    a.pad_top = a.pad_left = pad;
    a.quantizer.scale = step_scale;
    a.quantizer.zero_point = zero_point;
    a.quantizer.steps = 2;
    a.quantizer.q_min = -128;
    a.quantizer.q_max = 127;
    a.epilogue.weight_scale = scale.data();
    a.epilogue.bias = bias.data();
    a.epilogue.y = reinterpret_cast<float*>(result.data());
    a.epilogue.accumulators = reinterpret_cast<int32_t*>(result.data() + size);
    a.epilogue.y_pitch = s.out_channels;
    dq::Pool pool(1, isa);  // other threads block signals
    dq::int_conv2d(pool, a);
    std::free(packed);
    return result;
}

}  // namespace

int main() {
    dq_known_isas();  // where this CPU has the tiles, it asks for them: then nothing traps
    struct sigaction action = {};
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, nullptr);
    const Shape shapes[] = {
        {1, 1, 40, 130, 70, 1, 4}, {3, 1, 7, 64, 32, 1, 8}, {2, 5, 9, 64, 40, 3, 8}, {1, 4, 33, 20, 33, 3, 4},
        {1, 1, 20, 832, 300, 1, 8},
    };
    for (const Shape& shape : shapes) {
        const auto wanted = run(DQ_PORTABLE, shape);
        if (run(DQ_AMX, shape) == wanted) continue;
        std::printf("differs: %d channels, %d bits\n", shape.channels, shape.bits);
        return 1;
    }
    std::printf("configure %ld, release %ld, zero %ld, load %ld, store %ld, dot %ld\n", seen[kConfigure],
                seen[kRelease], seen[kZero], seen[kLoad], seen[kStore], seen[kDot]);
    return 0;
}
