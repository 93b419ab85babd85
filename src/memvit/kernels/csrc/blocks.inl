// Matrix products on AMX's tiles, 32 x 32 results at a time: bfloat16 numbers are multiplied and added up in float32.
//
// A float32 number is a sum of three bfloat16 numbers, exactly: 24 bits in three times eight. Of the nine products of two
// such sums the six largest are kept; what is left out is less than float32 rounds off. That is six products for one, on
// units that are twenty times as fast as those for float32. Two numbers and three products give 16 bits; one number is
// bfloat16. Included inside a namespace, after vectors.inl.

#include "tiles.inl"

constexpr int64_t BLOCK = 32;               // rows, columns and depth of what is multiplied at a time
constexpr int64_t BLOCK_SIZE = BLOCK * BLOCK;
constexpr int64_t TILE_SIZE = BLOCK_SIZE / 2;  // bfloat16 numbers in a tile register

static inline int64_t blocks_of(int64_t n) { return (n + BLOCK - 1) / BLOCK; }

static inline Vec load_masked(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
static inline Vec load_masked(const bf16* p, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}
static inline __mmask16 first_lanes(int64_t n) { return n >= W ? 0xffff : n > 0 ? (1u << n) - 1 : 0; }
template <typename T>
static inline Vec load_first(const T* p, int64_t n) { return load_masked(p, first_lanes(n)); }
// Up to 32 numbers of two bytes, zeros where there are no more.
static inline Ints load_bits(const void* p, int64_t n) {
  return _mm512_maskz_loadu_epi16(n >= BLOCK ? 0xffffffffu : (1u << n) - 1, p);
}
static inline void store_first(float* p, Vec v, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), v);
}
static inline void store_first(bf16* p, Vec v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), (__m256i)_mm512_cvtneps_pbh(v));
}

