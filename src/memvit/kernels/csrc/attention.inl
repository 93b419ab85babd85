// softmax(q k^T scale + positions) v, tile by tile: neither logits nor position terms are ever written to memory.
//
// Keys and values of one stream and head are packed once, without the masked ones. A macro tile of queries first gets its
// position values (products with table rows, grouped by row, so that they are matrix products too); then, for MR queries
// and a block of keys at a time: logits, softmax with a running maximum, values. Accumulation, positions and softmax are in
// float32 whatever the operands are. Included inside a namespace, after queries.inl; AMX has a form of its own
// (tiled_attention.inl).

constexpr int64_t KEY_BLOCK = 480;  // keys whose logits stay in cache; a multiple of P
constexpr int64_t QUERY_GROUP = 4 * MR;  // queries that share a key block while it is in cache
static_assert(KEY_BLOCK % P == 0, "key blocks must be whole panels");

// Where each vector of W keys of a plan finds its position values.
struct Lookup {
  const int32_t* offset;    // (terms, vectors): where a term's values for this vector begin; -1: gather with absolute indices
  const int32_t* index;     // (terms, vectors, W)
};

static Lookup look_up(const memvit_attention_call& call, const KeyPlan& plan, int64_t num_vectors, int32_t* offset, int32_t* index) {
  for (int64_t t = 0; t < call.num_terms; t++) {
    const memvit_term& term = call.terms[t];
    for (int64_t vector = 0; vector * W < plan.num_keys; vector++) {
      int32_t* lanes = index + (t * num_vectors + vector) * W;
      int32_t low = INT32_MAX, high = -1;
      for (int64_t lane = 0; lane < W; lane++) {
        const int64_t j = vector * W + lane;
        lanes[lane] = j < plan.num_keys ? term.entry[plan.keys[j]] : -1;
        if (lanes[lane] < 0) continue;
        low = lanes[lane] < low ? lanes[lane] : low;
        high = lanes[lane] > high ? lanes[lane] : high;
      }
      if (high < W) low = 0;  // also where there are none
      const bool narrow = high - low < W;
      offset[t * num_vectors + vector] = narrow ? low : -1;
      for (int64_t lane = 0; narrow && lane < W; lane++)
        if (lanes[lane] >= 0) lanes[lane] -= low;
    }
  }
  return Lookup{offset, index};
}

template <typename T, typename O>
struct Attention : Queries<T> {
  using Base = Queries<T>;
  using Base::call, Base::plan_of, Base::key, Base::query, Base::value_width;
  using Base::value_starts, Base::tile_size, Base::larger_of;
  static constexpr int PAIRS = sizeof(O) == 2 ? 2 : 1;  // operands in 32 bits
  const Lookup* lookups;                  // one per plan
  int64_t num_vectors;                    // of all keys
  O* packed;
  int64_t packed_k, packed_size;          // elements of the keys, and of keys and values, of one stream and head

  Attention(const memvit_attention_call& call, KeyPlan* plans, const Lookup* lookups, int64_t num_vectors, O* packed,
            int64_t packed_k, int64_t packed_size)
      : Base(call, plans, MR), lookups(lookups), num_vectors(num_vectors), packed(packed), packed_k(packed_k),
        packed_size(packed_size) {}

  void pack(int64_t b, int64_t head) const {
    const KeyPlan& plan = plan_of(b);
    const int64_t d = call.head_dim, depth = round_up(d, 2), n = plan.num_keys;
    O* k_out = packed + (b * call.heads + head) * packed_size;
    O* v_out = k_out + packed_k;
    for (int64_t j = 0; j < round_up(n, P); j += W) {
      const T* rows[W];
      for (int64_t i = 0; i < W; i++) rows[i] = j + i < n ? key(call.k, plan.keys[j + i], b, head) : nullptr;
      pack_keys(rows, reinterpret_cast<int32_t*>(k_out + j / P * P * depth) + j % P);
    }
    const int64_t num_rows = round_up(n, DEPTH_STEP);
    for (int64_t j = 0; j < num_rows; j += PAIRS) {
      const T* row = j < n ? key(call.v, plan.keys[j], b, head) : nullptr;
      const T* next = j + 1 < n ? key(call.v, plan.keys[j + 1], b, head) : nullptr;
      for (int64_t c = 0; c < round_up(d, P); c += W) {
        int32_t* line = reinterpret_cast<int32_t*>(v_out + (c / P * num_rows + j) * P) + c % P;
        if (!row || c >= d) store_ints(line, no_ints());
        else if constexpr (PAIRS == 2) store_ints(line, pairs_of(row + c, next ? next + c : nullptr));
        else store(reinterpret_cast<float*>(line), load(row + c));
      }
    }
  }

