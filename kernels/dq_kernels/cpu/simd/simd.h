// Code for one instruction set inside a file compiled for all: DQ_AVX2_BEGIN ... DQ_ISA_END around functions.
//
// Inside, call no template or inline function of the standard library: the linker keeps one copy of each, and it might
// be the one compiled for the newer CPU. Functions there are static or in a nameless namespace for the same reason.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#define DQ_X86 1
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own _mm512_undefined_ps
#endif
#include <immintrin.h>
#else
#define DQ_X86 0
#endif

// Whether the compiler knows the tile instructions: g++ 11 and clang 12 do.
#if DQ_X86 && defined(__has_include)
#if __has_include(<amxint8intrin.h>)
#define DQ_HAS_AMX 1
#endif
#endif
#ifndef DQ_HAS_AMX
#define DQ_HAS_AMX 0
#endif

// Whether the compiler knows the bfloat16 instructions: g++ 10 and clang 9 do.
#if DQ_X86 && defined(__has_include)
#if __has_include(<avx512bf16intrin.h>)
#define DQ_HAS_BF16 1
#endif
#endif
#ifndef DQ_HAS_BF16
#define DQ_HAS_BF16 0
#endif

// Whether the library has attention by tiles.
#define DQ_HAS_ATTENTION_TILES (DQ_HAS_AMX && DQ_HAS_BF16)

#define DQ_INLINE static inline __attribute__((always_inline))

#define DQ_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#define DQ_ISA_BEGIN(...) DQ_PRAGMA(clang attribute push(__attribute__((target(__VA_ARGS__))), apply_to = function))
#define DQ_ISA_END DQ_PRAGMA(clang attribute pop)
#else
#define DQ_ISA_BEGIN(...) DQ_PRAGMA(GCC push_options) DQ_PRAGMA(GCC target(__VA_ARGS__))
#define DQ_ISA_END DQ_PRAGMA(GCC pop_options)
#endif
#define DQ_AVX2_BEGIN DQ_ISA_BEGIN("avx2")
#define DQ_AVX_VNNI_BEGIN DQ_ISA_BEGIN("avx2,avxvnni")
#define DQ_AVX512_BEGIN DQ_ISA_BEGIN("avx2,avx512f,avx512bw,avx512vl")
#define DQ_AVX512_VNNI_BEGIN DQ_ISA_BEGIN("avx2,avx512f,avx512bw,avx512vl,avx512vnni")
#define DQ_AMX_BEGIN DQ_ISA_BEGIN("avx2,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8")
