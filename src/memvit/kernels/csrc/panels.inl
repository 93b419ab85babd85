// Linear layers, the two of an MLP with their GELU, and the patch embedding, on vectors of floats. Included inside a namespace,
// after float_rows.inl and gelu.inl.

constexpr int64_t DEPTH_AT_ONCE = 192;  // of a panel of weights, which stays in the first cache while rows go past it
constexpr int64_t ROWS_AT_ONCE = 96;    // whose sums stay beside it
constexpr int64_t FAR = 1 << 20;        // bytes: more weights than this do not stay near, and are fetched in advance

// Rows times panels of weights. What becomes of the sums of a row and a panel is up to `finish(row, column, sums)`.
template <typename Finish>
struct Product {
  const float* weight;  // (panels, depth, P)
  int64_t depth;
  float* sums;          // (ROWS_AT_ONCE, P)
  const Finish& finish;

  void run(FloatRows a, int64_t rows, int64_t first_panel, int64_t end_panel) const {
    const int64_t parts = larger((depth + DEPTH_AT_ONCE - 1) / DEPTH_AT_ONCE, 1);
    const int64_t part_bytes = depth / parts * P * sizeof(float);
    // Cache lines of the next part that are fetched beside each group of rows.
    const bool is_far = (end_panel - first_panel) * parts * part_bytes > FAR;
    const int64_t lines = is_far ? part_bytes / 64 / larger(rows / MR, 1) + 1 : 0;
    for (int64_t panel = first_panel; panel < end_panel; panel++)
      for (int64_t part = 0; part < parts; part++) {
        const int64_t begin = part * depth / parts, count = (part + 1) * depth / parts - begin;
        const Part own{a.data + begin, a.stride, weight + (panel * depth + begin) * P, count, panel * P, part == 0, part + 1 == parts};
        const char* next = reinterpret_cast<const char*>(own.b + count * P);  // the part after this lies behind it
        int64_t row = 0;
        for (; row + MR <= rows; row += MR) {
          for (int64_t i = 0; i < lines; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
          add_rows<MR>(own, row);
        }
        for (; row < rows; row++) add_rows<1>(own, row);
      }
  }

 private:
  struct Part {
    const float* a;
    int64_t stride;
    const float* b;
    int64_t depth, column;
    bool is_first, is_last;
  };

  template <int R>
  void add_rows(const Part& part, int64_t row) const {
    if (part.is_first && part.is_last) return add_rows<R, true, true>(part, row);
    if (part.is_first) return add_rows<R, true, false>(part, row);
    if (part.is_last) return add_rows<R, false, true>(part, row);
    add_rows<R, false, false>(part, row);
  }

  // Never a part of what calls it: compilers then keep sums in registers.
  template <int R, bool IsFirst, bool IsLast>
  __attribute__((noinline)) void add_rows(const Part& part, int64_t row) const {
    Vec acc[R][NR];
    product<R, NR>(acc, part.a + row * part.stride, part.stride, part.b, part.depth);
    for (int r = 0; r < R && !IsFirst; r++)  // sums of sums: they round off less than one that goes on
      for (int v = 0; v < NR; v++) acc[r][v] = add(acc[r][v], load(sums + (row + r) * P + v * W));
    for (int r = 0; r < R; r++)
      if constexpr (IsLast) finish(row + r, part.column, acc[r]);
      else for (int v = 0; v < NR; v++) store(sums + (row + r) * P + v * W, acc[r][v]);
  }
};

static inline void add_bias(const float* bias, int64_t column, int64_t width, Vec (&sum)[NR]) {
  if (!bias) return;
  for (int v = 0; v < NR; v++, column += W)
    if (column < width) sum[v] = add(sum[v], load_first(bias + column, width - column));
}

template <typename O>
static inline void store_row(O* out, int64_t column, int64_t width, const Vec (&sum)[NR]) {
  for (int v = 0; v < NR; v++, column += W)
    if (column < width) store_first(out + column, sum[v], width - column);
}

// One part of a linear layer: `rows` rows and the panels from `first` to `end`.
template <typename Source, typename O>
static void run_linear_part(
    const memvit_linear_call& call, const Source& source, int64_t first_row, int64_t rows, int64_t first, int64_t end, Scratch& scratch) {
  Parts parts{scratch.reserve((rows * source.room() + ROWS_AT_ONCE * P) * sizeof(float) + 2 * 64)};
  float* room = parts.take<float>(rows * source.room());
  const auto finish = [&](int64_t row, int64_t column, Vec (&sum)[NR]) {
    int64_t n = first_row + row;
    if (call.front_rows) n += (n / call.group_rows + 1) * call.front_rows;
    add_bias(call.bias, column, call.out_features, sum);
    if (call.has_gelu)
      for (Vec& x : sum) x = gelu<sizeof(O) == 4>(x);
    store_row(static_cast<O*>(call.out) + n * call.out_stride, column, call.out_features, sum);
  };
  const Product<decltype(finish)> product{static_cast<const float*>(call.weight), call.in_features, parts.take<float>(ROWS_AT_ONCE * P), finish};
  product.run(source.read(first_row, rows, room), rows, first, end);
}

// The rows of an MLP from `first_row` on; their hidden activations are no more than a cache takes.
template <typename Source, typename O>
static void run_mlp_part(const memvit_mlp_call& call, const Source& source, int64_t first_row, int64_t rows, Scratch& scratch) {
  const int64_t hidden_panels = (call.hidden_features + P - 1) / P, panels = (call.out_features + P - 1) / P;
  Parts parts{scratch.reserve((rows * (source.room() + hidden_panels * P) + ROWS_AT_ONCE * P) * sizeof(float) + 3 * 64)};
  float* room = parts.take<float>(rows * source.room());
  float* hidden = parts.take<float>(rows * hidden_panels * P);
  float* sums = parts.take<float>(ROWS_AT_ONCE * P);
  const auto keep = [&](int64_t row, int64_t column, Vec (&sum)[NR]) {
    add_bias(call.bias1, column, call.hidden_features, sum);
    for (int v = 0; v < NR; v++) store(hidden + row * hidden_panels * P + column + v * W, gelu<sizeof(O) == 4>(sum[v]));
  };
  const auto finish = [&](int64_t row, int64_t column, Vec (&sum)[NR]) {
    const int64_t n = first_row + row;
    add_bias(call.bias2, column, call.out_features, sum);
    source.add_to(n, column, call.out_features - column, sum);
    store_row(static_cast<O*>(call.out) + n * call.out_stride, column, call.out_features, sum);
  };
  const Product<decltype(keep)> first{static_cast<const float*>(call.weight1), call.in_features, sums, keep};
  first.run(source.read(first_row, rows, room), rows, 0, hidden_panels);
  const Product<decltype(finish)> second{static_cast<const float*>(call.weight2), call.hidden_features, sums, finish};
  second.run(FloatRows{hidden, hidden_panels * P}, rows, 0, panels);
}

// How rows are shared out: chunks of about as many, as many for every thread.
struct Chunks {
  int64_t rows, groups, count;  // groups of MR
  Chunks(int64_t rows, int64_t threads) : rows(rows), groups((rows + MR - 1) / MR) {
    count = smaller(round_up((rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, larger(threads, 1)), groups);
  }
  int64_t begin(int64_t i) const { return i * groups / count * MR; }
  int64_t size(int64_t i) const { return smaller((i + 1) * groups / count * MR, rows) - begin(i); }
};

template <typename O, typename Source>
static int32_t run_rows(const memvit_linear_call& call, const Source& source, memvit_parallel_for parallel_for) {
  struct Context {
    const memvit_linear_call& call;
    const Source& source;
    Chunks chunks;
    int64_t panels, column_parts;
  };
  const int64_t panels = (call.out_features + P - 1) / P;
  // Few rows are shared out by columns, so that threads have as much to do as one another.
  const int64_t column_parts = call.rows < ROWS_AT_ONCE * call.num_threads ? larger(smaller(call.num_threads, panels), 1) : 1;
  Context context{call, source, Chunks(call.rows, column_parts > 1 ? 1 : call.num_threads), panels, column_parts};
  parallel_for(0, context.chunks.count * column_parts, 1, [](int64_t begin, int64_t end, void* data) {
    const FlushToZero flush;
    static thread_local Scratch scratch;
    const auto& c = *static_cast<const Context*>(data);
    for (int64_t i = begin; i < end; i++) {
      const int64_t chunk = i % c.chunks.count, part = i / c.chunks.count;
      run_linear_part<Source, O>(c.call, c.source, c.chunks.begin(chunk), c.chunks.size(chunk), part * c.panels / c.column_parts,
                                 (part + 1) * c.panels / c.column_parts, scratch);
    }
  }, &context);
  return 0;
}

template <typename O, typename Source>
static int32_t run_mlp_rows(const memvit_mlp_call& call, const Source& source, memvit_parallel_for parallel_for) {
  struct Context {
    const memvit_mlp_call& call;
    const Source& source;
    Chunks chunks;
  };
  Context context{call, source, Chunks(call.rows, call.num_threads)};
  parallel_for(0, context.chunks.count, 1, [](int64_t begin, int64_t end, void* data) {
    const FlushToZero flush;
    static thread_local Scratch scratch;
    const auto& c = *static_cast<const Context*>(data);
    for (int64_t i = begin; i < end; i++) run_mlp_part<Source, O>(c.call, c.source, c.chunks.begin(i), c.chunks.size(i), scratch);
  }, &context);
  return 0;
}

template <typename T, typename O>
static int32_t run_linear(const memvit_linear_call& call, memvit_parallel_for parallel_for) {
  return run_rows<O>(call, Rows<T>{static_cast<const T*>(call.x), call.x_stride, call.in_features}, parallel_for);
}

template <typename T, typename O>
static int32_t run_patches(const memvit_patch_call& call, memvit_parallel_for parallel_for) {
  const Patches<T> patches{call};
  memvit_linear_call linear = call.linear;
  linear.group_rows = call.grid[0] * call.grid[1] * call.grid[2];
  linear.rows = call.batch * linear.group_rows;
  linear.in_features = patches.depth();
  return run_rows<O>(linear, patches, parallel_for);
}

template <typename T, typename O>
static int32_t run_mlp(const memvit_mlp_call& call, memvit_parallel_for parallel_for) {
  return run_mlp_rows<O>(call, Rows<T>{static_cast<const T*>(call.x), call.x_stride, call.in_features}, parallel_for);
}

static int32_t run_residual_mlp(const memvit_mlp_call& call, memvit_parallel_for parallel_for) {
  if (call.in_features % W || call.in_features != call.out_features || call.dtype != call.out_dtype) return 1;
  if (call.added_dtype == MEMVIT_FLOAT32)
    return call.dtype == MEMVIT_FLOAT32 ? run_mlp_rows<float>(call, NormedSums<float, float>{call}, parallel_for) : 1;
  if (call.dtype == MEMVIT_FLOAT32) return run_mlp_rows<float>(call, NormedSums<float, bf16>{call}, parallel_for);
  return run_mlp_rows<bf16>(call, NormedSums<bf16, bf16>{call}, parallel_for);
}

#define MEMVIT_FOR_TYPES(run, types)                                                                                             \
  if ((types).out_dtype == MEMVIT_BFLOAT16)                                                                                     \
    return (types).dtype == MEMVIT_FLOAT32 ? run<float, bf16>(*call, parallel_for) : run<bf16, bf16>(*call, parallel_for);      \
  return (types).dtype == MEMVIT_FLOAT32 ? run<float, float>(*call, parallel_for) : 1

int32_t linear(const memvit_linear_call* call, memvit_parallel_for parallel_for) { MEMVIT_FOR_TYPES(run_linear, *call); }
int32_t patches(const memvit_patch_call* call, memvit_parallel_for parallel_for) { MEMVIT_FOR_TYPES(run_patches, call->linear); }
int32_t mlp(const memvit_mlp_call* call, memvit_parallel_for parallel_for) {
  if (call->added) return run_residual_mlp(*call, parallel_for);
  MEMVIT_FOR_TYPES(run_mlp, *call);
}
