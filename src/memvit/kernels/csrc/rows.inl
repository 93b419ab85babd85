// What linear layers multiply, packed as left operands: rows that lie in memory, the LayerNorm of a sum, patches of clips.
// Included inside a namespace, after blocks.inl and norm.inl.

// Rows that lie in memory.
template <typename T>
struct Rows {
  const T* x;
  int64_t stride, depth;

  size_t scratch_bytes() const { return 0; }
  template <int PARTS>
  void pack(int64_t first, int64_t count, bf16* out, Parts) const { pack_rows<PARTS>(x + first * stride, stride, count, depth, out); }
  void add_to(int64_t, int64_t, Vec&, Vec&) const {}  // no residual
};

// LayerNorm of the rows of a sum, which is added to the result.
template <typename T, typename A>
struct NormedSums {
  const memvit_mlp_call& call;

  const T* x(int64_t n) const { return static_cast<const T*>(call.x) + n * call.x_stride; }
  const A* added(int64_t n) const { return static_cast<const A*>(call.added) + n * call.added_stride; }
  size_t scratch_bytes() const { return 2 * (round_up(call.in_features, BLOCK) * sizeof(float) + 64); }

  template <int PARTS>
  void pack(int64_t first, int64_t count, bf16* out, Parts parts) const {
    const int64_t c = call.in_features, padded = round_up(c, BLOCK);
    float* row = parts.take<float>(padded);
    for (int64_t i = 0; i < padded; i += W) store(row + i, set1(0));
    for (int64_t r = 0; r < round_up(count, BLOCK); r++) {
      if (r < count) {
        for (int64_t i = 0; i < c; i += W) store(row + i, add(load(x(first + r) + i), load(added(first + r) + i)));
        normalize(row, c, call.norm_weight, call.norm_bias, call.eps, row);
      }
      bf16* line = out + r / BLOCK * (padded / BLOCK) * PARTS * BLOCK_SIZE + r % BLOCK * BLOCK;
      for (int64_t k = 0; k < padded; k += BLOCK, line += PARTS * BLOCK_SIZE) split<PARTS>(load(row + k), load(row + k + W), line);
    }
  }

  void add_to(int64_t n, int64_t column, Vec& low, Vec& high) const {
    const int64_t left = call.in_features - column;
    low = add(low, add(load_first(x(n) + column, left), load_first(added(n) + column, left)));
    high = add(high, add(load_first(x(n) + column + W, left - W), load_first(added(n) + column + W, left - W)));
  }
};

// Patches of clips as rows: the windows of a convolution, its channels outermost, its columns innermost.
template <typename T>
struct Patches {
  const memvit_patch_call& call;

  int64_t depth() const { return call.channels * call.kernel[0] * call.kernel[1] * call.kernel[2]; }
  size_t scratch_bytes() const { return 2 * ((round_up(depth(), BLOCK) + W) * sizeof(float) + 64); }

  template <int PARTS>
  void pack(int64_t first, int64_t count, bf16* out, Parts parts) const {
    const int64_t padded = round_up(depth(), BLOCK), blocks = padded / BLOCK;
    float* rows[2];
    for (float*& row : rows) {
      row = parts.take<float>(padded + W);
      for (int64_t k = 0; k < padded; k++) row[k] = 0;
    }
    // A row is split while the next one is gathered: what was just stored in other pieces is slow to load.
    for (int64_t r = 0; r <= round_up(count, BLOCK); r++) {
      if (r < count) gather(first + r, rows[r % 2]);
      if (r == 0) continue;
      const float* row = rows[(r - 1) % 2];
      bf16* line = out + (r - 1) / BLOCK * blocks * PARTS * BLOCK_SIZE + (r - 1) % BLOCK * BLOCK;
      for (int64_t k = 0; k < padded; k += BLOCK, line += PARTS * BLOCK_SIZE) split<PARTS>(load(row + k), load(row + k + W), line);
    }
  }

  void gather(int64_t patch, float* to) const {
    const int64_t kw = call.kernel[2], w = patch % call.grid[2], h = patch / call.grid[2] % call.grid[1];
    const int64_t t = patch / (call.grid[2] * call.grid[1]) % call.grid[0], b = patch / (call.grid[2] * call.grid[1] * call.grid[0]);
    const int64_t from_t = t * call.stride[0] - call.padding[0], from_h = h * call.stride[1] - call.padding[1];
    const int64_t from_w = w * call.stride[2] - call.padding[2];
    // Of a window's columns, W at a time, those inside the picture. What a vector has too much is written over by the next one.
    const int64_t low = larger(-from_w, 0), high = smaller(call.size[2] - from_w, kw);
    const auto inside = [&](int64_t k) { return static_cast<__mmask16>(first_lanes(high - k) & ~first_lanes(low - k)); };
    const __mmask16 first = inside(0);
    const T* clip = static_cast<const T*>(call.clips) + b * call.strides[0] + from_w;
    float* const end = to + depth();
    for (int64_t c = 0; c < call.channels; c++)
      for (int64_t i = from_t; i < from_t + call.kernel[0]; i++) {
        const bool has_frame = i >= 0 && i < call.size[0];
        const T* line = clip + c * call.strides[1] + i * call.strides[2] + from_h * call.strides[3];
        for (int64_t j = from_h; j < from_h + call.kernel[1]; j++, line += call.strides[3], to += kw) {
          const bool has_line = has_frame && j >= 0 && j < call.size[1];
          store(to, has_line ? load_masked(line, first) : set1(0));
          for (int64_t k = W; k < kw; k += W) store(to + k, has_line ? load_masked(line + k, inside(k)) : set1(0));
        }
      }
    store(end, set1(0));
  }
};