  static constexpr int64_t DEPTH_STEP = 2;  // what depths are multiples of; that of a head's channels is one of W anyway

  // W keys as W columns of a panel, `to` being the first of them; no key: zeros.
  void pack_keys(const T* const (&rows)[W], int32_t* to) const {
    const int64_t num = call.head_dim / PAIRS;
    for (int64_t u = 0; u < num; u += W) {
      const int64_t left = smaller(W, num - u);
      Ints block[W];
      for (int i = 0; i < W; i++) {
        if (!rows[i]) block[i] = no_ints();
        else if constexpr (sizeof(O) == sizeof(T)) block[i] = load_ints(reinterpret_cast<const int32_t*>(rows[i]) + u, left);
        else block[i] = as_ints(load(rows[i] + u));
      }
      transpose(block);
      for (int64_t i = 0; i < left; i++) store_ints(to + (u + i) * P, block[i]);
    }
  }

  // values[i - begin, :] = q[i] . table[row[i]] for the queries of a macro tile, those of the same table row together.
  void position_values(int64_t b, int64_t head, int64_t begin, int64_t end, float* values, Parts parts) const {
    const int64_t d = call.head_dim;
    O* rows = parts.take<O>(MR * d);
    for (int64_t t = 0; t < call.num_terms; t++) {
      const memvit_term& term = call.terms[t];
      float* own = values + value_starts[t];
      this->for_groups(t, begin, end, MR, parts, [&](int64_t r, const int32_t* order, int64_t count) {
        const O* table = static_cast<const O*>(term.table) + r * d * term.entries;
        for (int64_t i = 0; i < MR; i++) copy_query(begin + order[smaller(i, count - 1)], b, head, rows + i * d);
        for (int64_t e = 0; e < term.entries; e += ENTRIES) {
          if (count > MR / 2) products<MR>(rows, table + e * PAIRS, term.entries, order, count, own + e);
          else products<MR / 2>(rows, table + e * PAIRS, term.entries, order, count, own + e);
        }
      }, [&](int64_t i) {
        for (int64_t e = 0; e < term.entries; e += W) store(own + i * value_width + e, set1(0));
      });
    }
  }

  static constexpr int64_t ENTRIES = 16;  // what entries are padded to multiples of

  template <int R>
  void products(const O* rows, const O* table, int64_t stride, const int32_t* order, int64_t count, float* to) const {
    constexpr int V = ENTRIES / W;
    Vec acc[R][V];
    product<R, V>(acc, rows, call.head_dim, table, call.head_dim, stride);
    for (int i = 0; i < R; i++)
      for (int v = 0; v < V; v++)
        if (i < count) store(to + order[i] * value_width + v * W, acc[i][v]);
  }

  void copy_query(int64_t i, int64_t b, int64_t head, O* to) const {
    const T* from = query(i, b, head);
    if constexpr (sizeof(O) == sizeof(T)) __builtin_memcpy(to, from, call.head_dim * sizeof(O));
    else for (int64_t c = 0; c < call.head_dim; c += W) store(to + c, load(from + c));
  }

  // Logits of MR queries and V vectors of keys, times log2(e).
  template <int V>
  void logits(const O* q, int64_t q_stride, const O* panel, int64_t num_keys, const Lookup& lookup, int64_t vector,
              const float* values, float* out, Vec (&highest)[MR]) const {
    Vec acc[MR][V];
    product<MR, V>(acc, q, q_stride, panel, call.head_dim);
    const Vec scale = set1(call.scale * LOG2_E);
    for (int v = 0; v < V; v++) {
      for (int r = 0; r < MR; r++) acc[r][v] = mul(acc[r][v], scale);
      for (int64_t t = 0; t < call.num_terms; t++) {
        const int64_t at = t * num_vectors + vector + v;
        const float* own = values + value_starts[t];
        const Picker picker(lookup.index + at * W);
        if (lookup.offset[at] >= 0) {
          own += lookup.offset[at];
          for (int r = 0; r < MR; r++) acc[r][v] = add(acc[r][v], picker.near(own + r * value_width));
        } else {
          for (int r = 0; r < MR; r++) acc[r][v] = add(acc[r][v], picker.far(own + r * value_width));
        }
      }
      const int64_t left = num_keys - (vector + v) * W;
      for (int r = 0; r < MR; r++) {
        const Vec logit = left < W ? first(left, acc[r][v], -__builtin_inff()) : acc[r][v];
        store(out + r * KEY_BLOCK + v * W, logit);
        highest[r] = max(highest[r], logit);
      }
    }
  }

