// Which instructions this processor has, and the kernels that go with them.
#include "memvit_cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MEMVIT_DECLARE(name)                                                       \
  namespace name {                                                                 \
  int32_t attention(const memvit_attention_call*, memvit_parallel_for);            \
  int32_t pool_norm(const memvit_pool_call*, memvit_parallel_for);                 \
  int32_t max_pool(const memvit_max_pool_call*, memvit_parallel_for);              \
  int32_t layer_norm(const memvit_norm_call*, memvit_parallel_for);                \
  }
#define MEMVIT_DECLARE_PRODUCTS(name)                                              \
  namespace name {                                                                 \
  int32_t linear(const memvit_linear_call*, memvit_parallel_for);                  \
  int32_t mlp(const memvit_mlp_call*, memvit_parallel_for);                        \
  int32_t patches(const memvit_patch_call*, memvit_parallel_for);                  \
  }
MEMVIT_DECLARE(memvit_avx2)
MEMVIT_DECLARE_PRODUCTS(memvit_avx2)
MEMVIT_DECLARE(memvit_avx512)
MEMVIT_DECLARE(memvit_avx512_bf16)

#if MEMVIT_HAS_AMX
MEMVIT_DECLARE_PRODUCTS(memvit_amx)
namespace memvit_amx {
int32_t attention(const memvit_attention_call*, memvit_parallel_for);
}

// Whether there are AMX's tiles for bfloat16, and the system lets this process have the 8 KiB that they add to its state.
static bool may_use_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

#define MEMVIT_DISPATCH(name)                                              \
  switch (level) {                                                         \
    case 1: return memvit_avx2::name(call, parallel_for);                  \
    case 2: return memvit_avx512::name(call, parallel_for);                \
    case 3:                                                                \
    case 4: return memvit_avx512_bf16::name(call, parallel_for);           \
    default: return 1;                                                     \
  }

extern "C" {

int32_t memvit_best_level(void) {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq"))
    return 1;
  if (!__builtin_cpu_supports("avx512bf16")) return 2;
#if MEMVIT_HAS_AMX
  if (may_use_tiles()) return 4;
#endif
  return 3;
}

int32_t memvit_attention(const memvit_attention_call* call, int32_t level, memvit_parallel_for parallel_for) {
#if MEMVIT_HAS_AMX
  if (level == 4) return memvit_amx::attention(call, parallel_for);
#endif
  MEMVIT_DISPATCH(attention)
}

int32_t memvit_pool_norm(const memvit_pool_call* call, int32_t level, memvit_parallel_for parallel_for) {
  MEMVIT_DISPATCH(pool_norm)
}

int32_t memvit_max_pool(const memvit_max_pool_call* call, int32_t level, memvit_parallel_for parallel_for) {
  MEMVIT_DISPATCH(max_pool)
}

int32_t memvit_layer_norm(const memvit_norm_call* call, int32_t level, memvit_parallel_for parallel_for) {
  MEMVIT_DISPATCH(layer_norm)
}

// What there is for AVX2 and for tiles; between them PyTorch's products are as fast.
#if MEMVIT_HAS_AMX
#define MEMVIT_DISPATCH_PRODUCTS(name)                               \
  switch (level) {                                                   \
    case 1: return memvit_avx2::name(call, parallel_for);            \
    case 4: return memvit_amx::name(call, parallel_for);             \
    default: return 1;                                               \
  }
#else
#define MEMVIT_DISPATCH_PRODUCTS(name) return level == 1 ? memvit_avx2::name(call, parallel_for) : 1;
#endif

int32_t memvit_linear(const memvit_linear_call* call, int32_t level, memvit_parallel_for parallel_for) {
  MEMVIT_DISPATCH_PRODUCTS(linear)
}

int32_t memvit_mlp(const memvit_mlp_call* call, int32_t level, memvit_parallel_for parallel_for) {
  MEMVIT_DISPATCH_PRODUCTS(mlp)
}

int32_t memvit_patches(const memvit_patch_call* call, int32_t level, memvit_parallel_for parallel_for) {
  MEMVIT_DISPATCH_PRODUCTS(patches)
}
}
