// Attention on AMX's tiles: softmax(q k^T scale + positions) v, 32 queries and 32 keys at a time.
//
// Logits of a block of queries and a chunk of keys stay in the cache. What relative positions add to a logit is one more
// matrix product, of a query's values with ones where a key takes them, so that the logits come out of the tiles complete.
// While the tiles make those of one chunk, the vector units make weights (2^x) of the chunk before, which then weigh the
// values. Positions, softmax and sums are in float32 whatever the operands are; these are sums of PARTS bfloat16 numbers, see
// blocks.inl. Included inside a namespace, after tiled_operands.inl.

constexpr int64_t CHUNK = 18;  // panels of 32 keys whose logits stay in cache

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

// Logits of one panel that become weights as they are, with nothing taken off.
template <int PARTS>
struct PlainWeights {
  const float* scores;    // (32 queries, 32 keys)
  bf16* out;
  int64_t num_keys;       // of the panel
  int64_t at = BLOCK, at_once = BLOCK;  // rows: done, between products
  float factor;
  Vec* sums;              // of each query

  void begin(const float* panel, int64_t keys, bf16* weights, Vec* own_sums) {
    scores = panel, num_keys = keys, out = weights, sums = own_sums, at = 0;
  }
  void some() { weigh(at_once); }
  void weigh(int64_t count) {
    const Vec scale = set1(factor);
    for (const int64_t until = smaller(BLOCK, at + count); at < until; at++) {
      Vec low = exp2_of<(PARTS > 1)>(mul(load(scores + at * BLOCK), scale));
      Vec high = exp2_of<(PARTS > 1)>(mul(load(scores + at * BLOCK + W), scale));
      if (num_keys < BLOCK) {
        low = first(smaller(num_keys, W), low, 0.f);
        high = first(larger(num_keys - W, 0), high, 0.f);
      }
      sums[at] = add(sums[at], add(low, high));
      split<PARTS>(low, high, out + at * BLOCK);
    }
  }
};

// Rows that are complete but for the division by their sums, at most one between products.
template <typename Finish>
struct Finishing {
  Finish finish;          // finish(row)
  int64_t at = 0, end = 0;
  void begin(int64_t rows) { at = 0, end = rows; }
  void some() {
    if (at < end) finish(at++);
  }
  void rest() {
    while (at < end) finish(at++);
  }
};

// Between these a softmax is as exact without its largest logit taken off: the largest weight is at least the sum over the
// number of keys, far above what is too small to count, and products with values stay finite.
constexpr float LEAST_SUM = 0x1p-40f, MOST_SUM = 0x1p+64f;

template <typename T, int PARTS>
struct TiledAttention : TiledOperands<T, PARTS> {
  using Base = TiledOperands<T, PARTS>;
  using Base::Base, Base::call, Base::plan_of, Base::query, Base::value_width, Base::blocks, Base::depth_blocks, Base::max_panels;
  using Base::packed, Base::packed_size, Base::VALUE_PARTS, Base::position_values, Base::pack_values, Base::finish;

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

  void run(int64_t b, int64_t head, int64_t tile, Scratch& scratch) const {
    if (!run_plain(b, head, tile, scratch)) run_shifted(b, head, tile, scratch);
  }

