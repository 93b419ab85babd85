// Attention on AMX's tiles: softmax(q k^T scale + positions) v, 32 queries and 32 keys at a time.
//
// Logits of a block of queries and a chunk of keys stay in the cache. What relative positions add to a logit is one more
// matrix product, of a query's values with ones where a key takes them, so that the logits come out of the tiles complete.
// While the tiles make those of one chunk, the vector units make weights (2^x) of the chunk before, which then weigh the
// values. Positions, softmax and sums are in float32 whatever the operands are; these are sums of PARTS bfloat16 numbers, see
// blocks.inl. Included inside a namespace, after queries.inl and blocks.inl.

constexpr int64_t CHUNK = 16;  // panels of 32 keys whose logits stay in cache

// Logits of a chunk that become weights, left operands of the products with the values, some at a time.
template <int PARTS>
struct Weights {
  const float* scores;   // (panels, 32 queries, 32 keys)
  bf16* out;
  int64_t num_keys = 0;
  int64_t at = 0, end = 0, at_once = 1;  // rows of panels: done, of all, between products
  float factor;           // of the logits, with log2(e)
  float offsets[BLOCK];   // of each query: what its largest logit comes to
  Vec sums[BLOCK];

  void some() { weigh(at_once); }
  void weigh(int64_t count) {
    const Vec scale = set1(factor);
    for (const int64_t until = smaller(end, at + count); at < until; at++) {
      const int64_t panel = at / BLOCK, row = at % BLOCK, left = num_keys - panel * BLOCK;
      const Vec offset = set1(-offsets[row]);
      Vec low = exp2_of<(PARTS > 1)>(fma(load(scores + at * BLOCK), scale, offset));
      Vec high = exp2_of<(PARTS > 1)>(fma(load(scores + at * BLOCK + W), scale, offset));
      if (left < BLOCK) {
        low = first(smaller(left, W), low, 0.f);
        high = first(larger(left - W, 0), high, 0.f);
      }
      sums[row] = add(sums[row], add(low, high));
      split<PARTS>(low, high, out + (panel * PARTS * BLOCK + row) * BLOCK);
    }
  }
};

// Sixteen of 48 numbers, or zeros: of three vectors, one after the other.
struct Selection {
  Ints index;
  __mmask16 from_two, from_third;
  Selection(const int32_t* p) : index(_mm512_loadu_si512(p)) {
    from_third = _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(2 * W));
    from_two = _mm512_cmpge_epi32_mask(index, no_ints()) & ~from_third;
  }
  Vec of(Vec x, Vec y, Vec z) const {
    return _mm512_mask_permutexvar_ps(_mm512_maskz_permutex2var_ps(from_two, x, index, y), from_third, index, z);
  }
};

// Which columns of a product give keys what positions add to their logits. A key takes one entry of every term. Entries that
// go together (those of past clips, of the present one) form groups: whoever takes one of a group takes one of it in every
// term. So in each group the terms but the first can give up one entry, if it is subtracted from their others and added to
// the first term's. memvit_16x4 with two past clips needs 30 columns that way, and a block of the depth has 32.
struct PositionColumns {
  static constexpr int MOST = 3;
  bool is_narrow;             // entries have given up some, and all columns fit into a block; no term has more than W entries
  int64_t starts[MOST];       // else: where each term's entries begin among all that keys take
  int64_t count = 0;
  int32_t column[MOST][W];    // of each entry; -1: given up
  int32_t sources[MOST][2 * W];  // for each column, which values of a query (of the terms' W, one after the other) add up to
                                 // it, or -1
  float signs[2 * W];         // of the second one

  explicit PositionColumns(const memvit_attention_call& call) {
    int64_t used[MOST] = {};
    bool is_small = call.num_terms > 0;
    for (int64_t t = 0; t < call.num_terms; t++) {
      int32_t most = -1;
      for (int64_t j = 0; j < call.num_keys; j++) most = call.terms[t].entry[j] > most ? call.terms[t].entry[j] : most;
      starts[t] = count;
      used[t] = most + 1;
      count += used[t];
      is_small &= call.terms[t].entries == W;
    }
    is_narrow = is_small && narrow(call, used);
  }

