// The largest value of each channel in windows of tokens on a grid, channels last. Included inside a namespace, after vectors.inl.

template <typename T, typename U>
static void max_pool_row(const memvit_max_pool_call& call, int64_t b, int64_t t, int64_t h) {
  const int64_t C = call.channels, *grid = call.volume.grid, *out = call.out_grid;
  const memvit_tokens& x = call.volume.x;
  const auto token = [&](int64_t n) { return static_cast<const T*>(x.data) + b * x.batch_stride + n * x.token_stride; };
  const auto first = [&](int axis, int64_t at) { return larger(at * call.stride[axis] - call.padding[axis], 0); };
  const auto end = [&](int axis, int64_t at) {
    return smaller(at * call.stride[axis] - call.padding[axis] + call.kernel[axis], grid[axis]);
  };
  const int64_t num_tokens = call.num_class + out[0] * out[1] * out[2];
  U* to = static_cast<U*>(call.out) + (b * num_tokens + call.num_class + (t * out[1] + h) * out[2]) * C;
  for (int64_t w = 0; w < out[2]; w++, to += C)
    for (int64_t c = 0; c < C; c += W) {
      Vec most = set1(-__builtin_inff());
      for (int64_t i = first(0, t); i < end(0, t); i++)
        for (int64_t j = first(1, h); j < end(1, h); j++)
          for (int64_t k = first(2, w); k < end(2, w); k++)
            most = max_or_nan(most, load(token(call.num_class + (i * grid[1] + j) * grid[2] + k) + c));
      store(to + c, most);
    }
  if (t || h) return;
  for (int64_t n = 0; n < call.num_class; n++)
    for (int64_t c = 0; c < C; c += W)
      store(static_cast<U*>(call.out) + (b * num_tokens + n) * C + c, load(token(n) + c));
}

template <typename T, typename U>
static int32_t run_max_pool(const memvit_max_pool_call& call, memvit_parallel_for parallel_for) {
  parallel_for(0, call.batch * call.out_grid[0] * call.out_grid[1], 4, [](int64_t begin, int64_t end, void* context) {
    const auto& call = *static_cast<const memvit_max_pool_call*>(context);
    const int64_t T1 = call.out_grid[0], H1 = call.out_grid[1];
    for (int64_t i = begin; i < end; i++) max_pool_row<T, U>(call, i / (T1 * H1), i / H1 % T1, i % H1);
  }, const_cast<memvit_max_pool_call*>(&call));
  return 0;
}

int32_t max_pool(const memvit_max_pool_call* call, memvit_parallel_for parallel_for) {
  if (call->channels % W) return 1;
  if (call->dtype == MEMVIT_FLOAT32) return call->out_dtype == MEMVIT_FLOAT32 ? run_max_pool<float, float>(*call, parallel_for) : 1;
  return call->out_dtype == MEMVIT_FLOAT32 ? run_max_pool<bf16, float>(*call, parallel_for)
                                           : run_max_pool<bf16, bf16>(*call, parallel_for);
}
