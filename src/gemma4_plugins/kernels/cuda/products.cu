// Each product of the step: its sizes, what its operand waits for, its weights' scales, and where its sums go.

DEVICE Job Consumer::describe(int product) {
  const int d = info & IS_FULL ? D_FULL : D_SLIDING, keys = info & IS_FULL ? KV_FULL * D_FULL : KV_SLIDING * D_SLIDING;
  Job job = {operand(), HIDDEN, HIDDEN * WEIGHT_BYTES, 1, 0, false, tag(product)};
  switch (product) {
    case W_CONTEXT: job.total = LAYERS * PLE, job.to = AT_CONTEXT, job.tag = a.tag; break;
    case W_QKV: job.total = HEADS * d + (info & IS_OWN ? (info & KEY_IS_VALUE ? keys : 2 * keys) : 0), job.to = AT_QKV; break;
    case W_O: job.row_bytes = HEADS * d * WEIGHT_BYTES, job.to = AT_O; break;
    case W_ROUTER: job.x = shared + S_ROUTER, job.total = EXPERTS, job.row_bytes = HIDDEN * 2, job.to = AT_ROUTER; break;
    case W_GATED: job.total = ff, job.paired = true, job.to = AT_GATED; break;
    case W_DOWN: job.row_bytes = ff * WEIGHT_BYTES, job.to = AT_DOWN; break;
    case W_EXPERT: job.x = shared + S_EXPERTS, job.total = TOP * EXPERT_FF, job.paired = true, job.to = AT_EXPERT; break;
    case W_EXPERT_DOWN: job.row_bytes = EXPERT_FF * WEIGHT_BYTES, job.segments = TOP, job.to = AT_EXPERT_DOWN; break;
    case W_PLE_GATE: job.total = PLE, job.to = AT_PLE_GATE; break;
    case W_PLE: job.row_bytes = PLE * WEIGHT_BYTES, job.to = AT_PLE; break;
    default: job.total = VOCAB;
  }
  return job;
}

// Wait for what the product's operand is made of, and make it.
DEVICE void Consumer::make_operand(int product) {
  int pairs = 0, pairs_at = 0, pairs_phase = 0;
  switch (product) {
    case W_CONTEXT: put_plain(); break;
    case W_O:
      if (info & IS_FULL) attention<D_FULL, KV_FULL>();
      else attention<D_SLIDING, KV_SLIDING>();
      pairs = HEADS * (info & IS_FULL ? D_FULL : D_SLIDING) / 2, pairs_at = AT_MIXED, pairs_phase = P_MIXED;
      break;
    case W_ROUTER: add_attention(), put_branches(); break;
    case W_GATED:
      if (!EXPERTS) add_attention(), put_normed();
      break;
    case W_DOWN: pairs = ff / 2, pairs_at = AT_GATED, pairs_phase = P_GATED; break;
    case W_EXPERT: mbarrier_wait(choice_made, index & 1); break;
    case W_EXPERT_DOWN: pairs = TOP * EXPERT_FF / 2, pairs_at = AT_EXPERT, pairs_phase = P_EXPERT; break;
    case W_PLE_GATE: receive_ple(); break;
    case W_PLE: put_ple(); break;
    default: end_layer();
  }
  if (pairs) put_pairs(pairs_at, pairs, tag(pairs_phase));
}

// Norm weights that are needed after this product, and whose places are free since its operand was made.
DEVICE void Consumer::fetch_ahead(int product) {
  if (product == W_QKV) {
    fetch_weights(0, norm(F_NORM_ATTENTION));
    fetch_weights(1, norm(F_NORM_BEFORE));
    if (EXPERTS) fetch_weights(2, norm(F_ROUTER_SCALE)), fetch_weights(3, norm(F_NORM_BEFORE_EXPERTS));
  } else if (product == W_GATED) {
    fetch_weights(0, norm(F_NORM_AFTER));
    if (EXPERTS) fetch_weights(2, norm(F_NORM_DENSE)), fetch_weights(3, norm(F_NORM_EXPERTS));
  } else if (product == W_PLE_GATE) {
    fetch_weights(0, norm(F_NORM_PLE));
  }
  if (product == W_LAST) {
    const u16* following = (const u16*)__shfl_sync(ALL, next, F_NORM_IN);
    fetch_weights(1, index + 1 < LAYERS ? following : of_model(M_NORM));
  }
}