 private:
  bool narrow(const memvit_attention_call& call, const int64_t (&used)[MOST]) {
    // Entries of terms but the first belong to the group of an entry of the first, which may turn out to be that of another.
    int32_t leader[W], group[MOST][W];
    for (int e = 0; e < W; e++) leader[e] = e;
    for (auto& term : group)
      for (int32_t& g : term) g = -1;
    const auto lead = [&](int32_t e) {
      while (leader[e] != e) e = leader[e];
      return e;
    };
    for (int64_t j = 0; j < call.num_keys; j++) {
      const int32_t first = call.terms[0].entry[j];
      for (int64_t t = 1; t < call.num_terms; t++) {
        const int32_t e = call.terms[t].entry[j];
        if ((e < 0) != (first < 0)) return false;
        if (e < 0) continue;
        if (group[t][e] < 0) group[t][e] = first;
        else leader[lead(first)] = lead(group[t][e]);
      }
    }
    for (auto& term : sources)
      for (int32_t& value : term) value = -1;
    for (float& sign : signs) sign = 1;
    int32_t columns = 0, given_up[MOST][W];
    for (auto& term : given_up)
      for (int32_t& e : term) e = -1;
    for (int64_t t = call.num_terms - 1; t >= 0; t--)
      for (int32_t e = 0; e < used[t]; e++) {
        column[t][e] = -1;
        const int32_t own = t ? (group[t][e] < 0 ? -1 : lead(group[t][e])) : lead(e);
        if (own < 0) continue;  // no key takes it
        if (t && given_up[t][own] < 0) {
          given_up[t][own] = e;
          continue;
        }
        if (columns == 2 * W) return false;
        sources[0][columns] = static_cast<int32_t>(t * W + e);
        if (t) {
          sources[1][columns] = static_cast<int32_t>(t * W) + given_up[t][own];
          signs[columns] = -1;
        } else {
          for (int64_t other = 1; other < call.num_terms; other++)
            if (given_up[other][own] >= 0) sources[other][columns] = static_cast<int32_t>(other * W) + given_up[other][own];
        }
        column[t][e] = columns++;
      }
    count = columns;
    return true;
  }
};

template <typename T, int PARTS>
struct TiledAttention : Queries<T> {
  using Base = Queries<T>;
  using Base::call, Base::plan_of, Base::key, Base::query, Base::value_width, Base::value_starts;
  static constexpr int VALUE_PARTS = PARTS == 1 ? 2 : PARTS;  // of what positions add
  static constexpr int TABLE_PARTS = sizeof(T) == 4 ? 3 : 1;   // of their tables

  const PositionColumns columns;
  int64_t depth_blocks, max_panels, position_blocks;
  bf16* packed;             // keys and values of every stream and head
  bf16* entries;            // of every plan: for every panel, ones where keys take entries
  int64_t packed_size, entries_size;

  TiledAttention(const memvit_attention_call& call, KeyPlan* plans) : Base(call, plans, BLOCK), columns(call) {
    depth_blocks = blocks_of(call.head_dim);
    max_panels = blocks_of(call.num_keys);
    position_blocks = blocks_of(columns.count);
    packed_size = 2 * max_panels * depth_blocks * PARTS * BLOCK_SIZE;
    entries_size = max_panels * position_blocks * BLOCK_SIZE;
  }

  void pack_entries(int64_t p) const {
    const KeyPlan& plan = this->plans[p];
    bf16* out = entries + p * entries_size;
    __builtin_memset(out, 0, entries_size * sizeof(bf16));
    constexpr bf16 ONE = 0x3f80;
    for (int64_t j = 0; j < plan.num_keys; j++)
      for (int64_t t = 0; t < call.num_terms; t++) {
        const int64_t entry = call.terms[t].entry[plan.keys[j]];
        if (entry < 0) continue;
        const int64_t at = columns.is_narrow ? columns.column[t][entry] : columns.starts[t] + entry;
        if (at < 0) continue;
        const int64_t pair = at % W, element = at % BLOCK / W;
        out[(j / BLOCK * position_blocks + at / BLOCK) * BLOCK_SIZE + j % BLOCK / W * TILE_SIZE + pair * BLOCK + j % W * 2 +
            element] = ONE;
      }
  }