  template <int V>
  void weigh(const O* weights, const O* panel, int64_t depth, float* out, int64_t out_stride, const float* keep) const {
    Vec acc[MR][V];
    for (int r = 0; r < MR; r++)
      for (int v = 0; v < V; v++) acc[r][v] = keep ? mul(load(out + r * out_stride + v * W), set1(keep[r])) : set1(0);
    multiply<MR, V>(acc, weights, KEY_BLOCK, panel, depth);
    for (int r = 0; r < MR; r++)
      for (int v = 0; v < V; v++) store(out + r * out_stride + v * W, acc[r][v]);
  }

  // One block of keys for MR queries: brings their sums, maxima and weighted values up to date.
  void attend(const O* q, int64_t q_stride, const O* k, const O* v, const KeyPlan& plan, const Lookup& lookup, int64_t key0,
              const float* values, float* scores, O* weights, float* out, int64_t out_width, float* highest, float* sums) const {
    const int64_t d = call.head_dim, depth = round_up(d, 2), n = smaller(KEY_BLOCK, plan.num_keys - key0);
    Vec best[MR];
    for (int r = 0; r < MR; r++) best[r] = set1(-__builtin_inff());
    for (int64_t j = 0; j < n; j += P) {
      const O* panel = k + (key0 + j) / P * P * depth;
      const int64_t vector = (key0 + j) / W;
      if (n - j > 2 * W) logits<3>(q, q_stride, panel, plan.num_keys, lookup, vector, values, scores + j, best);
      else if (n - j > W) logits<2>(q, q_stride, panel, plan.num_keys, lookup, vector, values, scores + j, best);
      else logits<1>(q, q_stride, panel, plan.num_keys, lookup, vector, values, scores + j, best);
    }
    float keep[MR];
    for (int r = 0; r < MR; r++) {
      const float top = larger_of(highest[r], max_of(best[r]));
      keep[r] = key0 ? __builtin_exp2f(highest[r] - top) : 0.f;
      highest[r] = top;
      Vec sum = set1(0);
      float* row = scores + r * KEY_BLOCK;
      for (int64_t j = 0; j < n; j += W) {
        Vec weight = exp2_of<sizeof(O) == 4>(sub(load(row + j), set1(top)));
        if (n - j < W) weight = first(n - j, weight, 0.f);
        sum = add(sum, weight);
        store(weights + r * KEY_BLOCK + j, weight);
      }
      sums[r] = sums[r] * keep[r] + sum_of(sum);
    }
    const int64_t rows = round_up(plan.num_keys, DEPTH_STEP);
    for (int64_t c = 0; c < d; c += P) {
      const O* panel = v + (c / P * rows + key0) * P;
      const int64_t num = sizeof(O) == 2 ? round_up(n, DEPTH_STEP) : n;
      const float* kept = key0 ? keep : nullptr;
      if (d - c > 2 * W) weigh<3>(weights, panel, num, out + c, out_width, kept);
      else if (d - c > W) weigh<2>(weights, panel, num, out + c, out_width, kept);
      else weigh<1>(weights, panel, num, out + c, out_width, kept);
    }
  }

  void run(int64_t b, int64_t head, int64_t tile, Scratch& scratch) const {
    const KeyPlan& plan = plan_of(b);
    const int64_t d = call.head_dim, begin = tile * tile_size, end = smaller(begin + tile_size, call.num_queries);
    const int64_t out_width = round_up(d, P);
    const size_t bytes = 4 * (tile_size * value_width + 2 * MR * KEY_BLOCK + QUERY_GROUP * (out_width + d + 2) + MR * d + W) +
                         16 * 64 + this->group_bytes();
    Parts parts{scratch.reserve(bytes)};
    float* values = parts.take<float>(tile_size * value_width + W);
    float* scores = parts.take<float>(MR * KEY_BLOCK);
    O* weights = sizeof(O) == sizeof(float) ? reinterpret_cast<O*>(scores) : parts.take<O>(MR * KEY_BLOCK);
    float* out = parts.take<float>(QUERY_GROUP * out_width);
    float* highest = parts.take<float>(QUERY_GROUP);
    float* sums = parts.take<float>(QUERY_GROUP);
    O* queries = parts.take<O>(QUERY_GROUP * d);
    position_values(b, head, begin, end, values, parts);

    const O* k = packed + (b * call.heads + head) * packed_size;
    const O* v = k + packed_k;
    for (int64_t i0 = begin; i0 < end; i0 += QUERY_GROUP) {
      const int64_t num = smaller(QUERY_GROUP, end - i0), padded = round_up(num, MR);
      const O* q;
      int64_t q_stride;
      if (sizeof(O) == sizeof(T) && num == padded) {
        q = reinterpret_cast<const O*>(query(i0, b, head));
        q_stride = call.q.token_stride;
      } else {  // converted, or filled up by repeating the last query
        for (int64_t i = 0; i < padded; i++) {
          copy_query(i0 + smaller(i, num - 1), b, head, queries + i * d);
        }
        q = queries, q_stride = d;
      }
      for (int64_t i = 0; i < padded; i++) highest[i] = -__builtin_inff(), sums[i] = 0;
      for (int64_t key0 = 0; key0 < plan.num_keys; key0 += KEY_BLOCK)
        for (int64_t i = 0; i < padded; i += MR)
          attend(q + i * q_stride, q_stride, k, v, plan, lookups[&plan - this->plans], key0, values + (i0 - begin + i) * value_width, scores, weights,
                 out + i * out_width, out_width, highest + i, sums + i);
      for (int64_t i = 0; i < num; i++) finish(b, head, i0 + i, out + i * out_width, plan.num_keys ? sums[i] : 0.f);
    }
  }

