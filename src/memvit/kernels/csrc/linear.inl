// Linear layers on AMX's tiles, which multiply bfloat16 numbers and add up in float32.
//
// A float32 number is a sum of three bfloat16 numbers, exactly: 24 bits in three times eight. Of the nine products of two
// such sums the six largest are kept; what is left out is below 2^-26 of the product, less than float32 rounds off. That is
// six products for one, on units that are twenty times as fast as those for float32. Two numbers and three products give 16
// bits, one number is bfloat16. Included inside a namespace, after vectors.inl.

constexpr int64_t BLOCK = 32;               // rows, columns and depth of what is multiplied at a time
constexpr int64_t BLOCK_SIZE = BLOCK * BLOCK;
constexpr int64_t TILE_SIZE = BLOCK_SIZE / 2;  // bfloat16 numbers in a tile register
constexpr int64_t CACHE = 1280 << 10;       // bytes that what is read over and over may take of the second cache (2 MiB)

static inline int64_t blocks_of(int64_t n) { return (n + BLOCK - 1) / BLOCK; }

static inline Vec load_first(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(n >= W ? 0xffff : n > 0 ? (1u << n) - 1 : 0, p);
}
static inline Vec load_first(const bf16* p, int64_t n) {
  const __m256i bits = _mm256_maskz_loadu_epi16(n >= W ? 0xffff : n > 0 ? (1u << n) - 1 : 0, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline void store_first(float* p, Vec v, int64_t n) {
  _mm512_mask_storeu_ps(p, n >= W ? 0xffff : n > 0 ? (1u << n) - 1 : 0, v);
}
static inline void store_first(bf16* p, Vec v, int64_t n) {
  _mm256_mask_storeu_epi16(p, n >= W ? 0xffff : n > 0 ? (1u << n) - 1 : 0, (__m256i)_mm512_cvtneps_pbh(v));
}

// One row of a block, 32 floats, as PARTS rows of bfloat16 numbers that add up to it. Depths lie as weights have them: where
// there are several parts, k and k + 16 are a pair, so that two instructions make sixteen of them. Parts are cut off, not
// rounded: three take eight bits each, all there are; weights are rounded, so that what products leave out has no bias.
// Infinity becomes what is not a number, which its rest is.
template <int PARTS>
static inline void split(Vec low, Vec high, bf16* out) {
  if constexpr (PARTS == 1) {
    _mm512_store_si512(out, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    return;
  }
  const Ints upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int part = 0; part < PARTS; part++) {
    Ints a = as_ints(low), b = as_ints(high);
    if (PARTS == 2 && part == 1) {  // the last of two is rounded
      a = _mm512_add_epi32(a, _mm512_set1_epi32(0x8000));
      b = _mm512_add_epi32(b, _mm512_set1_epi32(0x8000));
    }
    constexpr int A_OR_B_AND_C = 0xf8;
    _mm512_store_si512(out + part * BLOCK_SIZE, _mm512_ternarylogic_epi32(_mm512_srli_epi32(a, 16), b, upper, A_OR_B_AND_C));
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

// c (32 x 32) = or += a block of rows times a panel of columns. Meanwhile the block before is finished, and `lines` cache lines
// for every block of the depth are fetched from `next`.
template <int PARTS, typename Before>
static inline void multiply_blocks(
    float* c, bool from_zero, const bf16* a, const bf16* b, int64_t depth_blocks, const bf16* next, int64_t lines,
    Before& before) {
  constexpr int64_t ROW = 4 * BLOCK;
  if (from_zero) {
    MEMVIT_TILE_ZERO(0);
    MEMVIT_TILE_ZERO(1);
    MEMVIT_TILE_ZERO(2);
    MEMVIT_TILE_ZERO(3);
  } else {
    MEMVIT_TILE_LOAD(0, c, ROW);
    MEMVIT_TILE_LOAD(1, c + W, ROW);
    MEMVIT_TILE_LOAD(2, c + W * BLOCK, ROW);
    MEMVIT_TILE_LOAD(3, c + W * BLOCK + W, ROW);
  }
  for (int64_t k = 0; k < depth_blocks; k++, a += PARTS * BLOCK_SIZE, b += PARTS * BLOCK_SIZE) {
    for (int64_t i = 0; i < lines; i++, next += BLOCK) _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
    // In an order in which one operand at a time is exchanged.
    if constexpr (PARTS == 1) {
      MEMVIT_LOAD_LEFT(0);
      MEMVIT_LOAD_RIGHT(0);
      MEMVIT_MULTIPLY_PARTS;
    } else {
      MEMVIT_LOAD_LEFT(1);
      MEMVIT_LOAD_RIGHT(0);
      MEMVIT_MULTIPLY_PARTS;
      if constexpr (PARTS == 3) {
        MEMVIT_LOAD_LEFT(2);
        MEMVIT_MULTIPLY_PARTS;
      }
      MEMVIT_LOAD_LEFT(0);
      MEMVIT_MULTIPLY_PARTS;
      if constexpr (PARTS == 3) {
        MEMVIT_LOAD_RIGHT(2);
        MEMVIT_MULTIPLY_PARTS;
      }
      MEMVIT_LOAD_RIGHT(1);
      MEMVIT_MULTIPLY_PARTS;
      if constexpr (PARTS == 3) {
        MEMVIT_LOAD_LEFT(1);
        MEMVIT_MULTIPLY_PARTS;
      }
    }
    before.finish_rows(before.rows_at_once);
  }
  before.finish_rows(BLOCK);
  MEMVIT_TILE_STORE(0, c, ROW);
  MEMVIT_TILE_STORE(1, c + W, ROW);
  MEMVIT_TILE_STORE(2, c + W * BLOCK, ROW);
  MEMVIT_TILE_STORE(3, c + W * BLOCK + W, ROW);
}

// x times the normal distribution's share below x, which is 1/2 plus an odd function of x: x times a quotient of polynomials
// in x^2, fitted for the smallest error of the result. That is 3e-8, less than rounding adds, or 2e-6 for bfloat16.
template <bool IsExact>
static inline Vec gelu(Vec x) {
  const Vec far = set1(IsExact ? 5.6f : 4.5f);  // nothing changes farther out
  const Vec above = max(sub(set1(0), far), x);  // in this order what is not a number stays so
  const Vec near = _mm512_min_ps(far, above);
  const Vec s = mul(near, near);
  Vec p, q;
  if constexpr (IsExact) {
    p = fma(set1(2.1710421e-8f), s, set1(6.5902803e-6f));
    q = fma(set1(1.18512563e-6f), s, set1(8.10052341e-5f));
    p = fma(p, s, set1(1.90140996e-4f));
    q = fma(q, s, set1(2.00327875e-3f));
    p = fma(p, s, set1(4.80533773e-3f));
    q = fma(q, s, set1(2.98032448e-2f));
    p = fma(p, s, set1(3.58459788e-2f));
    q = fma(q, s, set1(2.56515294e-1f));
    p = fma(p, s, set1(3.98941902e-1f));
  } else {
    p = fma(set1(3.3336853e-5f), s, set1(3.83221949e-3f));
    q = fma(set1(1.16681228e-3f), s, set1(2.38065817e-2f));
    p = fma(p, s, set1(2.73836078e-2f));
    q = fma(q, s, set1(2.35285115e-1f));
    p = fma(p, s, set1(3.98932892e-1f));
  }
  q = fma(q, s, set1(1.f));
  Vec inverse = _mm512_rcp14_ps(q);
  if constexpr (IsExact) inverse = mul(inverse, _mm512_fnmadd_ps(inverse, q, set1(2.f)));
  return mul(above, fma(mul(near, p), inverse, set1(0.5f)));
}

// A block of results that waits for what follows the products: bias, GELU, and its place. It is done row by row between the
// products of the next block, on units that these leave idle.
struct Nothing {
  static constexpr int64_t rows_at_once = 0;
  void finish_rows(int64_t) {}
};

template <typename O>
struct Results {
  float* buffers;  // two blocks: one is being made while the other waits
  int64_t rows_at_once;
  int64_t row = 0, end = 0;
  const float* c = nullptr;
  O* out = nullptr;
  int64_t stride = 0, left = 0;
  Vec low_bias, high_bias;

  float* free_block() const { return c == buffers ? buffers + BLOCK_SIZE : buffers; }
  void finish_rows(int64_t count) {
    for (const int64_t until = smaller(end, row + count); row < until; row++) {
      store_first(out + row * stride, add(load(c + row * BLOCK), low_bias), left);
      store_first(out + row * stride + W, add(load(c + row * BLOCK + W), high_bias), left - W);
    }
  }
};

template <int PARTS>
struct Hidden {
  float* buffers;
  int64_t rows_at_once;
  int64_t row = 0, end = 0;
  const float* c = nullptr;
  bf16* out = nullptr;
  Vec low_bias, high_bias;

  float* free_block() const { return c == buffers ? buffers + BLOCK_SIZE : buffers; }
  void finish_rows(int64_t count) {
    for (const int64_t until = smaller(end, row + count); row < until; row++) {
      const Vec low = gelu<(PARTS > 1)>(add(load(c + row * BLOCK), low_bias));
      const Vec high = gelu<(PARTS > 1)>(add(load(c + row * BLOCK + W), high_bias));
      split<PARTS>(low, high, out + row * BLOCK);
    }
  }
};

// One part of the work: `rows` rows and the panels from `first` to `end`.
template <int PARTS, typename T, typename O>
static void run_linear_part(
    const memvit_linear_call& call, int64_t first_row, int64_t rows, int64_t first, int64_t end, Scratch& scratch) {
  const int64_t depth_blocks = blocks_of(call.in_features), num_blocks = blocks_of(rows);
  const int64_t row_size = depth_blocks * PARTS * BLOCK_SIZE;  // of a block of rows, and of a panel
  Parts parts{scratch.reserve(num_blocks * row_size * sizeof(bf16) + 2 * BLOCK_SIZE * sizeof(float) + 64)};
  bf16* a = parts.take<bf16>(num_blocks * row_size);
  float* c = parts.take<float>(2 * BLOCK_SIZE);
  pack_rows<PARTS>(static_cast<const T*>(call.x) + first_row * call.x_stride, call.x_stride, rows, call.in_features, a);
  const bf16* weight = static_cast<const bf16*>(call.weight);
  const int64_t lines = (PARTS * BLOCK + num_blocks - 1) / num_blocks;
  Results<O> results{c, (BLOCK + depth_blocks - 1) / depth_blocks};
  results.stride = call.out_stride;
  for (int64_t panel = first; panel < end; panel++) {
    const int64_t column = panel * BLOCK, left = call.out_features - column;
    const bf16* b = weight + panel * row_size;
    const bf16* next = b + (panel + 1 < end ? row_size : 0);
    for (int64_t block = 0; block < num_blocks; block++) {
      float* made = results.free_block();
      multiply_blocks<PARTS>(made, true, a + block * row_size, b, depth_blocks,
                             next + block * lines * depth_blocks * BLOCK, lines, results);
      results.c = made;
      results.row = 0;
      results.end = smaller(BLOCK, rows - block * BLOCK);
      results.out = static_cast<O*>(call.out) + (first_row + block * BLOCK) * call.out_stride + column;
      results.left = left;
      results.low_bias = call.bias ? load_first(call.bias + column, left) : set1(0);
      results.high_bias = call.bias ? load_first(call.bias + column + W, left - W) : set1(0);
    }
  }
  results.finish_rows(BLOCK);
}

// The rows of an MLP from `first_row` on. Hidden activations are made some panels at a time, as left operands of the second
// layer, which adds them to its results; they never leave the cache.
template <int PARTS, typename T, typename O>
static void run_mlp_part(
    const memvit_mlp_call& call, int64_t first_row, int64_t rows, int64_t hidden_at_once, Scratch& scratch) {
  const int64_t in_blocks = blocks_of(call.in_features), hidden_blocks = blocks_of(call.hidden_features);
  const int64_t num_panels = blocks_of(call.out_features), num_blocks = blocks_of(rows);
  const int64_t x_size = in_blocks * PARTS * BLOCK_SIZE, hidden_size = hidden_at_once * PARTS * BLOCK_SIZE;
  const int64_t panel_size = hidden_blocks * PARTS * BLOCK_SIZE;
  Parts parts{scratch.reserve(
      num_blocks * ((x_size + hidden_size) * sizeof(bf16) + num_panels * BLOCK_SIZE * sizeof(float)) +
      2 * BLOCK_SIZE * sizeof(float) + 256)};
  bf16* x = parts.take<bf16>(num_blocks * x_size);
  bf16* hidden = parts.take<bf16>(num_blocks * hidden_size);
  float* results = parts.take<float>(num_blocks * num_panels * BLOCK_SIZE);
  float* c = parts.take<float>(2 * BLOCK_SIZE);
  pack_rows<PARTS>(static_cast<const T*>(call.x) + first_row * call.x_stride, call.x_stride, rows, call.in_features, x);
  const bf16* weight1 = static_cast<const bf16*>(call.weight1);
  const bf16* weight2 = static_cast<const bf16*>(call.weight2);
  const int64_t lines = (PARTS * BLOCK + num_blocks - 1) / num_blocks;
  Hidden<PARTS> finisher{c, (BLOCK + in_blocks - 1) / in_blocks};
  Nothing nothing;
  for (int64_t start = 0; start < hidden_blocks; start += hidden_at_once) {
    const int64_t count = smaller(hidden_at_once, hidden_blocks - start);
    const bf16* second = weight2 + start * PARTS * BLOCK_SIZE;
    for (int64_t i = 0; i < count; i++) {
      const int64_t column = (start + i) * BLOCK, left = call.hidden_features - column;
      const bf16* b = weight1 + (start + i) * x_size;
      const bf16* next = i + 1 < count ? b + x_size : second;
      for (int64_t block = 0; block < num_blocks; block++) {
        float* made = finisher.free_block();
        multiply_blocks<PARTS>(made, true, x + block * x_size, b, in_blocks, next + block * lines * in_blocks * BLOCK, lines,
                               finisher);
        finisher.c = made;
        finisher.row = 0;
        finisher.end = BLOCK;
        finisher.out = hidden + (block * count + i) * PARTS * BLOCK_SIZE;
        finisher.low_bias = call.bias1 ? load_first(call.bias1 + column, left) : set1(0);
        finisher.high_bias = call.bias1 ? load_first(call.bias1 + column + W, left - W) : set1(0);
      }
    }
    finisher.finish_rows(BLOCK);
    for (int64_t panel = 0; panel < num_panels; panel++) {
      const bf16* b = second + panel * panel_size;
      const bf16* next = panel + 1 < num_panels           ? b + panel_size
                         : start + count < hidden_blocks ? weight1 + (start + count) * x_size
                                                         : b;
      for (int64_t block = 0; block < num_blocks; block++)
        multiply_blocks<PARTS>(results + (block * num_panels + panel) * BLOCK_SIZE, start == 0,
                               hidden + block * count * PARTS * BLOCK_SIZE, b, count, next + block * lines * count * BLOCK,
                               lines, nothing);
    }
  }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t panel = 0; panel < num_panels; panel++) {
      const int64_t column = panel * BLOCK, left = call.out_features - column;
      const float* from = results + (r / BLOCK * num_panels + panel) * BLOCK_SIZE + r % BLOCK * BLOCK;
      O* out = static_cast<O*>(call.out) + (first_row + r) * call.out_stride + column;
      const Vec low = load(from), high = load(from + W);
      store_first(out, call.bias2 ? add(low, load_first(call.bias2 + column, left)) : low, left);
      store_first(out + W, call.bias2 ? add(high, load_first(call.bias2 + column + W, left - W)) : high, left - W);
    }
}

// How rows are shared out: `count` chunks of about as many blocks, as many for every thread.
struct Chunks {
  int64_t rows, blocks, count;
  Chunks(int64_t rows, int64_t most_blocks, int64_t threads) : rows(rows), blocks(blocks_of(rows)) {
    count = round_up((blocks + most_blocks - 1) / most_blocks, larger(threads, 1));
    count = smaller(count, blocks);
  }
  int64_t begin(int64_t i) const { return i * blocks / count * BLOCK; }
  int64_t size(int64_t i) const { return smaller((i + 1) * blocks / count * BLOCK, rows) - begin(i); }
};

template <int PARTS, typename T, typename O>
static int32_t run_linear(const memvit_linear_call& call, memvit_parallel_for parallel_for) {
  struct Context {
    const memvit_linear_call& call;
    Chunks chunks;
    int64_t panels, column_parts;
  };
  const int64_t blocks = blocks_of(call.rows), panels = blocks_of(call.out_features);
  // Few rows are shared out by columns, so that threads have as much to do as one another.
  constexpr int64_t ENOUGH = 16;
  int64_t column_parts = smaller((ENOUGH * call.num_threads + blocks - 1) / larger(blocks, 1), call.num_threads);
  column_parts = larger(smaller(column_parts, panels), 1);
  const int64_t bytes = blocks_of(call.in_features) * PARTS * BLOCK_SIZE * sizeof(bf16);
  Context context{call, Chunks(call.rows, larger(CACHE / 2 / bytes, 1), (call.num_threads + column_parts - 1) / column_parts),
                  panels, column_parts};
  parallel_for(0, context.chunks.count * column_parts, 1, [](int64_t begin, int64_t end, void* data) {
    static thread_local Scratch scratch;
    const auto& c = *static_cast<const Context*>(data);
    const WholeTiles tiles;
    for (int64_t i = begin; i < end; i++) {
      const int64_t chunk = i % c.chunks.count, part = i / c.chunks.count;
      run_linear_part<PARTS, T, O>(c.call, c.chunks.begin(chunk), c.chunks.size(chunk), part * c.panels / c.column_parts,
                                   (part + 1) * c.panels / c.column_parts, scratch);
    }
  }, &context);
  return 0;
}

template <int PARTS, typename T, typename O>
static int32_t run_mlp(const memvit_mlp_call& call, memvit_parallel_for parallel_for) {
  struct Context {
    const memvit_mlp_call& call;
    Chunks chunks;
    int64_t hidden_at_once;
  };
  const int64_t hidden_at_once = smaller(blocks_of(call.hidden_features), 8);
  const int64_t bytes = (blocks_of(call.in_features) + hidden_at_once) * PARTS * BLOCK_SIZE * sizeof(bf16) +
                        blocks_of(call.out_features) * BLOCK_SIZE * sizeof(float);
  Context context{call, Chunks(call.rows, larger(CACHE / bytes, 1), call.num_threads), hidden_at_once};
  parallel_for(0, context.chunks.count, 1, [](int64_t begin, int64_t end, void* data) {
    static thread_local Scratch scratch;
    const auto& c = *static_cast<const Context*>(data);
    const WholeTiles tiles;
    for (int64_t i = begin; i < end; i++)
      run_mlp_part<PARTS, T, O>(c.call, c.chunks.begin(i), c.chunks.size(i), c.hidden_at_once, scratch);
  }, &context);
  return 0;
}

#define MEMVIT_FOR_TYPES(run)                                                                       \
  if (call->dtype == MEMVIT_FLOAT32 && call->out_dtype == MEMVIT_FLOAT32) {                         \
    if (call->parts == 3) return run<3, float, float>(*call, parallel_for);                         \
    if (call->parts == 2) return run<2, float, float>(*call, parallel_for);                         \
    return run<1, float, float>(*call, parallel_for);                                               \
  }                                                                                                 \
  if (call->out_dtype != MEMVIT_BFLOAT16) return 1;                                                 \
  if (call->dtype == MEMVIT_FLOAT32) return run<1, float, bf16>(*call, parallel_for);               \
  return run<1, bf16, bf16>(*call, parallel_for)

int32_t linear(const memvit_linear_call* call, memvit_parallel_for parallel_for) { MEMVIT_FOR_TYPES(run_linear); }
int32_t mlp(const memvit_mlp_call* call, memvit_parallel_for parallel_for) { MEMVIT_FOR_TYPES(run_mlp); }
