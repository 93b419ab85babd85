// Matrix products on AMX's tile registers: 16 x 16 floats, 16 x 32 bfloat16 of the left, 16 pairs x 16 columns of the right
// operand. Written as assembly, so that compilers without AMX build it too. Included by blocks.inl.

// All eight tiles in their full size.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  }
  ~Tiles() { asm volatile("tilerelease" ::: "memory"); }
};

#define MEMVIT_TILE_LOAD(tile, from, row_bytes) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(static_cast<int64_t>(row_bytes)) : "memory")
#define MEMVIT_TILE_STORE(tile, to, row_bytes) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(static_cast<int64_t>(row_bytes)) : "memory")
#define MEMVIT_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::: "memory")
#define MEMVIT_TILE_MULTIPLY(result, left, right) \
  asm volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #result ::: "memory")