  // A panel's keys as columns, and its values as rows, of right operands.
  void pack(int64_t b, int64_t head, int64_t panel) const {
    const KeyPlan& plan = plan_of(b);
    bf16* k_out = packed + (b * call.heads + head) * packed_size + panel * depth_blocks * PARTS * BLOCK_SIZE;
    for (int64_t half = 0; half < 2; half++)
      for (int64_t block = 0; block < depth_blocks; block++) {
        const int64_t left = call.head_dim - block * BLOCK;
        Ints lines[PARTS][W];
        for (int64_t i = 0; i < W; i++) {
          const int64_t j = panel * BLOCK + half * W + i;
          alignas(64) bf16 parts[PARTS][BLOCK];
          if (j < plan.num_keys) {
            const T* row = key(call.k, plan.keys[j], b, head) + block * BLOCK;
            split<PARTS, true>(load(row), left > W ? load(row + W) : set1(0), parts[0], BLOCK);
          } else {
            split<PARTS, true>(set1(0), set1(0), parts[0], BLOCK);
          }
          for (int part = 0; part < PARTS; part++) lines[part][i] = load_ints(reinterpret_cast<const int32_t*>(parts[part]), W);
        }
        for (int part = 0; part < PARTS; part++) {
          transpose(lines[part]);
          bf16* to = k_out + (block * PARTS + part) * BLOCK_SIZE + half * TILE_SIZE;
          for (int64_t i = 0; i < W; i++) store_ints(to + i * BLOCK, lines[part][i]);
        }
      }
    bf16* v_out = packed + (b * call.heads + head) * packed_size + packed_size / 2 + panel * PARTS * BLOCK_SIZE;
    constexpr int64_t APART = PARTS == 1 ? 1 : W;  // what rows make a pair
    for (int64_t i = 0; i < W; i++) {
      const int64_t j = panel * BLOCK + (PARTS == 1 ? 2 * i : i);
      const T* row = j < plan.num_keys ? key(call.v, plan.keys[j], b, head) : nullptr;
      const T* other = j + APART < plan.num_keys ? key(call.v, plan.keys[j + APART], b, head) : nullptr;
      for (int64_t c = 0; c < depth_blocks * BLOCK; c += W) {
        bf16* to = v_out + c / BLOCK * max_panels * PARTS * BLOCK_SIZE + c % BLOCK / W * TILE_SIZE + i * BLOCK;
        const bool is_there = c < call.head_dim;
        if constexpr (PARTS == 1) {
          store_ints(to, row && is_there ? pairs_of(row + c, other ? other + c : nullptr) : no_ints());
        } else {
          split<PARTS, true>(row && is_there ? load(row + c) : set1(0), other && is_there ? load(other + c) : set1(0), to);
        }
      }
    }
  }

