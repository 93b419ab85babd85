// Depthwise 3-D convolution of tokens, channels last, and LayerNorm of every head's channels.
// Included inside a namespace, after norm.inl.

constexpr int64_t NORM_COST = 8;  // of a token's norm, in taps

template <typename T, typename U>
struct PoolNorm {
  const memvit_pool_call& call;
  const memvit_volume& volume;
  static constexpr int STEP = MR;  // outputs along a row that are computed together

  const T* token(int64_t b, int64_t n) const {
    return static_cast<const T*>(volume.x.data) + b * volume.x.batch_stride + n * volume.x.token_stride;
  }

  // L outputs next to one another, W channels: each loaded input serves three of them.
  template <int L>
  static inline void row_of_three(Vec (&acc)[STEP], const T* const* columns, int64_t channel, const float* weight, int64_t c) {
    const Vec w0 = load(weight), w1 = load(weight + c), w2 = load(weight + 2 * c);
    Vec before = load(columns[0] + channel), at = load(columns[1] + channel);
    for (int l = 0; l < L; l++) {
      const Vec after = load(columns[l + 2] + channel);
      acc[l] = fma(before, w0, fma(at, w1, fma(after, w2, acc[l])));
      before = at, at = after;
    }
  }

  // One row of outputs at (b, t, h): kernels three wide of stride one, STEP outputs at a time.
  template <int L>
  void dense(const memvit_pooling& pool, int64_t b, int64_t t, int64_t h, int64_t w0, const T* zeros, float* conv) const {
    const int64_t C = call.channels, c = pool.head_channels;
    const int64_t kt = pool.kernel[0], kh = pool.kernel[1];
    const T* columns[32][STEP + 2];
    const float* weights[32];
    int num = 0;
    for (int64_t i = 0; i < kt; i++) {
      const int64_t from_t = t * pool.stride[0] + i - pool.padding[0];
      if (from_t < 0 || from_t >= volume.grid[0]) continue;
      for (int64_t j = 0; j < kh; j++) {
        const int64_t from_h = h * pool.stride[1] + j - pool.padding[1];
        if (from_h < 0 || from_h >= volume.grid[1]) continue;
        const int64_t row = call.num_class + (from_t * volume.grid[1] + from_h) * volume.grid[2];
        for (int64_t k = 0; k < L + 2; k++) {
          const int64_t from_w = w0 + k - pool.padding[2];
          columns[num][k] = from_w < 0 || from_w >= volume.grid[2] ? zeros : token(b, row + from_w);
        }
        weights[num++] = pool.weight + (i * kh + j) * 3 * c;
      }
    }
    for (int64_t head = 0; head < C; head += c)
      for (int64_t i = 0; i < c; i += W) {
        Vec acc[STEP];
        for (int l = 0; l < L; l++) acc[l] = set1(0);
        for (int n = 0; n < num; n++) row_of_three<L>(acc, columns[n], head + i, weights[n] + i, c);
        for (int l = 0; l < L; l++) store(conv + l * C + head + i, acc[l]);
      }
  }

  // What L outputs of any kernel and stride take: for every tap that meets the volume, its filter and where its inputs lie.
  struct Taps {
    const T** inputs;       // (taps, L)
    const float** filters;  // (taps,)
    int64_t num;
  };

  template <int L>
  void find_taps(const memvit_pooling& pool, int64_t b, int64_t t, int64_t h, int64_t w, const T* zeros, Taps& taps) const {
    taps.num = 0;
    for (int64_t i = 0; i < pool.kernel[0]; i++) {
      const int64_t from_t = t * pool.stride[0] + i - pool.padding[0];
      if (from_t < 0 || from_t >= volume.grid[0]) continue;
      for (int64_t j = 0; j < pool.kernel[1]; j++) {
        const int64_t from_h = h * pool.stride[1] + j - pool.padding[1];
        if (from_h < 0 || from_h >= volume.grid[1]) continue;
        const int64_t row = call.num_class + (from_t * volume.grid[1] + from_h) * volume.grid[2];
        for (int64_t k = 0; k < pool.kernel[2]; k++) {
          for (int l = 0; l < L; l++) {
            const int64_t from_w = (w + l) * pool.stride[2] + k - pool.padding[2];
            taps.inputs[taps.num * L + l] = from_w < 0 || from_w >= volume.grid[2] ? zeros : token(b, row + from_w);
          }
          taps.filters[taps.num++] = pool.weight + ((i * pool.kernel[1] + j) * pool.kernel[2] + k) * pool.head_channels;
        }
      }
    }
  }

