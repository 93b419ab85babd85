// The kernels with avx512_bf16 instructions; they run only where the processor has them (dispatch.cpp).
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>

#include "memvit_cpu.h"

#define MEMVIT_LEVEL 3
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
namespace memvit_avx512_bf16 {
#include "kernels.inl"
}
#pragma GCC pop_options
