// Attention, linear layers and patches with AMX's tile instructions; they run only where the processor and the system have them
// (dispatch.cpp).
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>

#include "memvit_cpu.h"

#if MEMVIT_HAS_AMX
#define MEMVIT_LEVEL 4
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
namespace memvit_amx {
#include "vectors.inl"
#include "queries.inl"
#include "blocks.inl"
#include "position_columns.inl"
#include "tiled_operands.inl"
#include "tiled_attention.inl"
#include "norm.inl"
#include "rows.inl"
#include "gelu.inl"
#include "linear.inl"
}
#pragma GCC pop_options
#endif