  void finish(int64_t b, int64_t head, int64_t i, const float* row, float sum) const {
    const T* q = query(i, b, head);
    T* out = static_cast<T*>(call.out.data) + b * call.out.batch_stride + i * call.out.token_stride + head * call.out.head_stride;
    const Vec over = set1(1.f / sum);
    const bool refined = call.adds_query && i >= call.num_unrefined;
    for (int64_t c = 0; c < call.head_dim; c += W) {
      Vec x = mul(load(row + c), over);
      store(out + c, refined ? add(x, load(q + c)) : x);
    }
  }
};

template <typename T, typename O>
static int32_t run_attention(const memvit_attention_call& call, memvit_parallel_for parallel_for) {
  static thread_local Scratch shared;
  const int64_t num_plans = call.key_mask && call.mask_batch_stride ? call.batch : 1;
  const int64_t num_vectors = (call.num_keys + W - 1) / W, depth = round_up(call.head_dim, 2);
  const int64_t packed_k = round_up(call.num_keys, P) * depth;
  const int64_t packed_size = packed_k + round_up(call.head_dim, P) * round_up(call.num_keys, W);
  const int64_t plan_ints = round_up(call.num_keys + call.num_terms * num_vectors * (W + 1), 16);
  const size_t bytes = num_plans * (sizeof(KeyPlan) + sizeof(Lookup) + 4 * plan_ints) +
                       call.batch * call.heads * packed_size * sizeof(O) + 8 * 64;
  Parts parts{shared.reserve(bytes)};
  KeyPlan* plans = parts.take<KeyPlan>(num_plans);
  Lookup* lookups = parts.take<Lookup>(num_plans);
  int32_t* ints = parts.take<int32_t>(num_plans * plan_ints);
  for (int64_t i = 0; i < num_plans; i++, ints += plan_ints) {
    int32_t* offset = ints + call.num_keys;
    plans[i] = plan_keys(call, call.key_mask ? call.key_mask + i * call.mask_batch_stride : nullptr, ints);
    lookups[i] = look_up(call, plans[i], num_vectors, offset, offset + call.num_terms * num_vectors);
  }
  Attention<T, O> attention(call, plans, lookups, num_vectors, parts.take<O>(call.batch * call.heads * packed_size), packed_k,
                            packed_size);

  const int64_t num_packs = call.batch * call.heads;
  parallel_for(0, num_packs, 1, [](int64_t begin, int64_t end, void* context) {
    const FlushToZero flush;
    const auto& a = *static_cast<const Attention<T, O>*>(context);
    for (int64_t i = begin; i < end; i++) a.pack(i / a.call.heads, i % a.call.heads);
  }, &attention);
  parallel_for(0, num_packs * attention.num_tiles, 1, [](int64_t begin, int64_t end, void* context) {
    const FlushToZero flush;
    static thread_local Scratch scratch;
    const auto& a = *static_cast<const Attention<T, O>*>(context);
    for (int64_t i = begin; i < end; i++) {
      const int64_t pair = i / a.num_tiles;
      a.run(pair / a.call.heads, pair % a.call.heads, i % a.num_tiles, scratch);
    }
  }, &attention);
  return 0;
}

int32_t attention(const memvit_attention_call* call, memvit_parallel_for parallel_for) {
  if (call->head_dim % W || call->num_terms > 3) return 1;
  if (call->dtype == MEMVIT_FLOAT32) return run_attention<float, float>(*call, parallel_for);
#if MEMVIT_LEVEL >= 3
  return run_attention<bf16, bf16>(*call, parallel_for);
#else
  return run_attention<bf16, float>(*call, parallel_for);
#endif
}
