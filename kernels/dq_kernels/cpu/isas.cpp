// Which instruction sets this CPU, this operating system and this library have.
#include <sys/syscall.h>
#include <unistd.h>

#include "dq_kernels.h"
#include "simd/simd.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace dq {
namespace {

#if defined(__x86_64__)
constexpr uint64_t kVectors = 0x6, kWideVectors = 0xe6, kTiles = 0x60000;  // registers the system keeps, of XCR0
constexpr int kRequestPermission = 0x1023;  // arch_prctl: ARCH_REQ_XCOMP_PERM, since Linux 5.16
constexpr int kTileData = 18;               // the tiles, among the parts of a process's state

struct Found {
    uint64_t kept = 0;
    bool avx2 = false;
    bool avx_vnni = false;
    bool avx512_vnni = false;
    bool amx = false;
    bool permitted = false;
    bool bfloat16 = false;
    bool bfloat16_tiles = false;
};

__attribute__((target("xsave"))) uint64_t kept_registers() { return _xgetbv(0); }

// The permission holds for all threads of this process and its forks. It is asked for before any of them has tiles.
bool request_tiles() { return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0; }

Found look() {
    Found found;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const bool osxsave = c & (1u << 27), fma = c & (1u << 12);
    if (!osxsave || !fma) return found;
    found.kept = kept_registers();
    if ((found.kept & kVectors) != kVectors) return found;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & (1u << 5))) return found;
    found.avx2 = true;
    const bool wide = (found.kept & kWideVectors) == kWideVectors;
    const bool avx512 = wide && (b & (1u << 16)) && (b & (1u << 30)) && (b & (1u << 31));
    const bool quads = b & (1u << 17);  // avx512dq, which every CPU with bfloat16 has so far
    found.avx512_vnni = avx512 && (c & (1u << 11));
    found.amx = found.avx512_vnni && (d & (1u << 24)) && (d & (1u << 25));
    found.bfloat16_tiles = found.amx && (d & (1u << 22));
    if (found.amx && DQ_HAS_AMX && (found.kept & kTiles) == kTiles) found.permitted = request_tiles();
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        found.avx_vnni = a & (1u << 4);
        found.bfloat16 = avx512 && quads && (a & (1u << 5));
    }
    return found;
}

int32_t refusal_of_amx(const Found& found) {
    if (!DQ_HAS_AMX) return DQ_NOT_COMPILED;
    if (!found.amx) return DQ_NOT_IN_CPU;
    if ((found.kept & kTiles) != kTiles) return DQ_NOT_IN_SYSTEM;
    return found.permitted ? DQ_OFFERED : DQ_NOT_PERMITTED;
}

const Found& found_here() {
    static const Found found = look();  // once: the permission is not asked for again
    return found;
}

int32_t refusal_of(int32_t isa) {
    const Found& found = found_here();
    switch (isa) {
        case DQ_AVX2:
            return found.avx2 ? DQ_OFFERED : DQ_NOT_IN_CPU;
        case DQ_AVX_VNNI:
            return found.avx_vnni ? DQ_OFFERED : DQ_NOT_IN_CPU;
        case DQ_AVX512_VNNI:
            return found.avx512_vnni ? DQ_OFFERED : DQ_NOT_IN_CPU;
        case DQ_AMX:
            return refusal_of_amx(found);
        default:
            return DQ_NOT_IN_CPU;
    }
}

int32_t has_bfloat16() { return DQ_HAS_BF16 && found_here().bfloat16; }
int32_t has_bfloat16_tiles() { return has_bfloat16() && found_here().bfloat16_tiles; }
#else
int32_t refusal_of(int32_t) { return DQ_NOT_IN_CPU; }
int32_t has_bfloat16() { return 0; }
int32_t has_bfloat16_tiles() { return 0; }
#endif

}  // namespace
}  // namespace dq

extern "C" {

int32_t dq_has_bfloat16(void) { return dq::has_bfloat16(); }

int32_t dq_has_bfloat16_tiles(void) { return dq::has_bfloat16_tiles(); }

int32_t dq_refusal_of_isa(int32_t isa) {
    if (isa == DQ_PORTABLE) return DQ_OFFERED;
    if (isa == DQ_AMX_EMULATED) return DQ_ONLY_IN_TESTS;
    return dq::refusal_of(isa);
}

int32_t dq_known_isas(void) {
    int32_t known = 0;
    for (int32_t isa = 0; isa < DQ_ISAS; isa++) {
        if (dq_refusal_of_isa(isa) == DQ_OFFERED) known |= 1 << isa;
    }
    return known;
}

}  // extern "C"
