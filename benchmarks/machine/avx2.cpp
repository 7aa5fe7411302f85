// Answers patched `cpuid` instructions (now `ud2`) as a CPU with AVX2 but neither AVX-512 nor VNNI would.
//
// With DQ_KEEP_AVX_VNNI in the environment AVX-VNNI stays. With DQ_KEEP_AVX512_VNNI all of AVX-512 stays but bfloat16 and
// FP16, and AMX and AVX-VNNI do not. Loaded with LD_PRELOAD by benchmarks/machine/avx2.py. A ud2 that the compiler wrote
// itself, which no sound program reaches, would be taken for a cpuid.

#include <cpuid.h>
#include <csignal>
#include <cstdlib>
#include <initializer_list>
#include <ucontext.h>

namespace {

constexpr unsigned mask(std::initializer_list<int> numbers) {
    unsigned result = 0;
    for (int number : numbers) result |= 1u << number;
    return result;
}

// leaf 7: AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS, VP2INTERSECT,
// AMX BF16, FP16, AMX TILE, AMX INT8
constexpr unsigned kHidden7b = mask({16, 17, 21, 26, 27, 28, 30, 31});
constexpr unsigned kHidden7c = mask({1, 6, 11, 12, 14});
constexpr unsigned kHidden7d = mask({2, 3, 8, 22, 23, 24, 25});
// leaf 7.1: AVX-VNNI, AVX512-BF16, AMX FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16, AVX10
constexpr unsigned kAvxVnni = mask({4});
constexpr unsigned kHidden71a = mask({5, 21, 23});
constexpr unsigned kHidden71d = mask({4, 5, 8, 10, 19});

// of leaf 7 with AVX-512 kept: FP16, and AMX BF16, TILE, INT8
constexpr unsigned kNewer7d = mask({22, 23, 24, 25});

bool keep_avx_vnni = false, keep_avx512 = false;

void answer(int, siginfo_t *, void *context) {
    greg_t *registers = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
    const auto *code = reinterpret_cast<const unsigned char *>(registers[REG_RIP]);
    if (code[0] != 0x0f || code[1] != 0x0b) {
        std::signal(SIGILL, SIG_DFL);  // some other illegal instruction: it comes again and ends the process
        return;
    }
    const auto leaf = static_cast<unsigned>(registers[REG_RAX]), part = static_cast<unsigned>(registers[REG_RCX]);
    unsigned a, b, c, d;
    __cpuid_count(leaf, part, a, b, c, d);
    if (leaf == 7 && part == 0) {
        b &= ~(keep_avx512 ? 0u : kHidden7b);
        c &= ~(keep_avx512 ? 0u : kHidden7c);
        d &= ~(keep_avx512 ? kNewer7d : kHidden7d);
    } else if (leaf == 7 && part == 1) {
        a &= ~(keep_avx_vnni ? kHidden71a : kHidden71a | kAvxVnni);
        d &= ~kHidden71d;
    } else if (leaf == 0x24) {
        a = b = c = d = 0;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) void install() {
    keep_avx_vnni = std::getenv("DQ_KEEP_AVX_VNNI") != nullptr;
    keep_avx512 = std::getenv("DQ_KEEP_AVX512_VNNI") != nullptr;
    struct sigaction action = {};
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, nullptr);
}

}  // namespace