DEVICE void Consumer::logit(int id, float sum) {
  float value = SOFTCAP > 0 ? SOFTCAP * tanhf(sum / (SOFTCAP > 0 ? SOFTCAP : 1)) : sum;
  if (a.logits) a.logits[id] = value;
  const u8* suppressed = (const u8*)a.table[M_SUPPRESSED];
  best.add(suppressed && suppressed[id] ? -1e30f : value, id);
}

DEVICE Scales Consumer::scales_for(int product) const {
  const int d = info & IS_FULL ? D_FULL : D_SLIDING, keys = info & IS_FULL ? KV_FULL * D_FULL : KV_SLIDING * D_SLIDING;
  const float* one = nullptr;
  switch (product) {
    case W_QKV: return {{scales(F_Q), scales(F_K), scales(F_V)}, {HEADS * d, HEADS * d + keys}};
    case W_GATED: return {{scales(F_GATE), scales(F_UP), nullptr}, {0, 0}};
    case W_CONTEXT: one = scales_of_model(M_PLE_PROJECTION); break;
    case W_O: one = scales(F_O); break;
    case W_DOWN: one = scales(F_DOWN); break;
    case W_EXPERT: one = scales(F_EXPERT_GATE_UP); break;
    case W_EXPERT_DOWN: one = scales(F_EXPERT_DOWN); break;
    case W_PLE_GATE: one = scales(F_PLE_GATE); break;
    case W_PLE: one = scales(F_PLE_PROJECTION); break;
    case W_HEAD: one = scales_of_model(M_EMBEDDING); break;
    default: break;
  }
  return {{one, nullptr, nullptr}, {1 << 30, 1 << 30}};
}

// Sums are published one by one; gelu(gate) * up by twos; logits stay here.
DEVICE void Consumer::multiply_job(const Job& job, const Share& part, const Geometry& geometry, int product) {
  uint2* to = packets(job.to) + (job.paired ? part.first / 2 : part.first);
  Scales scales = {};
  if (INT8) scales = scales_for(product);
  auto scale = [&](const Tile& t, int row, int segment) {
    int unit = part.first + t.first + (job.paired ? row & 7 : row);
    if (product == W_EXPERT_DOWN) return scales.base[0] + choice.expert[segment] * HIDDEN + unit;
    if (product == W_EXPERT)
      return scales.base[0] + (choice.expert[unit / EXPERT_ROWS] * 2 + (row >> 3)) * EXPERT_FF + unit % EXPERT_ROWS;
    if (product == W_GATED) return (row < 8 ? scales.base[0] : scales.base[1]) + unit;
    return unit < scales.split[0] ? scales.base[0] + unit : unit < scales.split[1] ? scales.base[1] + unit - scales.split[0]
                                                                                   : scales.base[2] + unit - scales.split[1];
  };
  auto sink = [&](const Tile& t, int row, bool valid, float sum) {
    int unit = t.first + row;
    if (job.paired) {
      float up = __shfl_down_sync(ALL, sum, 8), value = 0;
      if (valid && row < 8) {
        value = gelu_tanh(sum) * up;
        if (product == W_EXPERT) value *= choice.weight[(part.first + unit) / EXPERT_ROWS];
      }
      float second = __shfl_down_sync(ALL, value, 1);
      if (valid && row < 8 && !(row & 1)) store_packet(to + unit / 2, pack_bf16(value, second), job.tag);
    } else if (valid) {
      if (product == W_HEAD) logit(part.first + unit, sum);
      else store_packet(to + unit, as_bits(sum), job.tag);
    }
  };
  auto gathered = [&] { mark(product * 3 + 1); };
  if (INT8 && product != W_ROUTER) eat.multiply_rows<INT8>(geometry, job.row_bytes, job.segments, job.x, scale, sink, gathered);
  else if (!INT8 || EXPERTS) eat.multiply_rows<false>(geometry, job.row_bytes, job.segments, job.x, scale, sink, gathered);
}
