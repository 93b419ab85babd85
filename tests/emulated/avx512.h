// The AVX-512 instructions that the kernels use, done by AVX2: a processor without them can test what is written for others.
// Included in front of the kernels' sources (emulation.py), so that the names of instructions mean what is here.
#pragma once
#pragma GCC diagnostic ignored "-Wpsabi"
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {
typedef int32_t Int32x16 __attribute__((vector_size(64)));
typedef uint32_t Uint32x16 __attribute__((vector_size(64)));

#pragma GCC push_options
#pragma GCC target("avx2,fma")

struct Floats {
  float lane[16];
  Floats() = default;
  Floats(__m512 v) { memcpy(lane, &v, 64); }
  operator __m512() const { __m512 v; memcpy(&v, lane, 64); return v; }
};
struct Words {
  int32_t lane[16];
  Words() = default;
  Words(__m512i v) { memcpy(lane, &v, 64); }
  operator __m512i() const { __m512i v; memcpy(&v, lane, 64); return v; }
};
template <typename F>
static inline __m512 floats(F f) { Floats r; for (int i = 0; i < 16; i++) r.lane[i] = f(i); return r; }
template <typename F>
static inline __m512i words(F f) { Words r; for (int i = 0; i < 16; i++) r.lane[i] = f(i); return r; }
template <typename F>
static inline __mmask16 mask(F f) { unsigned m = 0; for (int i = 0; i < 16; i++) m |= unsigned(f(i)) << i; return m; }
static inline bool has(unsigned mask, int i) { return mask >> i & 1; }

static inline uint16_t rounded(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return x != x ? 0x7fc0 | bits >> 16 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline float widened(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

static inline __m512 loadu_ps(const void* p) { __m512 v; memcpy(&v, p, 64); return v; }
static inline __m512i loadu_si512(const void* p) { __m512i v; memcpy(&v, p, 64); return v; }
static inline void storeu_ps(void* p, __m512 v) { memcpy(p, &v, 64); }
static inline void storeu_si512(void* p, __m512i v) { memcpy(p, &v, 64); }
static inline __m512 set1_ps(float x) { return __m512{} + x; }
static inline __m512i set1_epi32(int32_t x) { return (__m512i)(Int32x16{} + x); }
static inline __m512i setzero_si512() { return __m512i{}; }
static inline __m512 castsi512_ps(__m512i v) { return (__m512)v; }
static inline __m512i castps_si512(__m512 v) { return (__m512i)v; }
static inline __m512 add_ps(__m512 a, __m512 b) { return a + b; }
static inline __m512 sub_ps(__m512 a, __m512 b) { return a - b; }
static inline __m512 mul_ps(__m512 a, __m512 b) { return a * b; }
static inline __m512 max_ps(__m512 a, __m512 b) { return a > b ? a : b; }
static inline __m512 min_ps(__m512 a, __m512 b) { return a < b ? a : b; }
static inline __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const Floats x(a), y(b), z(c);
  return floats([&](int i) { return __builtin_fmaf(x.lane[i], y.lane[i], z.lane[i]); });
}
static inline __m512 fnmadd_ps(__m512 a, __m512 b, __m512 c) { return fmadd_ps(-a, b, c); }
// As near as the instruction comes, 14 bits.
static inline __m512 rcp14_ps(__m512 v) {
  return castsi512_ps((__m512i)((Int32x16)(1.f / v) & ~0x1ff));
}
static inline __m512 roundscale_ps(__m512 v, int how) {
  if (how != (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) __builtin_trap();
  const Floats x(v);
  return floats([&](int i) { return __builtin_nearbyintf(x.lane[i]); });
}
static inline __m512 scalef_ps(__m512 v, __m512 n) {
  const Floats x(v), y(n);
  return floats([&](int i) {
    const float whole = std::floor(y.lane[i]);
    if (whole != whole) return whole;
    const uint32_t bits = uint32_t(whole < -126 ? 0 : whole > 128 ? 255 : int(whole) + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x.lane[i] * power;
  });
}
static inline float reduce_add_ps(__m512 v) {
  Floats x(v);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; i++) x.lane[i] += x.lane[i + n];
  return x.lane[0];
}
static inline float reduce_max_ps(__m512 v) {
  Floats x(v);
  for (int n = 8; n; n /= 2)
    for (int i = 0; i < n; i++) x.lane[i] = x.lane[i] > x.lane[i + n] ? x.lane[i] : x.lane[i + n];
  return x.lane[0];
}

static inline __m512i add_epi32(__m512i a, __m512i b) { return (__m512i)((Int32x16)a + (Int32x16)b); }
static inline __m512i and_si512(__m512i a, __m512i b) { return a & b; }
static inline __m512i or_si512(__m512i a, __m512i b) { return a | b; }
static inline __m512i slli_epi32(__m512i v, int n) { return (__m512i)((Uint32x16)v << n); }
static inline __m512i srli_epi32(__m512i v, int n) { return (__m512i)((Uint32x16)v >> n); }
static inline __m512i ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
  const Words x(a), y(b), z(c);
  return words([&](int i) {
    uint32_t r = 0;
    for (int n = 0; n < 8; n++)
      if (table >> n & 1)
        r |= (n & 4 ? x.lane[i] : ~x.lane[i]) & (n & 2 ? y.lane[i] : ~y.lane[i]) & (n & 1 ? z.lane[i] : ~z.lane[i]);
    return r;
  });
}
static inline __m512i cvtepu16_epi32(__m256i v) {
  uint16_t x[16];
  memcpy(x, &v, 32);
  return words([&](int i) { return x[i]; });
}
static inline __m256i cvtepi32_epi16(__m512i v) {
  const Words x(v);
  uint16_t r[16];
  for (int i = 0; i < 16; i++) r[i] = x.lane[i];
  __m256i out;
  memcpy(&out, r, 32);
  return out;
}

static inline __mmask16 cmp_ps_mask(__m512 a, __m512 b, int how) {
  if (how != _CMP_ORD_Q && how != _CMP_UNORD_Q) __builtin_trap();  // the kernels ask for nothing else
  const Floats x(a), y(b);
  return mask([&](int i) {
    const bool ordered = x.lane[i] == x.lane[i] && y.lane[i] == y.lane[i];
    return how == _CMP_ORD_Q ? ordered : !ordered;
  });
}
static inline __mmask16 cmpge_epi32_mask(__m512i a, __m512i b) {
  const Words x(a), y(b);
  return mask([&](int i) { return x.lane[i] >= y.lane[i]; });
}
static inline __m512 mask_mov_ps(__m512 from, __mmask16 k, __m512 v) {
  const Floats x(from), y(v);
  return floats([&](int i) { return has(k, i) ? y.lane[i] : x.lane[i]; });
}
static inline __m512i mask_set1_epi32(__m512i from, __mmask16 k, int32_t v) {
  const Words x(from);
  return words([&](int i) { return has(k, i) ? v : x.lane[i]; });
}
static inline __m512i mask_add_epi32(__m512i from, __mmask16 k, __m512i a, __m512i b) {
  const Words x(from), y(add_epi32(a, b));
  return words([&](int i) { return has(k, i) ? y.lane[i] : x.lane[i]; });
}
static inline __m512 maskz_loadu_ps(__mmask16 k, const void* p) {
  return floats([&](int i) { return has(k, i) ? static_cast<const float*>(p)[i] : 0.f; });
}
static inline __m512i maskz_loadu_epi32(__mmask16 k, const void* p) {
  return words([&](int i) { return has(k, i) ? static_cast<const int32_t*>(p)[i] : 0; });
}
static inline __m512i maskz_loadu_epi16(__mmask32 k, const void* p) {
  uint16_t r[32];
  for (int i = 0; i < 32; i++) r[i] = has(k, i) ? static_cast<const uint16_t*>(p)[i] : 0;
  return loadu_si512(r);
}
static inline __m256i maskz_loadu_epi16_256(__mmask16 k, const void* p) {
  uint16_t r[16];
  for (int i = 0; i < 16; i++) r[i] = has(k, i) ? static_cast<const uint16_t*>(p)[i] : 0;
  __m256i out;
  memcpy(&out, r, 32);
  return out;
}
static inline void mask_storeu_ps(void* p, __mmask16 k, __m512 v) {
  const Floats x(v);
  for (int i = 0; i < 16; i++)
    if (has(k, i)) static_cast<float*>(p)[i] = x.lane[i];
}
static inline void mask_storeu_epi16_256(void* p, __mmask16 k, __m256i v) {
  uint16_t x[16];
  memcpy(x, &v, 32);
  for (int i = 0; i < 16; i++)
    if (has(k, i)) static_cast<uint16_t*>(p)[i] = x[i];
}
static inline __m512 mask_i32gather_ps(__m512 from, __mmask16 k, __m512i index, const void* p, int scale) {
  if (scale != sizeof(float)) __builtin_trap();
  const Floats x(from);
  const Words at(index);
  return floats([&](int i) { return has(k, i) ? static_cast<const float*>(p)[at.lane[i]] : x.lane[i]; });
}
static inline __m512 mask_permutexvar_ps(__m512 from, __mmask16 k, __m512i index, __m512 v) {
  const Floats x(from), y(v);
  const Words at(index);
  return floats([&](int i) { return has(k, i) ? y.lane[at.lane[i] & 15] : x.lane[i]; });
}
static inline __m512 maskz_permutexvar_ps(__mmask16 k, __m512i index, __m512 v) {
  return mask_permutexvar_ps(__m512{}, k, index, v);
}
static inline __m512 maskz_permutex2var_ps(__mmask16 k, __m512 a, __m512i index, __m512 b) {
  const Floats x(a), y(b);
  const Words at(index);
  return floats([&](int i) { return !has(k, i) ? 0.f : at.lane[i] & 16 ? y.lane[at.lane[i] & 15] : x.lane[at.lane[i] & 15]; });
}

// Of the four numbers of every 128 bits.
static inline __m512i unpack_epi32(__m512i a, __m512i b, int first) {
  const Words x(a), y(b);
  return words([&](int i) { return (i & 1 ? y : x).lane[(i & 12) + first + (i >> 1 & 1)]; });
}
static inline __m512i unpack_epi64(__m512i a, __m512i b, int first) {
  const Words x(a), y(b);
  return words([&](int i) { return (i & 2 ? y : x).lane[(i & 12) + first + (i & 1)]; });
}
static inline __m512i unpacklo_epi32(__m512i a, __m512i b) { return unpack_epi32(a, b, 0); }
static inline __m512i unpackhi_epi32(__m512i a, __m512i b) { return unpack_epi32(a, b, 2); }
static inline __m512i unpacklo_epi64(__m512i a, __m512i b) { return unpack_epi64(a, b, 0); }
static inline __m512i unpackhi_epi64(__m512i a, __m512i b) { return unpack_epi64(a, b, 2); }
static inline __m512i shuffle_i32x4(__m512i a, __m512i b, int order) {
  const Words x(a), y(b);
  return words([&](int i) { return (i < 8 ? x : y).lane[(order >> i / 4 * 2 & 3) * 4 + i % 4]; });
}

static inline __m256i cvtneps_pbh(__m512 v) {
  const Floats x(v);
  uint16_t r[16];
  for (int i = 0; i < 16; i++) r[i] = rounded(x.lane[i]);
  __m256i out;
  memcpy(&out, r, 32);
  return out;
}
static inline __m512i cvtne2ps_pbh(__m512 high, __m512 low) {
  const __m256i parts[2] = {cvtneps_pbh(low), cvtneps_pbh(high)};
  return loadu_si512(parts);
}
template <typename B>
static inline __m512 dpbf16_ps(__m512 sums, B a, B b) {
  const Floats from(sums);
  uint32_t x[16], y[16];
  memcpy(x, &a, 64);
  memcpy(y, &b, 64);
  return floats([&](int i) {
    const float odd = __builtin_fmaf(widened(x[i] >> 16), widened(y[i] >> 16), from.lane[i]);
    return __builtin_fmaf(widened(x[i] & 0xffff), widened(y[i] & 0xffff), odd);
  });
}

// AMX: eight tiles of sixteen rows.
static thread_local float tiles[8][16][16];
static inline void tile_load(int tile, const void* from, int64_t row_bytes) {
  for (int r = 0; r < 16; r++) memcpy(tiles[tile][r], static_cast<const char*>(from) + r * row_bytes, 64);
}
static inline void tile_store(int tile, void* to, int64_t row_bytes) {
  for (int r = 0; r < 16; r++) memcpy(static_cast<char*>(to) + r * row_bytes, tiles[tile][r], 64);
}
static inline void tile_zero(int tile) { memset(tiles[tile], 0, sizeof tiles[tile]); }
// The products of each row are added up by themselves, those of odd depths apart from those of even ones.
static inline void tile_multiply(int result, int left, int right) {
  for (int r = 0; r < 16; r++) {
    float sums[2][16] = {};
    for (int k = 0; k < 16; k++) {
      uint32_t pair, row[16];
      memcpy(&pair, &tiles[left][r][k], 4);
      memcpy(row, tiles[right][k], 64);
      const float even = widened(pair & 0xffff), odd = widened(pair >> 16);
      for (int i = 0; i < 16; i++) {
        sums[0][i] = __builtin_fmaf(even, widened(row[i] & 0xffff), sums[0][i]);
        sums[1][i] = __builtin_fmaf(odd, widened(row[i] >> 16), sums[1][i]);
      }
    }
    for (int i = 0; i < 16; i++) tiles[result][r][i] += sums[0][i] + sums[1][i];
  }
}
#pragma GCC pop_options
}  // namespace emulated

#define _mm512_add_epi32 emulated::add_epi32
#define _mm512_add_ps emulated::add_ps
#define _mm512_and_si512 emulated::and_si512
#define _mm512_castps_si512 emulated::castps_si512
#define _mm512_castsi512_ps emulated::castsi512_ps
#define _mm512_cmp_ps_mask emulated::cmp_ps_mask
#define _mm512_cmpge_epi32_mask emulated::cmpge_epi32_mask
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtne2ps_pbh emulated::cvtne2ps_pbh
#define _mm512_cvtneps_pbh emulated::cvtneps_pbh
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_fnmadd_ps emulated::fnmadd_ps
#define _mm512_loadu_ps emulated::loadu_ps
#define _mm512_loadu_si512 emulated::loadu_si512
#define _mm512_mask_add_epi32 emulated::mask_add_epi32
#define _mm512_mask_i32gather_ps emulated::mask_i32gather_ps
#define _mm512_mask_mov_ps emulated::mask_mov_ps
#define _mm512_mask_permutexvar_ps emulated::mask_permutexvar_ps
#define _mm512_mask_set1_epi32 emulated::mask_set1_epi32
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_maskz_loadu_epi16 emulated::maskz_loadu_epi16
#define _mm512_maskz_loadu_epi32 emulated::maskz_loadu_epi32
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_maskz_permutex2var_ps emulated::maskz_permutex2var_ps
#define _mm512_maskz_permutexvar_ps emulated::maskz_permutexvar_ps
#define _mm512_max_ps emulated::max_ps
#define _mm512_min_ps emulated::min_ps
#define _mm512_mul_ps emulated::mul_ps
#define _mm512_or_si512 emulated::or_si512
#define _mm512_rcp14_ps emulated::rcp14_ps
#define _mm512_reduce_add_ps emulated::reduce_add_ps
#define _mm512_reduce_max_ps emulated::reduce_max_ps
#define _mm512_roundscale_ps emulated::roundscale_ps
#define _mm512_scalef_ps emulated::scalef_ps
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_setzero_si512 emulated::setzero_si512
#define _mm512_shuffle_i32x4 emulated::shuffle_i32x4
#define _mm512_slli_epi32 emulated::slli_epi32
#define _mm512_srli_epi32 emulated::srli_epi32
#define _mm512_storeu_ps emulated::storeu_ps
#define _mm512_storeu_si512 emulated::storeu_si512
#define _mm512_sub_ps emulated::sub_ps
#define _mm512_ternarylogic_epi32 emulated::ternarylogic_epi32
#define _mm512_unpackhi_epi32 emulated::unpackhi_epi32
#define _mm512_unpackhi_epi64 emulated::unpackhi_epi64
#define _mm512_unpacklo_epi32 emulated::unpacklo_epi32
#define _mm512_unpacklo_epi64 emulated::unpacklo_epi64
#define _mm256_maskz_loadu_epi16 emulated::maskz_loadu_epi16_256
#define _mm256_mask_storeu_epi16 emulated::mask_storeu_epi16_256
