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

template <typename T, int PARTS>
struct TiledAttention : Queries<T> {
  using Base = Queries<T>;
  using Base::call, Base::plan_of, Base::key, Base::query, Base::value_width, Base::value_starts;
  static constexpr int VALUE_PARTS = PARTS == 1 ? 2 : PARTS;  // of what positions add
  static constexpr int TABLE_PARTS = sizeof(T) == 4 ? 3 : 1;   // of their tables

  const SingleBlock single;
  PositionBlocks* blocks;   // of every plan
  int64_t depth_blocks, max_panels;
  bf16* packed;             // keys and values of every stream and head
  int64_t packed_size;

  TiledAttention(const memvit_attention_call& call, KeyPlan* plans) : Base(call, plans, BLOCK), single(call) {
    depth_blocks = blocks_of(call.head_dim);
    max_panels = blocks_of(call.num_keys);
    packed_size = 2 * max_panels * depth_blocks * PARTS * BLOCK_SIZE;
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

  // What positions add to the logits of a block of queries, as left operands of the blocks from `first` to `end`, over the
  // factor that all logits get later.
  void pack_values(const PositionBlocks& plan, const float* values, int64_t rows, float factor, int64_t first, int64_t end,
                   bf16* out) const {
    for (int64_t block = first; block < end; block++, out += VALUE_PARTS * BLOCK_SIZE)
      for (int64_t r = 0; r < BLOCK; r++) {
        const float* row = values + smaller(r, rows - 1) * value_width;
        if (single.exists) single.template pack<VALUE_PARTS>(row, call.num_terms, 1.f / factor, out + r * BLOCK);
        else plan.template pack<VALUE_PARTS>(block, row, 1.f / factor, out + r * BLOCK);
      }
  }

  // How far the softmax of a block of queries has come: largest logits by the factor, and sums.
  struct Progress {
    float highest[BLOCK], sums[BLOCK];
  };

  // The chunk whose weights are being made.
  struct Pending {
    int64_t block, first_panel, panels = 0;  // none: 0
    bool is_last;                            // of the chunks
    float keep[BLOCK];                       // what new maxima leave of sums and results
  };

  // A chunk's logits are complete: from now on they become weights.
  void begin_weights(Weights<PARTS>& weights, Pending& pending, Progress& progress, const float* scores, int64_t num_keys) const {
    weights.scores = scores;
    weights.num_keys = num_keys;
    weights.at = 0;
    weights.end = pending.panels * BLOCK;
    for (int64_t r = 0; r < BLOCK; r++) {
      Vec best = set1(-__builtin_inff());
      for (int64_t j = 0; j < num_keys; j += W) {
        const Vec logits = load(scores + j / BLOCK * BLOCK_SIZE + r * BLOCK + j % BLOCK);
        best = max(best, num_keys - j < W ? first(num_keys - j, logits, -__builtin_inff()) : logits);
      }
      const float before = pending.first_panel ? progress.highest[r] : -__builtin_inff();
      const float top = this->larger_of(before, max_of(best) * weights.factor);
      pending.keep[r] = pending.first_panel ? __builtin_exp2f(before - top) : 0.f;
      progress.highest[r] = weights.offsets[r] = top;
      weights.sums[r] = set1(0);
    }
  }

  // All weights of a chunk are there: they weigh its values. `out` belongs to the block of queries.
  void end_weights(Weights<PARTS>& weights, const Pending& pending, Progress& progress, const bf16* v, float* out) const {
    weights.weigh(weights.end);
    NoWork nothing;
    for (int64_t block = 0; block < depth_blocks; block++) {
      float* c = out + block * BLOCK_SIZE;
      if (pending.first_panel) {
        for (int64_t r = 0; r < BLOCK; r++)
          for (int64_t i = 0; i < BLOCK; i += W) store(c + r * BLOCK + i, mul(load(c + r * BLOCK + i), set1(pending.keep[r])));
        start_block(c);
      } else {
        start_block();
      }
      add_products<PARTS>(weights.out, v + (block * max_panels + pending.first_panel) * PARTS * BLOCK_SIZE, pending.panels,
                          nothing);
      store_block(c);
    }
    for (int64_t r = 0; r < BLOCK; r++)
      progress.sums[r] = (pending.first_panel ? progress.sums[r] * pending.keep[r] : 0.f) + sum_of(weights.sums[r]);
  }

  void finish(int64_t b, int64_t head, int64_t i, const float* row, float sum) const {
    const T* q = query(i, b, head);
    T* out = static_cast<T*>(call.out.data) + b * call.out.batch_stride + i * call.out.token_stride + head * call.out.head_stride;
    const Vec over = set1(1.f / sum);
    const bool refined = call.adds_query && i >= call.num_unrefined;
    for (int64_t c = 0; c < call.head_dim; c += W) {
      const Vec x = row ? mul(load(row + c / BLOCK * BLOCK_SIZE + c % BLOCK), over) : set1(__builtin_nanf(""));
      store(out + c, refined ? add(x, load(q + c)) : x);
    }
  }

  // The results of a macro tile. Chunk by chunk of keys, which stay in cache for all its blocks of queries.
  void run(int64_t b, int64_t head, int64_t tile, Scratch& scratch) const {
    const KeyPlan& plan = plan_of(b);
    const PositionBlocks& positions_of = blocks[&plan - this->plans];
    const int64_t begin = tile * this->tile_size, end = smaller(begin + this->tile_size, call.num_queries);
    const int64_t num_blocks = blocks_of(end - begin), num_panels = blocks_of(plan.num_keys);
    const int64_t num_chunks = (num_panels + CHUNK - 1) / CHUNK;
    const int64_t q_size = depth_blocks * PARTS * BLOCK_SIZE, out_size = depth_blocks * BLOCK_SIZE;
    const int64_t position_size = smaller(MOST_TERMS * CHUNK, positions_of.num_blocks) * VALUE_PARTS * BLOCK_SIZE;
    Parts parts{scratch.reserve(
        4 * (this->tile_size * value_width + 2 * CHUNK * BLOCK_SIZE + num_blocks * out_size + 4 * W * W) +
        2 * (num_blocks * q_size + position_size + (CHUNK * BLOCK_SIZE + depth_blocks * TILE_SIZE) * PARTS) +
        num_blocks * sizeof(Progress) + this->group_bytes() + 16 * 64)};
    float* values = parts.take<float>(this->tile_size * value_width);
    float* scores = parts.take<float>(2 * CHUNK * BLOCK_SIZE);
    float* out = parts.take<float>(num_blocks * out_size);
    bf16* queries = parts.take<bf16>(num_blocks * q_size);
    bf16* positions = parts.take<bf16>(position_size);
    Progress* progress = parts.take<Progress>(num_blocks);
    Weights<PARTS> weights;
    weights.out = parts.take<bf16>(CHUNK * PARTS * BLOCK_SIZE);
    weights.factor = call.scale * LOG2_E;
    pack_rows<PARTS>(query(begin, b, head), call.q.token_stride, end - begin, call.head_dim, queries);
    position_values(queries, begin, end, values, parts);

    const bf16* k = packed + (b * call.heads + head) * packed_size;
    const bf16* v = k + packed_size / 2;
    Pending pending;
    const auto end_pending = [&] {
      if (!pending.panels) return;
      float* own = out + pending.block * out_size;
      end_weights(weights, pending, progress[pending.block], v, own);
      for (int64_t i = begin + pending.block * BLOCK; pending.is_last && i < smaller(begin + (pending.block + 1) * BLOCK, end); i++)
        finish(b, head, i, own + (i - begin) % BLOCK * BLOCK, progress[pending.block].sums[(i - begin) % BLOCK]);
    };
    for (int64_t chunk = 0, turn = 0; chunk < num_chunks; chunk++) {
      const int64_t first = chunk * num_panels / num_chunks, last = (chunk + 1) * num_panels / num_chunks;
      const int64_t num_keys = smaller(plan.num_keys, last * BLOCK) - first * BLOCK;
      // Groups of blocks follow one another, as their panels do.
      const int64_t first_block = positions_of.first[first], end_block = positions_of.first[last - 1] + positions_of.count[last - 1];
      for (int64_t block = 0; block < num_blocks; block++, turn++) {
        pack_values(positions_of, values + block * BLOCK * value_width, smaller(BLOCK, end - begin - block * BLOCK),
                    weights.factor, first_block, end_block, positions);
        float* own = scores + turn % 2 * CHUNK * BLOCK_SIZE;  // the other half belongs to the turn before
        const int64_t calls = (last - first) * (depth_blocks * products_of(PARTS) + VALUE_PARTS);
        weights.at_once = (weights.end + calls - 1) / calls;
        for (int64_t panel = first; panel < last; panel++) {
          start_block();
          add_products<PARTS>(queries + block * q_size, k + panel * q_size, depth_blocks, weights);
          add_exact_products<VALUE_PARTS>(positions + (positions_of.first[panel] - first_block) * VALUE_PARTS * BLOCK_SIZE,
                                          positions_of.ones + positions_of.ones_begin[panel], positions_of.count[panel], weights);
          store_block(own + (panel - first) * BLOCK_SIZE);
        }
        end_pending();
        pending.block = block;
        pending.first_panel = first;
        pending.panels = last - first;
        pending.is_last = last == num_panels;
        begin_weights(weights, pending, progress[block], own, num_keys);
      }
    }
    end_pending();
    for (int64_t i = begin; !num_chunks && i < end; i++) finish(b, head, i, nullptr, 0);
  }
};

template <typename T, int PARTS>
static int32_t run_attention(const memvit_attention_call& call, memvit_parallel_for parallel_for) {
  static thread_local Scratch shared;
  const int64_t num_plans = call.key_mask && call.mask_batch_stride ? call.batch : 1;
  TiledAttention<T, PARTS> attention(call, nullptr);
  const int64_t num_packs = call.batch * call.heads;
  const size_t position_bytes = PositionBlocks::bytes(attention.max_panels);
  Parts parts{shared.reserve(num_plans * (sizeof(KeyPlan) + sizeof(PositionBlocks) + 4 * call.num_keys + 64 + position_bytes) +
                             2 * num_packs * attention.packed_size + 4 * attention.value_width + 8 * 64)};
  attention.plans = parts.take<KeyPlan>(num_plans);
  attention.blocks = parts.take<PositionBlocks>(num_plans);
  attention.packed = parts.take<bf16>(num_packs * attention.packed_size);
  int32_t* slots = parts.take<int32_t>(attention.value_width);
  for (int64_t i = 0; i < num_plans; i++) {
    KeyPlan& plan = attention.plans[i];
    plan = plan_keys(call, call.key_mask ? call.key_mask + i * call.mask_batch_stride : nullptr, parts.take<int32_t>(call.num_keys));
    attention.blocks[i].make(call, plan, attention.value_starts, attention.value_width, attention.single, slots, parts);
  }
  parallel_for(0, num_packs * attention.max_panels, 1, [](int64_t begin, int64_t end, void* context) {
    const FlushToZero flush;
    const auto& a = *static_cast<const TiledAttention<T, PARTS>*>(context);
    for (int64_t i = begin; i < end; i++) {
      const int64_t pair = i / a.max_panels;
      a.pack(pair / a.call.heads, pair % a.call.heads, i % a.max_panels);
    }
  }, &attention);
  parallel_for(0, num_packs * attention.num_tiles, 1, [](int64_t begin, int64_t end, void* context) {
    const FlushToZero flush;
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
