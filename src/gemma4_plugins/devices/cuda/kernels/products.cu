// Each product of the step: its sizes, what its operand waits for, its weights' scales, and where its sums go.

// Wait for what the product's operand, `width` elements, is made of, and make it; each warp its columns if it is its own.
DEVICE void Consumer::make_operand(int product, int width, bool own) {
  int pairs = 0, pairs_at = 0, pairs_phase = 0;
  switch (product) {
    case W_CONTEXT: put_first(); break;
    case W_O:
      if (!attention(own)) pairs = width / 2, pairs_at = AT_MIXED, pairs_phase = P_MIXED;
      break;
    case W_DOWN: pairs = width / 2, pairs_at = AT_GATED, pairs_phase = P_GATED; break;
    case W_EXPERT: break;  // made with the router's
    case W_EXPERT_DOWN: pairs = TOP * EXPERT_FF / 2, pairs_at = AT_EXPERT, pairs_phase = P_EXPERT; break;
    case W_PLE_GATE:
      if (PLE) receive_ple();
      break;
    case W_PLE:
      if (PLE) put_ple(own);
      break;
    default:
      if (EXPERTS && product == W_GATED) break;  // so is this one
      add_and_norm(product);
  }
  if (pairs) take_pairs(pairs_at, pairs, tag(pairs_phase), own);
}

// What is needed after the next product, and has its place since this one's operand was made.
DEVICE void Consumer::fetch_ahead(int product) {
  int into[4] = {-1, -1, -1, -1};  // fields
  if (product == W_QKV) {
    into[0] = F_NORM_ATTENTION, into[1] = F_NORM_BEFORE, into[2] = F_ROUTER_SCALE, into[3] = F_NORM_BEFORE_EXPERTS;
  } else if (product == W_GATED) {
    into[0] = F_NORM_AFTER, into[1] = index + 1 < LAYERS ? F_NORM_IN : M_NORM, into[2] = F_NORM_DENSE, into[3] = F_NORM_EXPERTS;
    if (index + 1 < LAYERS) fetch_head_norms(next);
    if (PLE) ask_ple();
  } else if (product == W_PLE_GATE) {
    into[0] = F_NORM_PLE;
  }
  const u64 of_second = product != W_GATED ? layer : index + 1 < LAYERS ? next : model;
#pragma unroll
  for (int i = 0; i < (EXPERTS ? 4 : 2); i++)
    if (into[i] >= 0) fetch_weights(i, (const u16*)__shfl_sync(ALL, i == 1 ? of_second : layer, into[i]));
}

DEVICE void Consumer::logit(int id, float sum) {
  float value = SOFTCAP > 0 ? SOFTCAP * tanhf(sum * (1.f / (SOFTCAP > 0 ? SOFTCAP : 1))) : sum;
  if (a.logits) a.logits[id] = value;
  best.add(never ? -1e30f : value, id);
}

// Make the operand and multiply. Sums are published one by one; gelu(gate) * up by twos; logits stay here.
DEVICE void Consumer::multiply(int product) {
  if (EXPERTS && product == W_EXPERT) mbarrier_wait(choice_made, index & 1);  // its rows' scales are asked for early
  const Shape s = shapes[(info >> KIND) * PRODUCTS + product];
  const bool paired = is_paired(product), own = is_own(s, product);
  const int segments = segments_of(product);
  const u8* x = product == W_ROUTER ? shared + S_ROUTER : product == W_EXPERT ? shared + S_EXPERTS : operand();
  const u32 tag_out = product == W_CONTEXT ? a.tag : tag(product);
  uint2* to = packets(s.result) + (paired ? s.first / 2 : s.first);
  const Split split(product, info);
  const float *first = nullptr, *second = nullptr, *third = nullptr;
  if (INT8) {
    const Fields f = fields_of(product);
    const u64 row = f.of_model ? model_scales : layer_scales;
    first = (const float*)__shfl_sync(ALL, row, f.first), second = (const float*)__shfl_sync(ALL, row, f.second),
    third = (const float*)__shfl_sync(ALL, row, f.third);
  }
  const u8* suppressed = product == W_HEAD ? (const u8*)of_model(M_SUPPRESSED) : nullptr;
  auto scale = [&](const Tile& t, int row, int segment) {
    int unit = s.first + t.first + (paired ? row & 7 : row);
    if (product == W_EXPERT_DOWN) return first + choice.expert[segment] * HIDDEN + unit;
    if (product == W_EXPERT) return first + (choice.expert[unit / EXPERT_ROWS] * 2 + (row >> 3)) * EXPERT_FF + unit % EXPERT_ROWS;
    if (product == W_GATED) return (row < 8 ? first : second) + unit;
    return unit < split.second ? first + unit : unit < split.third ? second + unit - split.second : third + unit - split.third;
  };
  // what the sums of rows to come need from memory: a row's scale, and whether a token is never chosen
  auto ahead = [&](const Tile& t, int row) {
    if (suppressed) never = load_byte_early(suppressed + s.first + t.first + row);
    return INT8 && product != W_ROUTER && segments == 1 ? load_float_early(scale(t, row, 0)) : 1.f;
  };
  auto sink = [&](int unit, int row, bool valid, float sum) {
    if (paired) {
      float up = __shfl_down_sync(ALL, sum, 8), value = 0;
      if (valid && row < 8) {
        value = gelu_tanh(sum) * up;
        if (EXPERTS && product == W_EXPERT) value *= choice.weight[(s.first + unit) / EXPERT_ROWS];
      }
      float second = __shfl_down_sync(ALL, value, 1);
      if (valid && row < 8 && !(row & 1)) store_packet(to + unit / 2, pack_bf16(value, second), tag_out);
    } else if (valid) {
      if (product == W_HEAD) logit(s.first + unit, sum);
      else store_packet(to + unit, as_bits(sum), tag_out);
    }
  };
  auto gathered = [&] { mark(product * 3 + 1); };
  auto make = [&] {
    make_operand(product, s.row_bytes / WEIGHT_BYTES, own);
    if (own) __syncwarp();
    else bar_sync(1, CONSUMERS);
    mark(product * 3);
    return EXPERTS && product == W_EXPERT ? expert_unit : unit;
  };
  // one call, or what makes the operands would be in the kernel twice
  if (INT8 && EXPERTS && product == W_ROUTER) {
    make();
    eat.multiply_rows<false>(s, paired, segments, x, [] { return 1.f; }, scale, ahead, sink, gathered);
  } else {
    eat.multiply_rows<INT8>(s, paired, segments, x, make, scale, ahead, sink, gathered);
  }
}
