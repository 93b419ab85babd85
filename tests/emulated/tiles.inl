// In place of the kernels' file of this name: AMX's instructions as avx512.h does them.
struct Tiles {};
#define MEMVIT_TILE_LOAD(tile, from, row_bytes) emulated::tile_load(tile, from, row_bytes)
#define MEMVIT_TILE_STORE(tile, to, row_bytes) emulated::tile_store(tile, to, row_bytes)
#define MEMVIT_TILE_ZERO(tile) emulated::tile_zero(tile)
#define MEMVIT_TILE_MULTIPLY(result, left, right) emulated::tile_multiply(result, left, right)