// One row of a block, 32 floats, as PARTS rows of bfloat16 numbers that add up to it. Depths lie as weights have them: where
// there are several parts, k and k + 16 are a pair, so that two instructions make sixteen of them. Parts of left operands are
// cut off: three take eight bits each, all there are. Those of right operands are rounded, so that what products leave out has
// no bias. Infinity becomes what is not a number, which its rest is.
template <int PARTS, bool IsRounded = false>
static inline void split(Vec low, Vec high, bf16* out, int64_t out_stride = BLOCK_SIZE) {
  if constexpr (PARTS == 1) {
    store_ints(out, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    return;
  }
  const Ints upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int part = 0; part < PARTS; part++) {
    Ints a = as_ints(low), b = as_ints(high);
    if (IsRounded || (PARTS == 2 && part == 1)) {  // the last of two is rounded
      // What is not a number is cut off: all its bits may be ones, and the sum would be zero.
      a = _mm512_mask_add_epi32(a, _mm512_cmp_ps_mask(low, low, _CMP_ORD_Q), a, _mm512_set1_epi32(0x8000));
      b = _mm512_mask_add_epi32(b, _mm512_cmp_ps_mask(high, high, _CMP_ORD_Q), b, _mm512_set1_epi32(0x8000));
    }
    constexpr int A_OR_B_AND_C = 0xf8;
    store_ints(out + part * out_stride, _mm512_ternarylogic_epi32(_mm512_srli_epi32(a, 16), b, upper, A_OR_B_AND_C));
    if (part + 1 < PARTS) {
      low = sub(low, _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
      high = sub(high, _mm512_castsi512_ps(_mm512_and_si512(b, upper)));
    }
  }
}

// Rows as left operands: block after block of rows, in each block after block of the depth, in each the parts.
template <int PARTS, typename T>
static void pack_rows(const T* x, int64_t stride, int64_t rows, int64_t depth, bf16* out) {
  for (int64_t r = 0; r < round_up(rows, BLOCK); r++) {
    bf16* line = out + r / BLOCK * blocks_of(depth) * PARTS * BLOCK_SIZE + r % BLOCK * BLOCK;
    const T* row = x + r * stride;
    for (int64_t k = 0; k < depth; k += BLOCK, line += PARTS * BLOCK_SIZE) {
      const int64_t left = r < rows ? depth - k : 0;
      if (left >= BLOCK) split<PARTS>(load(row + k), load(row + k + W), line);
      else if (left > 0) split<PARTS>(load_first(row + k, left), load_first(row + k + W, left - W), line);
      else split<PARTS>(set1(0), set1(0), line);
    }
  }
}

#define MEMVIT_LOAD_LEFT(part)                                       \
  MEMVIT_TILE_LOAD(4, a + (part) * BLOCK_SIZE, 2 * BLOCK);           \
  MEMVIT_TILE_LOAD(5, a + (part) * BLOCK_SIZE + TILE_SIZE, 2 * BLOCK)
#define MEMVIT_LOAD_RIGHT(part)                                      \
  MEMVIT_TILE_LOAD(6, b + (part) * BLOCK_SIZE, 2 * BLOCK);           \
  MEMVIT_TILE_LOAD(7, b + (part) * BLOCK_SIZE + TILE_SIZE, 2 * BLOCK)
#define MEMVIT_MULTIPLY_PARTS    \
  MEMVIT_TILE_MULTIPLY(0, 4, 6); \
  MEMVIT_TILE_MULTIPLY(1, 4, 7); \
  MEMVIT_TILE_MULTIPLY(2, 5, 6); \
  MEMVIT_TILE_MULTIPLY(3, 5, 7)

// 32 x 32 results in the tile registers 0 to 3: zeros, what c has, and back to c.
static inline void start_block() {
  MEMVIT_TILE_ZERO(0);
  MEMVIT_TILE_ZERO(1);
  MEMVIT_TILE_ZERO(2);
  MEMVIT_TILE_ZERO(3);
}
static inline void start_block(const float* c) {
  MEMVIT_TILE_LOAD(0, c, 4 * BLOCK);
  MEMVIT_TILE_LOAD(1, c + W, 4 * BLOCK);
  MEMVIT_TILE_LOAD(2, c + W * BLOCK, 4 * BLOCK);
  MEMVIT_TILE_LOAD(3, c + W * BLOCK + W, 4 * BLOCK);
}
static inline void store_block(float* c) {
  MEMVIT_TILE_STORE(0, c, 4 * BLOCK);
  MEMVIT_TILE_STORE(1, c + W, 4 * BLOCK);
  MEMVIT_TILE_STORE(2, c + W * BLOCK, 4 * BLOCK);
  MEMVIT_TILE_STORE(3, c + W * BLOCK + W, 4 * BLOCK);
}

constexpr int64_t products_of(int parts) { return parts == 1 ? 1 : parts == 2 ? 3 : 6; }

// Adds a block of rows times a panel of columns to the results. What else is to be done is done row by row between these
// products, on units that they leave idle; and `lines` cache lines for every block of the depth are fetched from `next`.
template <int PARTS, typename Work>
static inline void add_products(
    const bf16* a, const bf16* b, int64_t depth_blocks, Work& work, const bf16* next = nullptr, int64_t lines = 0) {
  for (int64_t k = 0; k < depth_blocks; k++, a += PARTS * BLOCK_SIZE, b += PARTS * BLOCK_SIZE) {
    for (int64_t i = 0; i < lines; i++, next += BLOCK) _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
    // In an order in which one operand at a time is exchanged.
    if constexpr (PARTS == 1) {
      MEMVIT_LOAD_LEFT(0);
      MEMVIT_LOAD_RIGHT(0);
      MEMVIT_MULTIPLY_PARTS;
      work.some();
    } else {
      MEMVIT_LOAD_LEFT(1);
      MEMVIT_LOAD_RIGHT(0);
      MEMVIT_MULTIPLY_PARTS;
      work.some();
      if constexpr (PARTS == 3) {
        MEMVIT_LOAD_LEFT(2);
        MEMVIT_MULTIPLY_PARTS;
        work.some();
      }
      MEMVIT_LOAD_LEFT(0);
      MEMVIT_MULTIPLY_PARTS;
      work.some();
      if constexpr (PARTS == 3) {
        MEMVIT_LOAD_RIGHT(2);
        MEMVIT_MULTIPLY_PARTS;
        work.some();
      }
      MEMVIT_LOAD_RIGHT(1);
      MEMVIT_MULTIPLY_PARTS;
      work.some();
      if constexpr (PARTS == 3) {
        MEMVIT_LOAD_LEFT(1);
        MEMVIT_MULTIPLY_PARTS;
        work.some();
      }
    }
  }
}

// The same where the right operand is one number, exactly: every part of the left one with it.
template <int PARTS, typename Work>
static inline void add_exact_products(const bf16* a, const bf16* b, int64_t depth_blocks, Work& work) {
  for (int64_t k = 0; k < depth_blocks; k++, a += PARTS * BLOCK_SIZE, b += BLOCK_SIZE) {
    MEMVIT_LOAD_RIGHT(0);
    MEMVIT_LOAD_LEFT(0);
    MEMVIT_MULTIPLY_PARTS;
    work.some();
    if constexpr (PARTS > 1) {
      MEMVIT_LOAD_LEFT(1);
      MEMVIT_MULTIPLY_PARTS;
      work.some();
    }
    if constexpr (PARTS > 2) {
      MEMVIT_LOAD_LEFT(2);
      MEMVIT_MULTIPLY_PARTS;
      work.some();
    }
  }
}

// 16 rows times 16 columns as four sums, two where there is one part, which are still to be added up: one sum would wait for
// itself.
// a: (blocks of the depth, PARTS, 16 rows, 32); b: (blocks of the depth, B_PARTS, 16 pairs, 16 columns, 2).
template <int PARTS, int B_PARTS>
static inline void row_products(const bf16* a, const bf16* b, int64_t depth_blocks, float* sums) {
#define MEMVIT_ADD_ROWS(first, second, third, fourth)            \
  MEMVIT_TILE_LOAD(4, a, 2 * BLOCK);                             \
  MEMVIT_TILE_LOAD(7, b, 2 * BLOCK);                             \
  MEMVIT_TILE_MULTIPLY(first, 4, 7);                             \
  if constexpr (PARTS > 1) {                                     \
    MEMVIT_TILE_LOAD(5, a + TILE_SIZE, 2 * BLOCK);               \
    MEMVIT_TILE_MULTIPLY(second, 5, 7);                          \
  }                                                              \
  if constexpr (PARTS > 2) {                                     \
    MEMVIT_TILE_LOAD(6, a + 2 * TILE_SIZE, 2 * BLOCK);           \
    MEMVIT_TILE_MULTIPLY(third, 6, 7);                           \
  }                                                              \
  if constexpr (PARTS > 1) {                                     \
    MEMVIT_TILE_LOAD(7, b + TILE_SIZE, 2 * BLOCK);               \
    MEMVIT_TILE_MULTIPLY(fourth, 4, 7);                          \
  }                                                              \
  if constexpr (PARTS > 2) {                                     \
    MEMVIT_TILE_MULTIPLY(first, 5, 7);                           \
    MEMVIT_TILE_LOAD(7, b + 2 * TILE_SIZE, 2 * BLOCK);           \
    MEMVIT_TILE_MULTIPLY(second, 4, 7);                          \
  }
  start_block();
  for (int64_t k = 0; k < depth_blocks; k++, a += PARTS * TILE_SIZE, b += B_PARTS * TILE_SIZE) {
    if (k % 2 == 0) {
      MEMVIT_ADD_ROWS(0, 1, 2, 3)
    } else {
      MEMVIT_ADD_ROWS(2, 3, 0, 1)
    }
  }
#undef MEMVIT_ADD_ROWS
  MEMVIT_TILE_STORE(0, sums, 4 * W);
  MEMVIT_TILE_STORE(2, sums + W * W, 4 * W);
  if constexpr (PARTS > 1) {
    MEMVIT_TILE_STORE(1, sums + 2 * W * W, 4 * W);
    MEMVIT_TILE_STORE(3, sums + 3 * W * W, 4 * W);
  }
}

// Nothing to be done meanwhile.
struct NoWork {
  void some() {}
};
