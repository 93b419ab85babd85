// What attention needs to know of queries and keys, whatever multiplies them: where they lie, which keys take part, and which
// queries share a row of a table of positions. Included inside a namespace, after vectors.inl.

constexpr int64_t MACRO_TILE = 512;  // queries whose position values are computed together
constexpr float LOG2_E = 1.44269504088896341f;

// Which keys take part.
struct KeyPlan {
  int64_t num_keys;
  const int32_t* keys;      // (num_keys,) of all keys
};

// The keys that a mask leaves (null: all), in `keys`.
static KeyPlan plan_keys(const memvit_attention_call& call, const uint8_t* mask, int32_t* keys) {
  int64_t n = 0;
  for (int64_t j = 0; j < call.num_keys; j++)
    if (!mask || mask[j]) keys[n++] = static_cast<int32_t>(j);
  return KeyPlan{n, keys};
}

template <typename T>
struct Queries {
  const memvit_attention_call& call;
  int64_t num_tiles, tile_size;           // macro tiles of one stream and head
  int64_t value_starts[3], value_width;   // where each term's values begin in a query's row of values
  KeyPlan* plans;                         // one per mask

  // Macro tiles are multiples of `step` queries.
  Queries(const memvit_attention_call& call, KeyPlan* plans, int64_t step)
      : call(call), plans(plans) {
    num_tiles = (call.num_queries + MACRO_TILE - 1) / MACRO_TILE;
    tile_size = round_up((call.num_queries + num_tiles - 1) / larger(num_tiles, 1), step);
    value_width = 0;
    for (int64_t t = 0; t < call.num_terms; t++) {
      value_starts[t] = value_width;
      value_width += call.terms[t].entries;
    }
    value_width += W;  // vectors of values may be read a little past the last
  }

  const KeyPlan& plan_of(int64_t b) const { return plans[call.key_mask && call.mask_batch_stride ? b : 0]; }

  const T* key(const memvit_tokens (&tokens)[2], int64_t j, int64_t b, int64_t head) const {
    const int past = j < call.num_past_keys ? 0 : 1;
    const memvit_tokens& part = tokens[past];
    const int64_t row = past ? j - call.num_past_keys : j;
    return static_cast<const T*>(part.data) + b * part.batch_stride + row * part.token_stride + head * part.head_stride;
  }

  const T* query(int64_t i, int64_t b, int64_t head) const {
    return static_cast<const T*>(call.q.data) + b * call.q.batch_stride + i * call.q.token_stride + head * call.q.head_stride;
  }

  // The queries from `begin` to `end` that one row of a term's table goes to, up to `most` at a time: `on_group(row, order,
  // count)` gets where they are behind `begin`. Queries without a row: `on_none(i)`.
  template <typename OnGroup, typename OnNone>
  void for_groups(int64_t t, int64_t begin, int64_t end, int64_t most, Parts parts, OnGroup on_group, OnNone on_none) const {
    const memvit_term& term = call.terms[t];
    int32_t* order = parts.take<int32_t>(end - begin);
    int32_t* starts = parts.take<int32_t>(term.rows + 1);
    for (int64_t r = 0; r <= term.rows; r++) starts[r] = 0;
    for (int64_t i = begin; i < end; i++)
      if (term.row[i] >= 0) starts[term.row[i] + 1]++;
    for (int64_t r = 0; r < term.rows; r++) starts[r + 1] += starts[r];
    for (int64_t i = begin; i < end; i++) {
      if (term.row[i] >= 0) order[starts[term.row[i]]++] = static_cast<int32_t>(i - begin);
      else on_none(i - begin);
    }
    for (int64_t r = 0, from = 0; r < term.rows; from = starts[r], r++)
      while (from < starts[r]) {
        const int64_t left = starts[r] - from, count = left < most ? left : left < 2 * most ? (left + 1) / 2 : most;
        on_group(r, order + from, count);
        from += count;
      }
  }

  // What `for_groups` takes of `parts`, in bytes.
  size_t group_bytes() const {
    int64_t most_rows = 0;
    for (int64_t t = 0; t < call.num_terms; t++) most_rows = larger(most_rows, call.terms[t].rows);
    return 4 * (tile_size + most_rows + 1) + 2 * 64;
  }

  static float larger_of(float a, float b) { return a > b ? a : b; }
};
