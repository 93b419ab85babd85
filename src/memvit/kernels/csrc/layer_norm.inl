// LayerNorm, alone or of a sum that is wanted too. Included inside a namespace, after norm.inl.

template <typename T, typename A, typename U>
static int32_t run_layer_norm(const memvit_norm_call& call, memvit_parallel_for parallel_for) {
  parallel_for(0, call.rows, 64, [](int64_t begin, int64_t end, void* context) {
    const FlushToZero flush;
    static thread_local Scratch scratch;
    const auto& call = *static_cast<const memvit_norm_call*>(context);
    const int64_t C = call.channels;
    float* row = reinterpret_cast<float*>(scratch.reserve(4 * C));
    for (int64_t n = begin; n < end; n++) {
      const T* x = static_cast<const T*>(call.x) + n * C;
      const A* added = call.added ? static_cast<const A*>(call.added) + n * C : nullptr;
      for (int64_t i = 0; i < C; i += W) {
        Vec value = load(x + i);
        if (added) {
          value = add(value, load(added + i));
          store(static_cast<T*>(call.sum) + n * C + i, value);
        }
        store(row + i, value);
      }
      normalize(row, C, call.weight, call.bias, call.eps, static_cast<U*>(call.out) + n * C);
    }
  }, const_cast<memvit_norm_call*>(&call));
  return 0;
}

int32_t layer_norm(const memvit_norm_call* call, memvit_parallel_for parallel_for) {
  if (call->channels % W) return 1;
  const bool x = call->dtype, added = call->added_dtype, out = call->out_dtype;  // true: bfloat16
  if (!x && !added && !out) return run_layer_norm<float, float, float>(*call, parallel_for);
  if (!x && !added && out) return run_layer_norm<float, float, bf16>(*call, parallel_for);
  if (!x && added && out) return run_layer_norm<float, bf16, bf16>(*call, parallel_for);
  if (!x && added && !out) return run_layer_norm<float, bf16, float>(*call, parallel_for);
  if (x && added && out) return run_layer_norm<bf16, bf16, bf16>(*call, parallel_for);
  return 1;
}