  // L outputs, NUM vectors of channels: every filter value that is loaded serves all of them. Numbers known when compiled keep
  // the sums in registers.
  template <int L, int NUM>
  static inline void sum_taps(const Taps& taps, int64_t channel, int64_t filter, float* conv, int64_t C) {
    Vec acc[L][NUM];
    for (int l = 0; l < L; l++)
      for (int v = 0; v < NUM; v++) acc[l][v] = set1(0);
    for (int64_t n = 0; n < taps.num; n++) {
      const float* weight = taps.filters[n] + filter;
      Vec weights[NUM];
      for (int v = 0; v < NUM; v++) weights[v] = load(weight + v * W);
      for (int l = 0; l < L; l++) {
        const T* x = taps.inputs[n * L + l] + channel;
        for (int v = 0; v < NUM; v++) acc[l][v] = fma(load(x + v * W), weights[v], acc[l][v]);
      }
    }
    for (int l = 0; l < L; l++)
      for (int v = 0; v < NUM; v++) store(conv + l * C + channel + v * W, acc[l][v]);
  }

  template <int L>
  void sparse(const memvit_pooling& pool, int64_t b, int64_t t, int64_t h, int64_t w, const T* zeros, Taps& taps,
              float* conv) const {
    constexpr int MOST = MR / 2;  // vectors at a time
    const int64_t C = call.channels, c = pool.head_channels;
    find_taps<L>(pool, b, t, h, w, zeros, taps);
    for (int64_t head = 0; head < C; head += c)
      for (int64_t i = 0; i < c;) {
        const int64_t left = (c - i) / W;
        if (left >= MOST) sum_taps<L, MOST>(taps, head + i, i, conv, C), i += MOST * W;
        else if (left >= 2) sum_taps<L, 2>(taps, head + i, i, conv, C), i += 2 * W;
        else sum_taps<L, 1>(taps, head + i, i, conv, C), i += W;
      }
  }

  void norm(const memvit_pooling& pool, const float* conv, int64_t b, int64_t n) const {
    const int64_t C = call.channels, c = pool.head_channels;
    U* out = static_cast<U*>(pool.out) + b * pool.out_stride + n * C;
    for (int64_t head = 0; head < C; head += c) normalize(conv + head, c, pool.norm_weight, pool.norm_bias, pool.eps, out + head);
  }

  void row(const memvit_pooling& pool, int64_t b, int64_t t, int64_t h, Scratch& scratch) const {
    const int64_t C = call.channels, width = pool.out_grid[2];
    const int64_t num_taps = pool.kernel[0] * pool.kernel[1] * pool.kernel[2];
    Parts parts{scratch.reserve(4 * (STEP * C + C) + 5 * 8 * num_taps + 6 * 64)};
    float* conv = parts.take<float>(STEP * C);
    T* zeros = parts.take<T>(C);
    Taps taps{parts.take<const T*>(4 * num_taps), parts.take<const float*>(num_taps), 0};
    for (int64_t i = 0; i < C; i++) zeros[i] = T(0);
    const int64_t first = call.num_class + (t * pool.out_grid[1] + h) * width;
    const bool is_dense = pool.kernel[2] == 3 && pool.stride[2] == 1 && pool.kernel[0] * pool.kernel[1] <= 32;
    if (call.num_class && t == 0 && h == 0)
      for (int64_t n = 0; n < call.num_class; n++) {
        for (int64_t i = 0; i < C; i += W) store(conv + i, load(token(b, n) + i));
        norm(pool, conv, b, n);
      }
    for (int64_t w = 0; w < width;) {
      int64_t num = 1;
      if (!is_dense) {
        num = smaller(4, width - w);
        switch (num) {
          case 1: sparse<1>(pool, b, t, h, w, zeros, taps, conv); break;
          case 2: sparse<2>(pool, b, t, h, w, zeros, taps, conv); break;
          case 3: sparse<3>(pool, b, t, h, w, zeros, taps, conv); break;
          default: sparse<4>(pool, b, t, h, w, zeros, taps, conv); break;
        }
      } else {
        const int64_t left = width - w;
        num = left >= STEP ? (left < 2 * STEP && left > STEP ? (left + 1) / 2 : STEP) : left;
        switch (num) {
          case 1: dense<1>(pool, b, t, h, w, zeros, conv); break;
          case 2: dense<2>(pool, b, t, h, w, zeros, conv); break;
          case 3: dense<3>(pool, b, t, h, w, zeros, conv); break;
          case 4: dense<4>(pool, b, t, h, w, zeros, conv); break;
#if MEMVIT_LEVEL >= 2
          case 5: dense<5>(pool, b, t, h, w, zeros, conv); break;
          case 6: dense<6>(pool, b, t, h, w, zeros, conv); break;
          case 7: dense<7>(pool, b, t, h, w, zeros, conv); break;
          default: dense<8>(pool, b, t, h, w, zeros, conv); break;
#endif
        }
      }
      for (int64_t l = 0; l < num; l++) norm(pool, conv + l * C, b, first + w + l);
      w += num;
    }
  }
};

