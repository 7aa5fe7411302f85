// Asks isas.cpp about a CPU and an operating system that are made up: <leaf 7 edx> <XCR0> <arch_prctl's answer>, hex.
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

static unsigned leaf7d;
static unsigned long long kept;
static long permission;
static int requests;

static int faked_cpuid(unsigned, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
    *a = *b = *d = 0;
    *c = 1u << 27 | 1u << 12;
    return 1;
}

static int faked_leaf7(unsigned, unsigned, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
    *a = 0;
    *b = 1u << 5 | 1u << 16 | 1u << 30 | 1u << 31;
    *c = 1u << 11;
    *d = leaf7d;
    return 1;
}

static long faked_syscall(long number, int code, int feature) {
    if (number != SYS_arch_prctl || code != 0x1023 || feature != 18) std::abort();
    requests++;
    return permission;
}

#define __get_cpuid faked_cpuid
#define __get_cpuid_count faked_leaf7
#undef _xgetbv
#define _xgetbv(number) kept
#define syscall faked_syscall
#include "isas.cpp"

int main(int, char** arguments) {
    leaf7d = static_cast<unsigned>(std::strtoul(arguments[1], nullptr, 16));
    kept = std::strtoull(arguments[2], nullptr, 16);
    permission = std::strtol(arguments[3], nullptr, 16);
    for (int i = 0; i < 3; i++) dq_known_isas();
    std::printf("%d %d %x\n", dq_refusal_of_isa(DQ_AMX), requests, dq_known_isas());
    return 0;
}
