// What relative positions add to logits, as a matrix product: of a query's values (one for every entry of every term) with
// ones where a key takes an entry. A block of the depth has room for 32 entries. Included inside a namespace, after queries.inl
// and blocks.inl.

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

constexpr int MOST_TERMS = 3;

// One block for all entries, where they fit, if need be after giving up some. Entries that go together (those of past clips,
// those of the present one) form groups: a key that takes one of a group takes one of it in every term. So in each group the
// terms but the first can give up an entry, if it is subtracted from their others and added to the first term's.
// memvit_16x4 with two past clips takes 34 entries, and gets by with 30.
struct SingleBlock {
  bool exists;                // no term has more than W entries, and all fit
  int32_t column[MOST_TERMS][W];    // of each entry; -1: given up
  int32_t sources[MOST_TERMS][2 * W];  // for each column, which values of a query (of the terms' W, one after the other) add up to
                                 // it, or -1
  float signs[2 * W];         // of the second one

  explicit SingleBlock(const memvit_attention_call& call) {
    exists = call.num_terms > 0;
    for (int64_t t = 0; t < call.num_terms; t++) exists &= call.terms[t].entries == W;
    exists = exists && fits(call);
  }

  // The values of a query times `factor`, as one row of a left operand.
  template <int PARTS>
  void pack(const float* row, int64_t num_terms, float factor, bf16* out) const {
    const Vec x = load(row), y = num_terms > 1 ? load(row + W) : x, z = num_terms > 2 ? load(row + 2 * W) : x;
    Vec halves[2];
    for (int i = 0; i < 2; i++) {
      const Vec own = Selection(sources[0] + i * W).of(x, y, z), second = Selection(sources[1] + i * W).of(x, y, z);
      const Vec third = Selection(sources[2] + i * W).of(x, y, z);
      halves[i] = mul(add(fma(second, load(signs + i * W), own), third), set1(factor));
    }
    split<PARTS>(halves[0], halves[1], out);
  }

