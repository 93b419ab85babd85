// What linear layers multiply, as rows of floats: rows that lie in memory, the LayerNorm of a sum, patches of clips.
// Included inside a namespace, after norm.inl.

// Up to W numbers, the rest is zero.
template <typename T>
static inline Vec load_first(const T* p, int64_t n) {
  if (n >= W) return load(p);
  T numbers[W] = {};
  for (int64_t i = 0; i < n; i++) numbers[i] = p[i];
  return load(numbers);
}
template <typename T>
static inline void store_first(T* p, Vec v, int64_t n) {
  if (n >= W) return store(p, v);
  T numbers[W];
  store(numbers, v);
  for (int64_t i = 0; i < n; i++) p[i] = numbers[i];
}

// Rows, `stride` floats apart.
struct FloatRows {
  const float* data;
  int64_t stride;
};

// Rows that lie in memory.
template <typename T>
struct Rows {
  const T* x;
  int64_t stride, depth;

  // Floats of room that `read` takes for a row.
  int64_t room() const { return sizeof(T) == sizeof(float) ? 0 : round_up(depth, W); }
  FloatRows read(int64_t first, int64_t count, float* room) const {
    if constexpr (sizeof(T) == sizeof(float)) return FloatRows{x + first * stride, stride};
    const int64_t width = round_up(depth, W);
    for (int64_t r = 0; r < count; r++)
      for (int64_t i = 0; i < depth; i += W) store(room + r * width + i, load_first(x + (first + r) * stride + i, depth - i));
    return FloatRows{room, width};
  }
  void add_to(int64_t, int64_t, int64_t, Vec (&)[NR]) const {}  // no residual
};

// LayerNorm of the rows of a sum, which is added to the result.
template <typename T, typename A>
struct NormedSums {
  const memvit_mlp_call& call;

  const T* x(int64_t n) const { return static_cast<const T*>(call.x) + n * call.x_stride; }
  const A* added(int64_t n) const { return static_cast<const A*>(call.added) + n * call.added_stride; }

  int64_t room() const { return call.in_features; }
  FloatRows read(int64_t first, int64_t count, float* room) const {
    const int64_t c = call.in_features;
    for (int64_t r = 0; r < count; r++) {
      float* row = room + r * c;
      for (int64_t i = 0; i < c; i += W) store(row + i, add(load(x(first + r) + i), load(added(first + r) + i)));
      normalize(row, c, call.norm_weight, call.norm_bias, call.eps, row);
    }
    return FloatRows{room, c};
  }
  void add_to(int64_t n, int64_t column, int64_t left, Vec (&sum)[NR]) const {
    for (int v = 0; v < NR; v++, column += W, left -= W)
      if (left > 0) sum[v] = add(sum[v], add(load_first(x(n) + column, left), load_first(added(n) + column, left)));
  }
};

// Patches of clips as rows: the windows of a convolution, its channels outermost, its columns innermost.
template <typename T>
struct Patches {
  const memvit_patch_call& call;

  int64_t depth() const { return call.channels * call.kernel[0] * call.kernel[1] * call.kernel[2]; }
  int64_t room() const { return depth(); }
  FloatRows read(int64_t first, int64_t count, float* room) const {
    for (int64_t r = 0; r < count; r++) gather(first + r, room + r * depth());
    return FloatRows{room, depth()};
  }
  void add_to(int64_t, int64_t, int64_t, Vec (&)[NR]) const {}

  void gather(int64_t patch, float* to) const {
    const int64_t kw = call.kernel[2], w = patch % call.grid[2], h = patch / call.grid[2] % call.grid[1];
    const int64_t t = patch / (call.grid[2] * call.grid[1]) % call.grid[0], b = patch / (call.grid[2] * call.grid[1] * call.grid[0]);
    const int64_t from_t = t * call.stride[0] - call.padding[0], from_h = h * call.stride[1] - call.padding[1];
    const int64_t from_w = w * call.stride[2] - call.padding[2];
    // Of a window's columns, those inside the picture.
    const int64_t low = smaller(larger(-from_w, 0), kw), high = larger(smaller(call.size[2] - from_w, kw), low);
    const T* clip = static_cast<const T*>(call.clips) + b * call.strides[0] + from_w;
    for (int64_t c = 0; c < call.channels; c++)
      for (int64_t i = from_t; i < from_t + call.kernel[0]; i++) {
        const bool has_frame = i >= 0 && i < call.size[0];
        const T* line = clip + c * call.strides[1] + i * call.strides[2] + from_h * call.strides[3];
        for (int64_t j = from_h; j < from_h + call.kernel[1]; j++, line += call.strides[3], to += kw) {
          const bool has_line = has_frame && j >= 0 && j < call.size[1];
          for (int64_t k = 0; k < kw; k++) to[k] = has_line && k >= low && k < high ? to_float(line[k]) : 0.f;
        }
      }
  }

  static float to_float(float x) { return x; }
  static float to_float(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
};