// How many inputs a pooling finds within the volume, `n` long, around an output.
static int64_t taps_within(const memvit_pooling& pool, int axis, int64_t out, int64_t n) {
  const int64_t from = out * pool.stride[axis] - pool.padding[axis];
  return smaller(from + pool.kernel[axis], n) - (from < 0 ? 0 : from);
}

// The rows of some volumes of one grid, the same row of all of them one after the other. A row of inputs is where one row of
// outputs of some or all poolings begins: what one has read the next finds in cache.
template <typename T, typename U>
struct PoolRows {
  const memvit_pool_call& call;
  int64_t first, end;  // of the volumes

  // Work is shared out by what it costs: outputs at a clip's beginning have fewer taps than others. Does what begins between two
  // costs, or adds all costs up.
  int64_t run(int64_t from, int64_t until, bool only_adds) const {
    static thread_local Scratch scratch;
    const int64_t T0 = call.volumes[first].grid[0], H0 = call.volumes[first].grid[1];
    int64_t cost = 0;
    for (int64_t b = 0; b < call.batch; b++)
      for (int64_t t = 0; t < T0; t++)
        for (int64_t h = 0; h < H0; h++)
          for (int64_t v = first; v < end; v++)
            for (int64_t p = 0; p < call.num_poolings; p++) {
              const memvit_pooling& pool = call.poolings[p];
              if (pool.source != v || t % pool.stride[0] || h % pool.stride[1]) continue;
              const int64_t out_t = t / pool.stride[0], out_h = h / pool.stride[1], at = cost;
              const int64_t taps = taps_within(pool, 0, out_t, T0) * taps_within(pool, 1, out_h, H0) * pool.kernel[2];
              cost += pool.out_grid[2] * (taps + NORM_COST);
              if (only_adds || at < from) continue;
              if (at >= until) return cost;
              PoolNorm<T, U>{call, call.volumes[v]}.row(pool, b, out_t, out_h, scratch);
            }
    return cost;
  }

  void share(memvit_parallel_for parallel_for) const {
    parallel_for(0, run(0, 0, true), 1, [](int64_t begin, int64_t until, void* context) {
      const FlushToZero flush;
      static_cast<const PoolRows*>(context)->run(begin, until, false);
    }, const_cast<PoolRows*>(this));
  }
};

// What pools results waits for all of these. Most of what a thread reads then it has written itself.
template <typename T, typename U>
static int32_t run_pool_norm(const memvit_pool_call& call, memvit_parallel_for parallel_for) {
  PoolRows<T, U>{call, 0, 1}.share(parallel_for);
  if (call.num_volumes > 1) PoolRows<U, U>{call, 1, call.num_volumes}.share(parallel_for);
  return 0;
}

int32_t pool_norm(const memvit_pool_call* call, memvit_parallel_for parallel_for) {
  for (int64_t p = 0; p < call->num_poolings; p++) {
    const memvit_pooling& pool = call->poolings[p];
    if (pool.head_channels % W || call->channels % pool.head_channels) return 1;
    for (int axis = 0; axis < 2; axis++)  // every row of outputs must begin at a row of inputs, and the other way round
      if ((call->volumes[pool.source].grid[axis] - 1) / pool.stride[axis] + 1 != pool.out_grid[axis]) return 1;
  }
  for (int64_t v = 2; v < call->num_volumes; v++)
    for (int axis = 0; axis < 3; axis++)
      if (call->volumes[v].grid[axis] != call->volumes[1].grid[axis]) return 1;
  if (call->dtype == MEMVIT_FLOAT32)
    return call->out_dtype == MEMVIT_FLOAT32 ? run_pool_norm<float, float>(*call, parallel_for)
                                             : run_pool_norm<float, bf16>(*call, parallel_for);
  return call->out_dtype == MEMVIT_FLOAT32 ? run_pool_norm<bf16, float>(*call, parallel_for)
                                           : run_pool_norm<bf16, bf16>(*call, parallel_for);
}
