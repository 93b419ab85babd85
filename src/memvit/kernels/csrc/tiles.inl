// Matrix products on AMX's tile registers: 16 x 16 floats, 16 x 32 bfloat16 of the left, 16 pairs x 16 columns of the right
// operand. Written as assembly, so that compilers without AMX build it too. Included by vectors.inl.

// tmm0 to tmm2: results; tmm3: left; tmm4 and tmm5: right, in turns; tmm6 and tmm7: left and right of the last 16 of a depth.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 32, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 8};
    } shapes;
    static_assert(sizeof(shapes) == 64, "what the instruction reads");
    asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  }
  ~Tiles() { asm volatile("tilerelease" ::: "memory"); }
};

// Eight whole tiles: tmm0 to tmm3 results, two by two; tmm4 and tmm5: left; tmm6 and tmm7: right.
struct WholeTiles {
  WholeTiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  }
  ~WholeTiles() { asm volatile("tilerelease" ::: "memory"); }
};

#define MEMVIT_TILE_LOAD(tile, from, row_bytes) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(static_cast<int64_t>(row_bytes)) : "memory")
#define MEMVIT_TILE_STORE(tile, to, row_bytes) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(static_cast<int64_t>(row_bytes)) : "memory")
#define MEMVIT_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::: "memory")
#define MEMVIT_TILE_MULTIPLY(result, left, right) \
  asm volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #result ::: "memory")

// c (16 rows of V vectors) = or += a (16 rows) times b, whose columns are pairs; the depth is a multiple of 16.
template <int V>
static inline __attribute__((always_inline)) void multiply_tiles(
    float* c, int64_t c_stride, bool from_zero, const bf16* a, int64_t a_stride, const bf16* b, int64_t depth,
    int64_t b_stride = P) {
  const int64_t c_bytes = 4 * c_stride, a_bytes = 2 * a_stride, b_bytes = 4 * b_stride;
  if (from_zero) {
    MEMVIT_TILE_ZERO(0);
    if constexpr (V > 1) MEMVIT_TILE_ZERO(1);
    if constexpr (V > 2) MEMVIT_TILE_ZERO(2);
  } else {
    MEMVIT_TILE_LOAD(0, c, c_bytes);
    if constexpr (V > 1) MEMVIT_TILE_LOAD(1, c + W, c_bytes);
    if constexpr (V > 2) MEMVIT_TILE_LOAD(2, c + 2 * W, c_bytes);
  }
  int64_t k = 0;
  for (; k + 32 <= depth; k += 32, b += 32 * b_stride) {
    MEMVIT_TILE_LOAD(3, a + k, a_bytes);
    MEMVIT_TILE_LOAD(4, b, b_bytes);
    MEMVIT_TILE_MULTIPLY(0, 3, 4);
    if constexpr (V > 1) {
      MEMVIT_TILE_LOAD(5, b + 2 * W, b_bytes);
      MEMVIT_TILE_MULTIPLY(1, 3, 5);
    }
    if constexpr (V > 2) {
      MEMVIT_TILE_LOAD(4, b + 4 * W, b_bytes);
      MEMVIT_TILE_MULTIPLY(2, 3, 4);
    }
  }
  if (k < depth) {
    MEMVIT_TILE_LOAD(6, a + k, a_bytes);
    MEMVIT_TILE_LOAD(7, b, b_bytes);
    MEMVIT_TILE_MULTIPLY(0, 6, 7);
    if constexpr (V > 1) {
      MEMVIT_TILE_LOAD(7, b + 2 * W, b_bytes);
      MEMVIT_TILE_MULTIPLY(1, 6, 7);
    }
    if constexpr (V > 2) {
      MEMVIT_TILE_LOAD(7, b + 4 * W, b_bytes);
      MEMVIT_TILE_MULTIPLY(2, 6, 7);
    }
  }
  MEMVIT_TILE_STORE(0, c, c_bytes);
  if constexpr (V > 1) MEMVIT_TILE_STORE(1, c + W, c_bytes);
  if constexpr (V > 2) MEMVIT_TILE_STORE(2, c + 2 * W, c_bytes);
}