 private:
  bool fits(const memvit_attention_call& call) {
    // Entries belong to the group of an entry of the first term, which may turn out to be that of another; -1: no key takes it.
    int32_t leader[W], group[MOST_TERMS][W];
    for (int e = 0; e < W; e++) leader[e] = e;
    for (auto& term : group)
      for (int32_t& g : term) g = -1;
    const auto lead = [&](int32_t e) {
      while (leader[e] != e) e = leader[e];
      return e;
    };
    for (int64_t j = 0; j < call.num_keys; j++) {
      const int32_t first = call.terms[0].entry[j];
      if (first >= 0) group[0][first] = first;
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
    int32_t columns = 0, given_up[MOST_TERMS][W];
    for (auto& term : given_up)
      for (int32_t& e : term) e = -1;
    for (int64_t t = call.num_terms - 1; t >= 0; t--)
      for (int32_t e = 0; e < W; e++) {
        column[t][e] = -1;
        if (group[t][e] < 0) continue;
        const int32_t own = lead(group[t][e]);
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
    return true;
  }
};

// Blocks of entries for the keys of one plan, which have more entries than a block takes: panels of keys that take the same
// few share one (a past clip has few times of its own).
struct PositionBlocks {
  int32_t* sources;     // (blocks, 32): which of a query's values; -1: none
  int32_t* first;       // of each panel: the first block that it takes
  int32_t* count;       // and how many, one after the other
  int64_t* ones_begin;  // and where its right operands are
  bf16* ones;
  int64_t num_blocks = 0;
  bool is_small;        // queries have no more values than three vectors

  // Bytes for so many panels.
  static size_t bytes(int64_t panels) {
    return MOST_TERMS * panels * (4 * BLOCK + 2 * BLOCK_SIZE) + panels * (4 + 4 + 8) + 5 * 64;
  }

  // `slots`: room for as many numbers as a query has values.
  void make(const memvit_attention_call& call, const KeyPlan& plan, const int64_t* value_starts, int64_t value_width,
            const SingleBlock& single, int32_t* slots, Parts& parts) {
    const int64_t panels = blocks_of(plan.num_keys);
    sources = parts.take<int32_t>(MOST_TERMS * panels * BLOCK);
    first = parts.take<int32_t>(panels);
    count = parts.take<int32_t>(panels);
    ones_begin = parts.take<int64_t>(panels);
    ones = parts.take<bf16>(MOST_TERMS * panels * BLOCK_SIZE);
    num_blocks = single.exists;
    is_small = call.num_terms == MOST_TERMS && value_width == (MOST_TERMS + 1) * W;
    for (int64_t i = 0; i < value_width; i++) slots[i] = -1;
    int64_t group = 0, group_size = 0, taken = 0, ones_end = 0;  // blocks that panels share at present, and their columns
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t begin = panel * BLOCK, end = smaller(begin + BLOCK, plan.num_keys);
      // Calls on_entry(key, term, entry) for all keys of the panel.
      const auto for_entries = [&](auto on_entry) {
        for (int64_t j = begin; j < end; j++)
          for (int64_t t = 0; t < call.num_terms; t++)
            if (const int32_t e = call.terms[t].entry[plan.keys[j]]; e >= 0) on_entry(j, t, e);
      };
      if (single.exists) {
        first[panel] = 0, count[panel] = 1;
      } else {
        // One more panel of the group, or the first of a new one.
        const auto join = [&] {
          const int64_t before = taken;
          bool has_room = true;
          for_entries([&](int64_t, int64_t t, int32_t e) {
            int32_t& slot = slots[value_starts[t] + e];
            if (slot >= group * BLOCK || !has_room) return;  // it has its column, or none is left
            has_room = taken < group_size * BLOCK;
            if (!has_room) return;
            slot = static_cast<int32_t>(group * BLOCK + taken++);
            sources[slot] = static_cast<int32_t>(value_starts[t] + e);
          });
          for (; !has_room && taken > before; taken--) {  // as it was
            int32_t& source = sources[group * BLOCK + taken - 1];
            slots[source] = -1;
            source = -1;
          }
          return has_room;
        };
        if (!join()) {
          group = num_blocks, taken = 0;
          int64_t needed = 0;
          for_entries([&](int64_t, int64_t t, int32_t e) {
            int32_t& slot = slots[value_starts[t] + e];
            if (slot >= group * BLOCK) return;
            slot = static_cast<int32_t>(group * BLOCK);
            needed++;
          });
          for_entries([&](int64_t, int64_t t, int32_t e) { slots[value_starts[t] + e] = -1; });
          group_size = blocks_of(needed);
          num_blocks += group_size;
          for (int64_t i = 0; i < group_size * BLOCK; i++) sources[group * BLOCK + i] = -1;
          join();
        }
        first[panel] = static_cast<int32_t>(group), count[panel] = static_cast<int32_t>(group_size);
      }
      ones_begin[panel] = ones_end;
      bf16* out = ones + ones_end;
      ones_end += count[panel] * BLOCK_SIZE;
      __builtin_memset(out, 0, count[panel] * BLOCK_SIZE * sizeof(bf16));
      constexpr bf16 ONE = 0x3f80;
      for_entries([&](int64_t j, int64_t t, int32_t e) {
        const int64_t at = single.exists ? single.column[t][e] : slots[value_starts[t] + e] - group * BLOCK;
        if (at < 0) return;
        const int64_t pair = at % W, element = at % BLOCK / W;
        out[at / BLOCK * BLOCK_SIZE + j % BLOCK / W * TILE_SIZE + pair * BLOCK + j % W * 2 + element] = ONE;
      });
    }
  }

  // The values of a query times `factor`, as one row of the left operand of a block.
  template <int PARTS>
  void pack(int64_t block, const float* row, float factor, bf16* out) const {
    Vec halves[2];
    for (int i = 0; i < 2; i++) {
      const int32_t* taken = sources + block * BLOCK + i * W;
      const Vec own = is_small ? Selection(taken).of(load(row), load(row + W), load(row + 2 * W)) : Picker(taken).far(row);
      halves[i] = mul(own, set1(factor));
    }
    split<PARTS>(halves[0], halves[1], out);
  }
};
