// The kernels with avx2 instructions; they run only where the processor has them (dispatch.cpp).
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>

#include "memvit_cpu.h"

#define MEMVIT_LEVEL 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace memvit_avx2 {
#include "kernels.inl"
#include "float_rows.inl"
#include "gelu.inl"
#include "panels.inl"
}
#pragma GCC pop_options