  // The results of a macro tile, if its logits are such that 2^x of them serves as it is; false: they are not. Chunk by chunk
  // of keys, which stay in cache for all its blocks of queries. While the tiles make a panel's logits, the vector units make
  // weights of those before.
  bool run_plain(int64_t b, int64_t head, int64_t tile, Scratch& scratch) const {
    const KeyPlan& plan = plan_of(b);
    const PositionBlocks& positions_of = blocks[&plan - this->plans];
    const int64_t begin = tile * this->tile_size, end = smaller(begin + this->tile_size, call.num_queries);
    const int64_t num_blocks = blocks_of(end - begin), num_panels = blocks_of(plan.num_keys);
    const int64_t num_chunks = (num_panels + CHUNK - 1) / CHUNK;
    const int64_t q_size = depth_blocks * PARTS * BLOCK_SIZE, out_size = depth_blocks * BLOCK_SIZE;
    const int64_t position_size = smaller(MOST_TERMS * CHUNK, positions_of.num_blocks) * VALUE_PARTS * BLOCK_SIZE;
    if (!num_chunks) return false;
    Parts parts{scratch.reserve(
        4 * (this->tile_size * value_width + 2 * BLOCK_SIZE + num_blocks * (out_size + BLOCK * W) + 4 * W * W) +
        2 * (num_blocks * q_size + position_size + (CHUNK * BLOCK_SIZE + depth_blocks * TILE_SIZE) * PARTS) +
        this->group_bytes() + 16 * 64)};
    float* values = parts.take<float>(this->tile_size * value_width);
    float* scores = parts.take<float>(2 * BLOCK_SIZE);
    float* out = parts.take<float>(num_blocks * out_size);
    Vec* sums = parts.take<Vec>(num_blocks * BLOCK);
    bf16* queries = parts.take<bf16>(num_blocks * q_size);
    bf16* positions = parts.take<bf16>(position_size);
    bf16* weighed = parts.take<bf16>(CHUNK * PARTS * BLOCK_SIZE);
    for (int64_t i = 0; i < num_blocks * BLOCK; i++) sums[i] = set1(0);
    PlainWeights<PARTS> weights;
    weights.factor = call.scale * LOG2_E;
    weights.at_once = (BLOCK - 1) / (depth_blocks * products_of(PARTS) + VALUE_PARTS) + 1;
    pack_rows<PARTS>(query(begin, b, head), call.q.token_stride, end - begin, call.head_dim, queries);
    position_values(queries, begin, end, values, parts);

    const bf16* k = packed + (b * call.heads + head) * packed_size;
    const bf16* v = k + packed_size / 2;
    bool is_good = true;
    int64_t finished = 0;  // the block whose rows are being finished, while the next one's values are weighed
    const auto finish_row = [&](int64_t r) {
      const float sum = sum_of(sums[finished * BLOCK + r]);
      is_good &= sum >= LEAST_SUM && sum <= MOST_SUM;
      finish(b, head, begin + finished * BLOCK + r, out + finished * out_size + r * BLOCK, sum);
    };
    Finishing<decltype(finish_row)> finishing{finish_row};

    // What has logits and is to get weights: a block of queries, a panel, and the panels of its chunk.
    struct Item {
      int64_t block, panel, first, last;
    } before{0, -1, 0, 0};
    int64_t turn = 0;
    const auto begin_weights = [&] {
      weights.begin(scores + (turn + 1) % 2 * BLOCK_SIZE, plan.num_keys - before.panel * BLOCK,
                    weighed + (before.panel - before.first) * PARTS * BLOCK_SIZE, sums + before.block * BLOCK);
    };
    // All weights of a panel are there; if it is the last one of a chunk, they weigh its values.
    const auto end_weights = [&] {
      weights.weigh(BLOCK);
      const auto [block, panel, first, last] = before;
      if (panel + 1 < last) return;
      for (int64_t part = 0; part < depth_blocks; part++) {
        float* c = out + block * out_size + part * BLOCK_SIZE;
        if (first) start_block(c);
        else start_block();
        add_products<PARTS>(weighed, v + (part * max_panels + first) * PARTS * BLOCK_SIZE, last - first, finishing);
        store_block(c);
      }
      finishing.rest();
      if (last < num_panels) return;
      finished = block;
      finishing.begin(smaller(BLOCK, end - begin - block * BLOCK));
    };
    for (int64_t chunk = 0; chunk < num_chunks; chunk++) {
      const int64_t first = chunk * num_panels / num_chunks, last = (chunk + 1) * num_panels / num_chunks;
      // Groups of blocks follow one another, as their panels do.
      const int64_t first_block = positions_of.first[first], end_block = positions_of.first[last - 1] + positions_of.count[last - 1];
      for (int64_t block = 0; block < num_blocks && is_good; block++) {
        pack_values(positions_of, values + block * BLOCK * value_width, smaller(BLOCK, end - begin - block * BLOCK),
                    weights.factor, first_block, end_block, positions);
        for (int64_t panel = first; panel < last; panel++, turn++) {
          if (turn) begin_weights();
          start_block();
          add_products<PARTS>(queries + block * q_size, k + panel * q_size, depth_blocks, weights);
          add_exact_products<VALUE_PARTS>(positions + (positions_of.first[panel] - first_block) * VALUE_PARTS * BLOCK_SIZE,
                                          positions_of.ones + positions_of.ones_begin[panel], positions_of.count[panel], weights);
          store_block(scores + turn % 2 * BLOCK_SIZE);
          if (turn) end_weights();
          before = Item{block, panel, first, last};
        }
      }
    }
    begin_weights();
    end_weights();
    finishing.rest();
    return is_good;
  }

  // The results of a macro tile, whatever its logits are.
  void run_shifted(int64_t b, int64_t head, int64_t tile, Scratch& scratch) const {
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
