// LayerNorm of a row. Included inside a namespace, after vectors.inl.

// out = LayerNorm(row) over c channels, all of them in `row`.
template <typename T>
static inline void normalize(const float* row, int64_t c, const float* weight, const float* bias, float eps, T* out) {
  Vec sum = set1(0);
  for (int64_t i = 0; i < c; i += W) sum = add(sum, load(row + i));
  const float mean = sum_of(sum) / c;
  Vec squares = set1(0);
  for (int64_t i = 0; i < c; i += W) {
    const Vec x = sub(load(row + i), set1(mean));
    squares = fma(x, x, squares);
  }
  const Vec scale = set1(1.f / __builtin_sqrtf(sum_of(squares) / c + eps));
  for (int64_t i = 0; i < c; i += W) {
    const Vec x = mul(sub(load(row + i), set1(mean)), scale);
    store(out + i, fma(x, load(weight + i), load(bias + i)));
  }
}
