// Vectors of floats of one instruction set, and the matrix kernel built on them. Included by avx2.cpp and avx512.cpp inside
// a namespace of their own, after the target pragma, so that no code for one processor leaks into another's.

using bf16 = uint16_t;

// For as long as it lives, numbers too small for float32's usual form are zero on this thread. Processors take a hundred times
// as long for them, and a softmax makes many: attention became thirty times as slow.
struct FlushToZero {
  const unsigned before = _mm_getcsr();
  FlushToZero() { _mm_setcsr(before | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before); }
};

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

#if MEMVIT_LEVEL >= 2
using Vec = __m512;
using Ints = __m512i;
constexpr int W = 16;   // floats in a vector
constexpr int MR = 8;   // rows of a tile of the matrix kernel
static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline Vec load(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
static inline void store(bf16* p, Vec v) {
#if MEMVIT_LEVEL >= 3
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
#else
  __m512i bits = _mm512_castps_si512(v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  bits = _mm512_mask_set1_epi32(_mm512_srli_epi32(bits, 16), nan, 0x7fc0);
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(bits));
#endif
}
static inline Vec set1(float x) { return _mm512_set1_ps(x); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
static inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
static inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
static inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
// 1 / x, to float32's accuracy if IsExact, else to that of bfloat16.
template <bool IsExact>
static inline Vec inverse(Vec x) {
  const Vec near = _mm512_rcp14_ps(x);
  return IsExact ? mul(near, _mm512_fnmadd_ps(near, x, set1(2.f))) : near;
}
static inline Ints load_ints(const int32_t* p, int64_t n) { return _mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p); }
static inline Ints as_ints(Vec v) { return _mm512_castps_si512(v); }
// The larger one; what is not a number stays so.
static inline Vec max_or_nan(Vec a, Vec b) {
  return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}
static inline void store_ints(void* p, Ints v) { _mm512_storeu_si512(p, v); }
static inline Ints no_ints() { return _mm512_setzero_si512(); }
// W pairs (a[i], b[i]).
static inline Ints pairs_of(const bf16* a, const bf16* b) {
  const Ints low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)a));
  return b ? _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)b)), 16)) : low;
}
// Rows become columns.
static inline void transpose(Ints (&m)[W]) {
  Ints t[W];
  for (int i = 0; i < W; i += 2) {
    t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
  }
  for (int i = 0; i < W; i += 4)
    for (int j = 0; j < 2; j++) {
      m[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      m[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  for (int i = 0; i < W; i += 8)
    for (int j = 0; j < 4; j++) {
      t[i + j] = _mm512_shuffle_i32x4(m[i + j], m[i + 4 + j], 0x88);
      t[i + 4 + j] = _mm512_shuffle_i32x4(m[i + j], m[i + 4 + j], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    m[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
    m[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
  }
}
static inline float sum_of(Vec v) { return _mm512_reduce_add_ps(v); }
static inline float max_of(Vec v) { return _mm512_reduce_max_ps(v); }
// The first n lanes of v, `other` in the rest.
static inline Vec first(int64_t n, Vec v, float other) {
  return _mm512_mask_mov_ps(set1(other), (__mmask16)((1u << n) - 1), v);
}
// Takes p[index[lane]] for every lane, 0 where the index is negative.
struct Picker {
  Ints index;
  __mmask16 some;
  explicit inline Picker(const int32_t* p)
      : index(_mm512_loadu_si512(p)), some(_mm512_cmpge_epi32_mask(index, _mm512_setzero_si512())) {}
  // All indices are below W.
  inline Vec near(const float* p) const { return _mm512_maskz_permutexvar_ps(some, index, load(p)); }
  inline Vec far(const float* p) const { return _mm512_mask_i32gather_ps(set1(0), some, index, p, 4); }
};
// 2^x, to float32's accuracy if IsExact, else to that of bfloat16.
template <bool IsExact>
static inline Vec exp2_of(Vec x) {
  x = max(set1(-126.f), x);  // in this order what is not a number stays so
  Vec n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec r = sub(x, n);
  Vec p = set1(5.5504109e-2f);
  if constexpr (IsExact) {
    p = fma(set1(1.5403530e-4f), r, set1(1.3333558e-3f));
    p = fma(p, r, set1(9.6181291e-3f));
    p = fma(p, r, set1(5.5504109e-2f));
  }
  p = fma(p, r, set1(2.4022651e-1f));
  p = fma(p, r, set1(6.9314718e-1f));
  return _mm512_scalef_ps(fma(p, r, set1(1.f)), n);
}
#else
using Vec = __m256;
using Ints = __m256i;
constexpr int W = 8;
constexpr int MR = 4;
static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline Vec load(const bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
static inline void store(bf16* p, Vec v) {
  const __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i halves = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
}
static inline Vec set1(float x) { return _mm256_set1_ps(x); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
static inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
static inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
static inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
static inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
template <bool IsExact>
static inline Vec inverse(Vec x) {  // the instruction alone is too far off for bfloat16 too
  const Vec near = _mm256_rcp_ps(x);
  return mul(near, _mm256_fnmadd_ps(near, x, set1(2.f)));
}
static inline Ints load_ints(const int32_t* p, int64_t n) {
  return _mm256_maskload_epi32(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
}
static inline Ints as_ints(Vec v) { return _mm256_castps_si256(v); }
static inline Vec max_or_nan(Vec a, Vec b) { return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
static inline void store_ints(void* p, Ints v) { _mm256_storeu_si256((__m256i*)p, v); }
static inline Ints no_ints() { return _mm256_setzero_si256(); }
static inline void transpose(Ints (&m)[W]) {
  Ints t[W];
  for (int i = 0; i < W; i += 2) {
    t[i] = _mm256_unpacklo_epi32(m[i], m[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(m[i], m[i + 1]);
  }
  for (int i = 0; i < W; i += 4)
    for (int j = 0; j < 2; j++) {
      m[i + 2 * j] = _mm256_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      m[i + 2 * j + 1] = _mm256_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  for (int j = 0; j < 4; j++) {
    t[j] = _mm256_permute2x128_si256(m[j], m[4 + j], 0x20);
    t[4 + j] = _mm256_permute2x128_si256(m[j], m[4 + j], 0x31);
  }
  for (int j = 0; j < W; j++) m[j] = t[j];
}
static inline float sum_of(Vec v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float max_of(Vec v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
static inline Vec first(int64_t n, Vec v, float other) {
  __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i in = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lanes);
  return _mm256_blendv_ps(set1(other), v, _mm256_castsi256_ps(in));
}
struct Picker {
  __m256i index;
  __m256 some;
  explicit inline Picker(const int32_t* p)
      : index(_mm256_loadu_si256((const __m256i*)p)),
        some(_mm256_castsi256_ps(_mm256_cmpgt_epi32(index, _mm256_set1_epi32(-1)))) {}
  inline Vec near(const float* p) const { return _mm256_and_ps(some, _mm256_permutevar8x32_ps(load(p), index)); }
  inline Vec far(const float* p) const { return _mm256_mask_i32gather_ps(set1(0), p, index, some, 4); }
};
template <bool IsExact>
static inline Vec exp2_of(Vec x) {
  x = max(set1(-126.f), x);  // in this order what is not a number stays so
  Vec n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  Vec r = sub(x, n);
  Vec p = set1(5.5504109e-2f);
  if constexpr (IsExact) {
    p = fma(set1(1.5403530e-4f), r, set1(1.3333558e-3f));
    p = fma(p, r, set1(9.6181291e-3f));
    p = fma(p, r, set1(5.5504109e-2f));
  }
  p = fma(p, r, set1(2.4022651e-1f));
  p = fma(p, r, set1(6.9314718e-1f));
  p = fma(p, r, set1(1.f));
  __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}
#endif

constexpr int NR = 3;       // vectors of a tile's row
constexpr int P = NR * W;   // columns of a packed panel

// acc[R][V] = sum over k of a[r][k] * b[k][v]; rows of b are `b_stride` columns apart, P where they are a packed panel's.
template <int R, int V>
static inline __attribute__((always_inline)) void multiply(
    Vec (&acc)[R][V], const float* __restrict a, int64_t a_stride, const float* __restrict b, int64_t depth,
    int64_t b_stride = P) {
  for (int64_t k = 0; k < depth; k++, b += b_stride) {
    Vec row[V];
    for (int v = 0; v < V; v++) row[v] = load(b + v * W);
    for (int r = 0; r < R; r++) {
      Vec x = set1(a[r * a_stride + k]);
      for (int v = 0; v < V; v++) acc[r][v] = fma(x, row[v], acc[r][v]);
    }
  }
}

#if MEMVIT_LEVEL == 3
// The same with bfloat16 operands, two of the depth at a time: columns of b are pairs.
template <int R, int V>
static inline __attribute__((always_inline)) void multiply(
    Vec (&acc)[R][V], const bf16* __restrict a, int64_t a_stride, const bf16* __restrict b, int64_t depth,
    int64_t b_stride = P) {
  for (int64_t k = 0; k < depth; k += 2, b += 2 * b_stride) {
    __m512bh row[V];
    for (int v = 0; v < V; v++) row[v] = (__m512bh)_mm512_loadu_si512(b + v * 2 * W);
    for (int r = 0; r < R; r++) {
      int32_t pair;
      __builtin_memcpy(&pair, a + r * a_stride + k, 4);
      __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      for (int v = 0; v < V; v++) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], x, row[v]);
    }
  }
}
#endif

// The same for a product that is the first: what was in acc does not count.
template <int R, int V, typename O>
static inline __attribute__((always_inline)) void product(
    Vec (&acc)[R][V], const O* a, int64_t a_stride, const O* b, int64_t depth, int64_t b_stride = P) {
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = set1(0);
  multiply<R, V>(acc, a, a_stride, b, depth, b_stride);
}

// Memory that a thread keeps from call to call.
struct Scratch {
  char* data = nullptr;
  size_t size = 0;
  ~Scratch() { free(data); }
  char* reserve(size_t bytes) {
    if (bytes > size) {
      free(data);
      size = bytes + bytes / 4;
      data = static_cast<char*>(aligned_alloc(64, round_up(size, 64)));
    }
    return data;
  }
};

// Hands out parts of a piece of memory.
struct Parts {
  char* at;
  template <typename T>
  T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(at);
    at += round_up(count * sizeof(T), 64);
    return part;
  }
};
