// What attention on AMX's tiles multiplies: queries, keys and values as operands, and what positions add to logits as one more.
// Included inside a namespace, after queries.inl, blocks.inl and position_columns.inl.

template <typename T, int PARTS>
struct TiledOperands : Queries<T> {
  using Base = Queries<T>;
  using Base::call, Base::plan_of, Base::key, Base::query, Base::value_width, Base::value_starts;
  static constexpr int VALUE_PARTS = PARTS == 1 ? 2 : PARTS;  // of what positions add
  static constexpr int TABLE_PARTS = sizeof(T) == 4 ? 3 : 1;   // of their tables

  const SingleBlock single;
  PositionBlocks* blocks;   // of every plan
  int64_t depth_blocks, max_panels;
  bf16* packed;             // keys and values of every stream and head
  int64_t packed_size;

  TiledOperands(const memvit_attention_call& call, KeyPlan* plans) : Base(call, plans, BLOCK), single(call) {
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
          if (PARTS == 1 && sizeof(T) == 2) {
            lines[0][i] = j < plan.num_keys ? load_bits(key(call.k, plan.keys[j], b, head) + block * BLOCK, left) : no_ints();
            continue;
          }
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
            Vec sum = add(load(sums), load(sums + W * W));
            if constexpr (PARTS > 1) sum = add(sum, add(load(sums + 2 * W * W), load(sums + 3 * W * W)));
            store(own + order[i] * value_width + e, sum);
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

  // Writes a query's result: a row of sums over their softmax's, refined where that is wanted; nothing to attend (null): not a number.
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
};