  // values[i - begin, :] = q[i] . table[row[i]] for the queries of a macro tile, which are packed in q. Those of the same
  // table row are gathered into one tile.
  void position_values(const bf16* q, int64_t begin, int64_t end, float* values, Parts parts) const {
    bf16* rows = parts.take<bf16>(depth_blocks * PARTS * TILE_SIZE);
    float* results = parts.take<float>(4 * W * W);
    for (int64_t t = 0; t < call.num_terms; t++) {
      const memvit_term& term = call.terms[t];
      float* own = values + value_starts[t];
      this->for_groups(t, begin, end, W, parts, [&](int64_t r, const int32_t* order, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
          const bf16* from = q + (order[i] / BLOCK * depth_blocks * PARTS * BLOCK + order[i] % BLOCK) * BLOCK;
          for (int64_t k = 0; k < depth_blocks * PARTS; k++)
            store_ints(rows + k * TILE_SIZE + i * BLOCK, _mm512_loadu_si512(from + k * BLOCK_SIZE));
        }
        const bf16* table = static_cast<const bf16*>(term.table) + r * term.entries * depth_blocks * TABLE_PARTS * BLOCK;
        for (int64_t e = 0; e < term.entries; e += W, table += depth_blocks * TABLE_PARTS * TILE_SIZE) {
          row_products<PARTS, TABLE_PARTS>(rows, table, depth_blocks, results);
          for (int64_t i = 0; i < count; i++) {
            const float* sums = results + i * W;
            const Vec one = add(load(sums), load(sums + W * W)), other = add(load(sums + 2 * W * W), load(sums + 3 * W * W));
            store(own + order[i] * value_width + e, add(one, other));
          }
        }
      }, [&](int64_t i) {
        for (int64_t e = 0; e < term.entries; e += W) store(own + i * value_width + e, set1(0));
      });
    }
  }

  // What positions add to the logits of queries, as left operands, over the factor that all logits get later.
  void pack_values(const float* values, int64_t rows, float factor, float* line, bf16* out) const {
    const Vec over = set1(1.f / factor);
    if (columns.is_narrow) {
      const Selection own[2] = {columns.sources[0], columns.sources[0] + W}, second[2] = {columns.sources[1], columns.sources[1] + W},
                      third[2] = {columns.sources[2], columns.sources[2] + W};
      const Vec signs[2] = {load(columns.signs), load(columns.signs + W)};
      for (int64_t r = 0; r < BLOCK; r++) {
        const float* row = values + smaller(r, rows - 1) * value_width;
        const Vec x = load(row), y = call.num_terms > 1 ? load(row + W) : x, z = call.num_terms > 2 ? load(row + 2 * W) : x;
        Vec halves[2];
        for (int i = 0; i < 2; i++)
          halves[i] = mul(add(fma(second[i].of(x, y, z), signs[i], own[i].of(x, y, z)), third[i].of(x, y, z)), over);
        split<VALUE_PARTS>(halves[0], halves[1], out + r * BLOCK);
      }
      return;
    }
    for (int64_t r = 0; r < BLOCK; r++) {
      // A vector's end may be beyond its term's entries: what follows is written over it.
      for (int64_t t = 0; t < call.num_terms; t++)
        for (int64_t e = 0; e < call.terms[t].entries; e += W) {
          const Vec own = load(values + smaller(r, rows - 1) * value_width + value_starts[t] + e);
          store(line + columns.starts[t] + e, mul(own, over));
        }
      for (int64_t block = 0; block < position_blocks; block++)
        split<VALUE_PARTS>(load(line + block * BLOCK), load(line + block * BLOCK + W),
                           out + (block * VALUE_PARTS * BLOCK + r) * BLOCK);
    }
  }

  // Queries of a block, and how far their softmax has come.
  struct Progress {
    int64_t first_query = 0, num_queries = 0;
    int64_t first_panel = 0, panels = 0;    // the chunk whose weights are being made; none: 0
    bool is_last = false;                   // of the queries' chunks
    float highest[BLOCK], sums[BLOCK], keep[BLOCK];  // largest logits by the factor, sums, and what new maxima leave of old sums
  };

  // A chunk's logits are complete: from now on they become weights.
  void begin_weights(Weights<PARTS>& weights, Progress& progress, const float* scores, int64_t num_keys) const {
    weights.scores = scores;
    weights.num_keys = num_keys;
    weights.at = 0;
    weights.end = progress.panels * BLOCK;
    for (int64_t r = 0; r < BLOCK; r++) {
      Vec best = set1(-__builtin_inff());
      for (int64_t j = 0; j < num_keys; j += W) {
        const Vec logits = load(scores + j / BLOCK * BLOCK_SIZE + r * BLOCK + j % BLOCK);
        best = max(best, num_keys - j < W ? first(num_keys - j, logits, -__builtin_inff()) : logits);
      }
      const float top = this->larger_of(progress.highest[r], max_of(best) * weights.factor);
      progress.keep[r] = progress.first_panel ? __builtin_exp2f(progress.highest[r] - top) : 0.f;
      progress.highest[r] = weights.offsets[r] = top;
      weights.sums[r] = set1(0);
    }
  }

  // All weights of a chunk are there: they weigh its values, and the last chunk's results are written.
  void end_weights(int64_t b, int64_t head, Weights<PARTS>& weights, Progress& progress, float* out) const {
    weights.weigh(weights.end);
    const bf16* v = packed + (b * call.heads + head) * packed_size + packed_size / 2 + progress.first_panel * PARTS * BLOCK_SIZE;
    NoWork nothing;
    for (int64_t block = 0; block < depth_blocks; block++) {
      float* c = out + block * BLOCK_SIZE;
      if (progress.first_panel) {
        for (int64_t r = 0; r < BLOCK; r++)
          for (int64_t i = 0; i < BLOCK; i += W) store(c + r * BLOCK + i, mul(load(c + r * BLOCK + i), set1(progress.keep[r])));
        start_block(c);
      } else {
        start_block();
      }
      add_products<PARTS>(weights.out, v + block * max_panels * PARTS * BLOCK_SIZE, progress.panels, nothing);
      store_block(c);
    }
    for (int64_t r = 0; r < BLOCK; r++)
      progress.sums[r] = (progress.first_panel ? progress.sums[r] * progress.keep[r] : 0.f) + sum_of(weights.sums[r]);
    if (progress.is_last)
      for (int64_t r = 0; r < progress.num_queries; r++) finish(b, head, progress.first_query + r, out + r * BLOCK, progress.sums[r]);
  }

  void finish(int64_t b, int64_t head, int64_t i, const float* row, float sum) const {
    const T* q = query(i, b, head);
    T* out = static_cast<T*>(call.out.data) + b * call.out.batch_stride + i * call.out.token_stride + head * call.out.head_stride;
    const Vec over = set1(1.f / sum);
    const bool refined = call.adds_query && i >= call.num_unrefined;
    for (int64_t c = 0; c < call.head_dim; c += W) {
      const Vec x = mul(load(row + c / BLOCK * BLOCK_SIZE + c % BLOCK), over);
      store(out + c, refined ? add(x, load(q + c)) : x);
    }
  }

  void run(int64_t b, int64_t head, int64_t tile, Scratch& scratch) const {
    const KeyPlan& plan = plan_of(b);
    const int64_t begin = tile * this->tile_size, end = smaller(begin + this->tile_size, call.num_queries);
    const int64_t q_size = depth_blocks * PARTS * BLOCK_SIZE, position_size = position_blocks * VALUE_PARTS * BLOCK_SIZE;
    const size_t bytes = 4 * (this->tile_size * value_width + value_width + 2 * BLOCK + (2 * CHUNK + depth_blocks) * BLOCK_SIZE) +
                         2 * (blocks_of(end - begin) * q_size + position_size + (CHUNK * BLOCK_SIZE + depth_blocks * TILE_SIZE) * PARTS) +
                         4 * 4 * W * W + this->group_bytes() + 16 * 64;
    Parts parts{scratch.reserve(bytes)};
    float* values = parts.take<float>(this->tile_size * value_width);
    float* line = parts.take<float>(value_width + 2 * BLOCK);
    float* scores = parts.take<float>(2 * CHUNK * BLOCK_SIZE);
    float* out = parts.take<float>(depth_blocks * BLOCK_SIZE);
    bf16* queries = parts.take<bf16>(blocks_of(end - begin) * q_size);
    bf16* positions = parts.take<bf16>(position_size);
    Weights<PARTS> weights;
    weights.out = parts.take<bf16>(CHUNK * PARTS * BLOCK_SIZE);
    weights.factor = call.scale * LOG2_E;
    for (int64_t i = 0; i < value_width + 2 * BLOCK; i++) line[i] = 0;
    pack_rows<PARTS>(query(begin, b, head), call.q.token_stride, end - begin, call.head_dim, queries);
    position_values(queries, begin, end, values, parts);
    const bf16* k = packed + (b * call.heads + head) * packed_size;
    const bf16* ones = entries + (&plan - this->plans) * entries_size;
    const int64_t num_panels = blocks_of(plan.num_keys), num_chunks = (num_panels + CHUNK - 1) / CHUNK;
    Progress progress;
    float* own = scores;  // of this chunk; the other half belongs to the one before
    for (int64_t i0 = begin; i0 < end; i0 += BLOCK) {
      const int64_t num = smaller(BLOCK, end - i0);
      if (!num_chunks)
        for (int64_t i = 0; i < num; i++) finish_without_keys(b, head, i0 + i);
      const bf16* q = queries + (i0 - begin) / BLOCK * q_size;
      pack_values(values + (i0 - begin) * value_width, num, weights.factor, line, positions);
      for (int64_t chunk = 0; chunk < num_chunks; chunk++) {
        const int64_t first = chunk * num_panels / num_chunks, count = (chunk + 1) * num_panels / num_chunks - first;
        const int64_t calls = count * (depth_blocks * products_of(PARTS) + position_blocks * VALUE_PARTS);
        weights.at_once = (weights.end + calls - 1) / calls;
        for (int64_t panel = first; panel < first + count; panel++) {
          start_block();
          add_products<PARTS>(q, k + panel * q_size, depth_blocks, weights);
          add_exact_products<VALUE_PARTS>(positions, ones + panel * position_blocks * BLOCK_SIZE, position_blocks, weights);
          store_block(own + (panel - first) * BLOCK_SIZE);
        }
        if (progress.panels) end_weights(b, head, weights, progress, out);
        progress.first_panel = first;
        progress.panels = count;
        progress.first_query = i0;
        progress.num_queries = num;
        progress.is_last = chunk + 1 == num_chunks;
        for (int64_t r = 0; !chunk && r < BLOCK; r++) progress.highest[r] = -__builtin_inff();
        begin_weights(weights, progress, own, smaller(plan.num_keys - first * BLOCK, count * BLOCK));
        own = own == scores ? scores + CHUNK * BLOCK_SIZE : scores;
      }
    }
    if (progress.panels) end_weights(b, head, weights, progress, out);
  }

  void finish_without_keys(int64_t b, int64_t head, int64_t i) const {
    T* out = static_cast<T*>(call.out.data) + b * call.out.batch_stride + i * call.out.token_stride + head * call.out.head_stride;
    for (int64_t c = 0; c < call.head_dim; c += W) store(out + c, set1(__builtin_nanf("")));
  }
};

