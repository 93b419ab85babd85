// Linear layers, the two of an MLP with their GELU, and the patch embedding, on AMX's tiles. Included inside a namespace, after
// rows.inl and gelu.inl.

constexpr int64_t CACHE = 1280 << 10;  // bytes that what is read over and over may take of the second cache (2 MiB)

// A block of results that waits for what follows the products: bias, GELU, and its place. It is done row by row between the
// products of the next block, on units that these leave idle.
template <typename O>
struct Results {
  const memvit_linear_call& call;
  float* buffers;  // two blocks: one is being made while the other waits
  int64_t rows_at_once;
  int64_t row = 0, end = 0;
  const float* c = nullptr;
  int64_t first = 0, column = 0, left = 0;  // row and column of all that the block begins with, and how many columns are left
  int64_t group = 0;                        // of rows
  Vec low_bias, high_bias;

  float* free_block() const { return c == buffers ? buffers + BLOCK_SIZE : buffers; }
  void some() { finish_rows(rows_at_once); }
  void finish_rows(int64_t count) {
    for (const int64_t until = smaller(end, row + count); row < until; row++) {
      while (first + row >= (group + 1) * call.group_rows) group++;
      O* out = static_cast<O*>(call.out) + (first + row + (group + 1) * call.front_rows) * call.out_stride + column;
      Vec low = add(load(c + row * BLOCK), low_bias), high = add(load(c + row * BLOCK + W), high_bias);
      if (call.has_gelu) low = gelu<sizeof(O) == 4>(low), high = gelu<sizeof(O) == 4>(high);
      store_first(out, low, left);
      store_first(out + W, high, left - W);
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
  void some() { finish_rows(rows_at_once); }
  void finish_rows(int64_t count) {
    for (const int64_t until = smaller(end, row + count); row < until; row++) {
      const Vec low = gelu<(PARTS > 1)>(add(load(c + row * BLOCK), low_bias));
      const Vec high = gelu<(PARTS > 1)>(add(load(c + row * BLOCK + W), high_bias));
      split<PARTS>(low, high, out + row * BLOCK);
    }
  }
};

// One part of the work: `rows` rows and the panels from `first` to `end`.
template <int PARTS, typename Source, typename O>
static void run_linear_part(
    const memvit_linear_call& call, const Source& source, int64_t first_row, int64_t rows, int64_t first, int64_t end,
    Scratch& scratch) {
  const int64_t depth_blocks = blocks_of(call.in_features), num_blocks = blocks_of(rows);
  const int64_t row_size = depth_blocks * PARTS * BLOCK_SIZE;  // of a block of rows, and of a panel
  Parts parts{scratch.reserve(num_blocks * row_size * sizeof(bf16) + 2 * BLOCK_SIZE * sizeof(float) +
                              source.scratch_bytes() + 2 * 64)};
  bf16* a = parts.take<bf16>(num_blocks * row_size);
  float* made = parts.take<float>(2 * BLOCK_SIZE);
  source.template pack<PARTS>(first_row, rows, a, parts);
  const bf16* weight = static_cast<const bf16*>(call.weight);
  const int64_t lines = (PARTS * BLOCK + num_blocks - 1) / num_blocks;
  const int64_t calls = depth_blocks * products_of(PARTS);
  const int64_t first_group = first_row / call.group_rows;
  Results<O> results{call, made, (BLOCK + calls - 1) / calls};
  for (int64_t panel = first; panel < end; panel++) {
    const int64_t column = panel * BLOCK, left = call.out_features - column;
    const bf16* b = weight + panel * row_size;
    const bf16* next = b + (panel + 1 < end ? row_size : 0);
    for (int64_t block = 0; block < num_blocks; block++) {
      float* c = results.free_block();
      start_block();
      add_products<PARTS>(a + block * row_size, b, depth_blocks, results, next + block * lines * depth_blocks * BLOCK, lines);
      store_block(c);
      results.finish_rows(BLOCK);
      results.c = c;
      results.row = 0;
      results.end = smaller(BLOCK, rows - block * BLOCK);
      results.first = first_row + block * BLOCK;
      results.group = block ? results.group : first_group;
      results.column = column;
      results.left = left;
      results.low_bias = call.bias ? load_first(call.bias + column, left) : set1(0);
      results.high_bias = call.bias ? load_first(call.bias + column + W, left - W) : set1(0);
    }
  }
  results.finish_rows(BLOCK);
}

// The rows of an MLP from `first_row` on. Hidden activations are made some panels at a time, as left operands of the second
// layer, which adds them to its results; they never leave the cache.
template <int PARTS, typename Source, typename O>
static void run_mlp_part(
    const memvit_mlp_call& call, const Source& source, int64_t first_row, int64_t rows, int64_t hidden_at_once, Scratch& scratch) {
  const int64_t in_blocks = blocks_of(call.in_features), hidden_blocks = blocks_of(call.hidden_features);
  const int64_t num_panels = blocks_of(call.out_features), num_blocks = blocks_of(rows);
  const int64_t x_size = in_blocks * PARTS * BLOCK_SIZE, hidden_size = hidden_at_once * PARTS * BLOCK_SIZE;
  const int64_t panel_size = hidden_blocks * PARTS * BLOCK_SIZE;
  Parts parts{scratch.reserve(
      num_blocks * ((x_size + hidden_size) * sizeof(bf16) + num_panels * BLOCK_SIZE * sizeof(float)) +
      2 * BLOCK_SIZE * sizeof(float) + source.scratch_bytes() + 256)};
  bf16* x = parts.take<bf16>(num_blocks * x_size);
  bf16* hidden = parts.take<bf16>(num_blocks * hidden_size);
  float* results = parts.take<float>(num_blocks * num_panels * BLOCK_SIZE);
  float* made = parts.take<float>(2 * BLOCK_SIZE);
  source.template pack<PARTS>(first_row, rows, x, parts);
  const bf16* weight1 = static_cast<const bf16*>(call.weight1);
  const bf16* weight2 = static_cast<const bf16*>(call.weight2);
  const int64_t lines = (PARTS * BLOCK + num_blocks - 1) / num_blocks;
  const int64_t calls = in_blocks * products_of(PARTS);
  Hidden<PARTS> finisher{made, (BLOCK + calls - 1) / calls};
  NoWork nothing;
  for (int64_t start = 0; start < hidden_blocks; start += hidden_at_once) {
    const int64_t count = smaller(hidden_at_once, hidden_blocks - start);
    const bf16* second = weight2 + start * PARTS * BLOCK_SIZE;
    for (int64_t i = 0; i < count; i++) {
      const int64_t column = (start + i) * BLOCK, left = call.hidden_features - column;
      const bf16* b = weight1 + (start + i) * x_size;
      const bf16* next = i + 1 < count ? b + x_size : second;
      for (int64_t block = 0; block < num_blocks; block++) {
        float* c = finisher.free_block();
        start_block();
        add_products<PARTS>(x + block * x_size, b, in_blocks, finisher, next + block * lines * in_blocks * BLOCK, lines);
        store_block(c);
        finisher.finish_rows(BLOCK);
        finisher.c = c;
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
      for (int64_t block = 0; block < num_blocks; block++) {
        float* c = results + (block * num_panels + panel) * BLOCK_SIZE;
        if (start) start_block(c);
        else start_block();
        add_products<PARTS>(hidden + block * count * PARTS * BLOCK_SIZE, b, count, nothing,
                            next + block * lines * count * BLOCK, lines);
        store_block(c);
      }
    }
  }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t panel = 0; panel < num_panels; panel++) {
      const int64_t column = panel * BLOCK, left = call.out_features - column;
      const float* from = results + (r / BLOCK * num_panels + panel) * BLOCK_SIZE + r % BLOCK * BLOCK;
      O* out = static_cast<O*>(call.out) + (first_row + r) * call.out_stride + column;
      Vec low = load(from), high = load(from + W);
      if (call.bias2) {
        low = add(low, load_first(call.bias2 + column, left));
        high = add(high, load_first(call.bias2 + column + W, left - W));
      }
      source.add_to(first_row + r, column, low, high);
      store_first(out, low, left);
      store_first(out + W, high, left - W);
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

template <int PARTS, typename O, typename Source>
static int32_t run_rows(const memvit_linear_call& call, const Source& source, memvit_parallel_for parallel_for) {
  struct Context {
    const memvit_linear_call& call;
    const Source& source;
    Chunks chunks;
    int64_t panels, column_parts;
  };
  const int64_t blocks = blocks_of(call.rows), panels = blocks_of(call.out_features);
  // Few rows are shared out by columns, so that threads have as much to do as one another.
  constexpr int64_t ENOUGH = 16;
  int64_t column_parts = smaller((ENOUGH * call.num_threads + blocks - 1) / larger(blocks, 1), call.num_threads);
  column_parts = larger(smaller(column_parts, panels), 1);
  const int64_t bytes = blocks_of(call.in_features) * PARTS * BLOCK_SIZE * sizeof(bf16);
  Context context{call, source, Chunks(call.rows, larger(CACHE / 2 / bytes, 1), (call.num_threads + column_parts - 1) / column_parts),
                  panels, column_parts};
  parallel_for(0, context.chunks.count * column_parts, 1, [](int64_t begin, int64_t end, void* data) {
    const FlushToZero flush;
    static thread_local Scratch scratch;
    const auto& c = *static_cast<const Context*>(data);
    const Tiles tiles;
    for (int64_t i = begin; i < end; i++) {
      const int64_t chunk = i % c.chunks.count, part = i / c.chunks.count;
      run_linear_part<PARTS, Source, O>(c.call, c.source, c.chunks.begin(chunk), c.chunks.size(chunk), part * c.panels / c.column_parts,
                                   (part + 1) * c.panels / c.column_parts, scratch);
    }
  }, &context);
  return 0;
}

template <int PARTS, typename T, typename O>
static int32_t run_linear(const memvit_linear_call& call, memvit_parallel_for parallel_for) {
  return run_rows<PARTS, O>(call, Rows<T>{static_cast<const T*>(call.x), call.x_stride, call.in_features}, parallel_for);
}

template <int PARTS, typename T, typename O>
static int32_t run_patches(const memvit_patch_call& call, memvit_parallel_for parallel_for) {
  const Patches<T> patches{call};
  memvit_linear_call linear = call.linear;
  linear.group_rows = call.grid[0] * call.grid[1] * call.grid[2];
  linear.rows = call.batch * linear.group_rows;
  linear.in_features = patches.depth();
  return run_rows<PARTS, O>(linear, patches, parallel_for);
}

template <int PARTS, typename O, typename Source>
static int32_t run_mlp_rows(const memvit_mlp_call& call, const Source& source, memvit_parallel_for parallel_for) {
  struct Context {
    const memvit_mlp_call& call;
    const Source& source;
    Chunks chunks;
    int64_t hidden_at_once;
  };
  const int64_t hidden_at_once = smaller(blocks_of(call.hidden_features), PARTS == 1 ? 8 : 4);
  const int64_t bytes = (blocks_of(call.in_features) + hidden_at_once) * PARTS * BLOCK_SIZE * sizeof(bf16) +
                        blocks_of(call.out_features) * BLOCK_SIZE * sizeof(float);
  Context context{call, source, Chunks(call.rows, larger(CACHE / bytes, 1), call.num_threads), hidden_at_once};
  parallel_for(0, context.chunks.count, 1, [](int64_t begin, int64_t end, void* data) {
    const FlushToZero flush;
    static thread_local Scratch scratch;
    const auto& c = *static_cast<const Context*>(data);
    const Tiles tiles;
    for (int64_t i = begin; i < end; i++)
      run_mlp_part<PARTS, Source, O>(c.call, c.source, c.chunks.begin(i), c.chunks.size(i), c.hidden_at_once, scratch);
  }, &context);
  return 0;
}

template <int PARTS, typename T, typename O>
static int32_t run_mlp(const memvit_mlp_call& call, memvit_parallel_for parallel_for) {
  const Rows<T> rows{static_cast<const T*>(call.x), call.x_stride, call.in_features};
  return run_mlp_rows<PARTS, O>(call, rows, parallel_for);
}

static int32_t run_residual_mlp(const memvit_mlp_call& call, memvit_parallel_for parallel_for) {
  if (call.in_features % W || call.in_features != call.out_features || call.dtype != call.out_dtype) return 1;
  if (call.dtype == MEMVIT_FLOAT32 && call.added_dtype == MEMVIT_FLOAT32) {
    const NormedSums<float, float> sums{call};
    if (call.parts == 3) return run_mlp_rows<3, float>(call, sums, parallel_for);
    if (call.parts == 2) return run_mlp_rows<2, float>(call, sums, parallel_for);
    return run_mlp_rows<1, float>(call, sums, parallel_for);
  }
  if (call.parts != 1 || call.added_dtype != MEMVIT_BFLOAT16) return 1;
  if (call.dtype == MEMVIT_FLOAT32) return run_mlp_rows<1, float>(call, NormedSums<float, bf16>{call}, parallel_for);
  return run_mlp_rows<1, bf16>(call, NormedSums<bf16, bf16>{call}, parallel_for);
}

#define MEMVIT_FOR_TYPES(run, types)                                                                \
  if ((types).dtype == MEMVIT_FLOAT32 && (types).out_dtype == MEMVIT_FLOAT32) {                     \
    if ((types).parts == 3) return run<3, float, float>(*call, parallel_for);                       \
    if ((types).parts == 2) return run<2, float, float>(*call, parallel_for);                       \
    return run<1, float, float>(*call, parallel_for);                                               \
  }                                                                                                 \
  if ((types).out_dtype != MEMVIT_BFLOAT16) return 1;                                               \
  if ((types).dtype == MEMVIT_FLOAT32) return run<1, float, bf16>(*call, parallel_for);             \
  return run<1, bf16, bf16>(*call, parallel_for)

int32_t linear(const memvit_linear_call* call, memvit_parallel_for parallel_for) { MEMVIT_FOR_TYPES(run_linear, *call); }
int32_t patches(const memvit_patch_call* call, memvit_parallel_for parallel_for) { MEMVIT_FOR_TYPES(run_patches, call->linear); }
int32_t mlp(const memvit_mlp_call* call, memvit_parallel_for parallel_for) {
  if (call->added) return run_residual_mlp(*call, parallel_for);
  MEMVIT_FOR_TYPES(run_mlp, *call);
}
