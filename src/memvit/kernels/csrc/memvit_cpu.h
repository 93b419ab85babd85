// The C interface of the CPU kernels. Plain C types only: the library knows nothing of PyTorch, is built without it and
// works with every version; Python passes pointers, and PyTorch's own thread pool comes in as a function.
#pragma once

#include <cstdint>

// Assemblers older than GCC 11 or Clang 12 do not know AMX; what is built with them does without.
#if __has_include(<amxtileintrin.h>) || __has_include(<amxintrin.h>)
#define MEMVIT_HAS_AMX 1
#else
#define MEMVIT_HAS_AMX 0
#endif

extern "C" {

// PyTorch's parallel loop: calls body(begin, end, context) for parts of a range, on PyTorch's threads.
typedef void (*memvit_range)(int64_t begin, int64_t end, void* context);
typedef int32_t (*memvit_parallel_for)(int64_t begin, int64_t end, int64_t grain, memvit_range body, void* context);

enum memvit_dtype { MEMVIT_FLOAT32 = 0, MEMVIT_BFLOAT16 = 1 };

// Tokens of B streams and their heads, (B, heads, N, head_dim): the last axis is contiguous, strides are in elements.
struct memvit_tokens {
  void* data;
  int64_t batch_stride, token_stride, head_stride;
};

// logits[i, j] += q[i] . table[row[i], :, entry[j]] for every query i and key j with row[i] >= 0 and entry[j] >= 0.
struct memvit_term {
  // Multiplied by log2(e), entries padded to a multiple of 16: float32 (rows, head_dim, entries), or, where operands are
  // bfloat16 (dtype bfloat16 at level 3), bfloat16 (rows, head_dim / 2, entries, 2). On tiles: bfloat16 (rows, entries / 16,
  // blocks of 32 of head_dim, parts, 16 pairs, 16 entries, 2), three parts for float32 and one for bfloat16.
  const void* table;
  const int32_t* row;    // (num_queries,)
  const int32_t* entry;  // (num_keys,)
  int64_t rows, entries;
};

struct memvit_attention_call {
  int64_t batch, heads, num_queries, num_keys, head_dim;
  int64_t num_past_keys;           // of num_keys, those that lie in k[0], v[0]; the others lie in k[1], v[1]
  int64_t num_unrefined;           // this many first queries (the class token) are not added to the result
  memvit_tokens q, k[2], v[2], out;
  const uint8_t* key_mask;         // (batch or 1, num_keys): 0 takes no part; null: all take part
  int64_t mask_batch_stride;
  memvit_term terms[3];
  int64_t num_terms;
  float scale;
  int32_t adds_query;              // whether q is added to the result
  int32_t dtype;                   // of q, k, v and out
  int32_t parts;                   // on tiles, bfloat16 numbers whose sum is a float32: 2 or 3
};

// Tokens on a grid: `num_class` class tokens, then time, height, width.
struct memvit_volume {
  memvit_tokens x;
  int64_t grid[3];
};

struct memvit_pooling {
  int64_t source;         // which volume it reads
  int64_t head_channels;  // c, of one head
  const float* weight;    // (kt * kh * kw, c)
  const float* norm_weight;
  const float* norm_bias;
  void* out;              // num_class + T' H' W' tokens of C channels, contiguous, for each of the B streams
  int64_t out_stride;     // from one stream to the next, in elements
  int64_t kernel[3], stride[3], padding[3], out_grid[3];
  float eps;
  int32_t reserved;
};

struct memvit_pool_call {
  int64_t batch, channels, num_class;
  const memvit_volume* volumes;  // tokens to pool, then results of pooling them, which may be pooled once more
  int64_t num_volumes;
  const memvit_pooling* poolings;
  int64_t num_poolings;
  int32_t dtype;        // of the first volume
  int32_t out_dtype;    // of all results
};

// The largest value of each channel in a window; class tokens pass it by.
struct memvit_max_pool_call {
  int64_t batch, channels, num_class;
  memvit_volume volume;
  int64_t kernel[3], stride[3], padding[3], out_grid[3];
  void* out;            // (B, num_class + T' H' W', C), contiguous
  int32_t dtype;        // of x
  int32_t out_dtype;
};

struct memvit_norm_call {
  int64_t rows, channels;
  const void* x;        // (rows, channels), contiguous
  const void* added;    // null, or of x's shape: sum = x + added is normed, and written to `sum`
  void* sum;            // float32 or bfloat16 like x
  const float* weight;
  const float* bias;
  void* out;
  float eps;
  int32_t dtype, added_dtype, out_dtype;
};

// out = x weight^T + bias. Weights are packed by memvit.kernels.products, zero where there is no such column or depth: for AMX
// (panels of 32 columns, blocks of 32 of the depth, parts, 2 tiles, 16 pairs of the depth, 16 columns, 2), bfloat16; for AVX2
// (panels of 24 columns, in_features, 24), float32.
struct memvit_linear_call {
  int64_t rows, in_features, out_features;
  const void* x;        // (rows, in_features), rows `x_stride` elements apart
  int64_t x_stride;
  const void* weight;
  const float* bias;    // or null
  void* out;
  int64_t out_stride;
  int64_t group_rows, front_rows;  // after so many rows of the result, before the first ones too, so many are left alone
  int32_t dtype, out_dtype;  // float32 to float32, or anything to bfloat16
  int32_t parts;             // bfloat16 numbers whose sum is a factor: 1, 2 or 3; does not count on AVX2
  int32_t num_threads;
  int32_t has_gelu;          // whether the result goes through GELU
  int32_t reserved;
};

// The linear layer of patches of clips (batch, channels, frames, height, width): in `linear`, what is said of x, rows,
// in_features and group_rows (the patches of a clip) does not count.
struct memvit_patch_call {
  memvit_linear_call linear;
  const void* clips;
  int64_t strides[4];    // of batch, channel, frame, height, in elements; columns are contiguous
  int64_t batch, channels, size[3], kernel[3], stride[3], padding[3], grid[3];  // time, height, width; grid: of the patches
};

// out = gelu(x weight1^T + bias1) weight2^T + bias2; with `added`: out = t + that of LayerNorm(t), t = x + added.
struct memvit_mlp_call {
  int64_t rows, in_features, hidden_features, out_features;
  const void* x;
  int64_t x_stride;
  const void* weight1;
  const float* bias1;
  const void* weight2;
  const float* bias2;
  void* out;
  int64_t out_stride;
  int32_t dtype, out_dtype, parts, num_threads;
  const void* added;         // (rows, in_features), or null; as many features come out then, in the type of x
  int64_t added_stride;
  const float* norm_weight;
  const float* norm_bias;
  float eps;
  int32_t added_dtype;
};

// to[...] = from[...], or += where it adds, four axes, the last one contiguous in both. Widths are bytes of an element; where
// they differ, and where it adds, these are float32 or bfloat16.
struct memvit_copy_call {
  int64_t size[4], from_stride[3], to_stride[3];  // strides in elements
  const void* from;
  void* to;
  int32_t from_width, to_width, adds;
};

enum memvit_kernel {
  MEMVIT_COPY = 0,
  MEMVIT_ATTENTION = 1,
  MEMVIT_POOL_NORM = 2,
  MEMVIT_MAX_POOL = 3,
  MEMVIT_LAYER_NORM = 4,
  MEMVIT_LINEAR = 5,
  MEMVIT_MLP = 6,
  MEMVIT_PATCHES = 7
};

struct memvit_program_step {
  int64_t kernel;    // of memvit_kernel
  const void* call;  // what that kernel takes
};

// Where a call says where a tensor lies: *field = bases[base] + offset (bytes) before the calls are made.
struct memvit_program_pointer {
  char** field;
  int64_t base, offset;
};

struct memvit_program {
  const memvit_program_step* steps;
  int64_t num_steps;
  const memvit_program_pointer* pointers;
  int64_t num_pointers;
};

// Slots that a step returns: those that it was given, but for the oldest, and behind them room for one that it writes itself.
struct memvit_window {
  int64_t slots, result;                 // bases: what was given, and what is returned
  int64_t offset;                        // of its first window in the room
  int64_t slot_bytes, num_slots, batch;
  int64_t slots_stride, result_stride;   // from one stream to the next, in bytes
};

// The best instruction set of this processor that there are kernels for: 0 none, 1 AVX2, 2 AVX-512, 3 AVX-512 with bfloat16,
// 4 that and AMX's tiles.
__attribute__((visibility("default"))) int32_t memvit_best_level(void);

// Run on PyTorch's threads with the instructions of `level`; 0: done, else not supported (nothing was written).
__attribute__((visibility("default"))) int32_t memvit_attention(const memvit_attention_call* call, int32_t level, memvit_parallel_for parallel_for);
__attribute__((visibility("default"))) int32_t memvit_pool_norm(const memvit_pool_call* call, int32_t level, memvit_parallel_for parallel_for);
__attribute__((visibility("default"))) int32_t memvit_max_pool(const memvit_max_pool_call* call, int32_t level, memvit_parallel_for parallel_for);
__attribute__((visibility("default"))) int32_t memvit_layer_norm(const memvit_norm_call* call, int32_t level, memvit_parallel_for parallel_for);
__attribute__((visibility("default"))) int32_t memvit_linear(const memvit_linear_call* call, int32_t level, memvit_parallel_for parallel_for);
__attribute__((visibility("default"))) int32_t memvit_mlp(const memvit_mlp_call* call, int32_t level, memvit_parallel_for parallel_for);
__attribute__((visibility("default"))) int32_t memvit_patches(const memvit_patch_call* call, int32_t level, memvit_parallel_for parallel_for);

// Sets bases[result] to the windows that are `position` slots further than the first ones in a room; where the room is new, copies
// the slots that stay.
__attribute__((visibility("default"))) void memvit_open_windows(const memvit_window* windows, int64_t num_windows, char** bases, char* room, int64_t position, int32_t is_new);

// Runs the steps in their order; -1: done, else the first one that is not supported.
__attribute__((visibility("default"))) int64_t memvit_run_program(const memvit_program* program, char* const* bases, int32_t level, memvit_parallel_for parallel_for);
}