template <typename T, int PARTS>
static int32_t run_attention(const memvit_attention_call& call, memvit_parallel_for parallel_for) {
  static thread_local Scratch shared;
  const int64_t num_plans = call.key_mask && call.mask_batch_stride ? call.batch : 1;
  TiledAttention<T, PARTS> attention(call, nullptr);
  const int64_t num_vectors = attention.num_vectors;
  const int64_t plan_ints = round_up(call.num_keys + call.num_terms * num_vectors * (W + 1), 16);
  const int64_t num_packs = call.batch * call.heads;
  const size_t bytes = num_plans * (sizeof(KeyPlan) + 4 * plan_ints) +
                       2 * (num_packs * attention.packed_size + num_plans * attention.entries_size) + 8 * 64;
  Parts parts{shared.reserve(bytes)};
  attention.plans = parts.take<KeyPlan>(num_plans);
  int32_t* ints = parts.take<int32_t>(num_plans * plan_ints);
  attention.packed = parts.take<bf16>(num_packs * attention.packed_size);
  attention.entries = parts.take<bf16>(num_plans * attention.entries_size);
  for (int64_t i = 0; i < num_plans; i++, ints += plan_ints) {
    int32_t* offset = ints + call.num_keys;
    plan_keys(call, call.key_mask ? call.key_mask + i * call.mask_batch_stride : nullptr, num_vectors, ints, offset,
              offset + call.num_terms * num_vectors, attention.plans[i]);
    attention.pack_entries(i);
  }
  parallel_for(0, num_packs * attention.max_panels, 1, [](int64_t begin, int64_t end, void* context) {
    const auto& a = *static_cast<const TiledAttention<T, PARTS>*>(context);
    for (int64_t i = begin; i < end; i++) {
      const int64_t pair = i / a.max_panels;
      a.pack(pair / a.call.heads, pair % a.call.heads, i % a.max_panels);
    }
  }, &attention);
  parallel_for(0, num_packs * attention.num_tiles, 1, [](int64_t begin, int64_t end, void* context) {
    static thread_local Scratch scratch;
    const auto& a = *static_cast<const TiledAttention<T, PARTS>*>(context);
    const Tiles tiles;
    for (int64_t i = begin; i < end; i++) {
      const int64_t pair = i / a.num_tiles;
      a.run(pair / a.call.heads, pair % a.call.heads, i % a.num_tiles, scratch);
    }
  }, &attention);
  return 0;
}

int32_t attention(const memvit_attention_call* call, memvit_parallel_for parallel_for) {
  if (call->head_dim % W || call->num_terms > 3) return 1;
  if (call->dtype == MEMVIT_BFLOAT16) return run_attention<bf16, 1>(*call, parallel_for);
  if (call->parts == 2) return run_attention<float, 2>(*call, parallel_for);
  return run_attention<float, 3>(*call, parallel_for);
}
