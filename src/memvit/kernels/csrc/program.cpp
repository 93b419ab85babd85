// A recorded step: kernels and copies one after the other, on tensors that may lie elsewhere each time.
#include "memvit_cpu.h"

#include <cstring>

namespace {

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);  // not a number, and stays so
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float load(const char* from, int32_t width) {
  if (width == 2) {
    uint16_t bits;
    std::memcpy(&bits, from, 2);
    return from_bfloat16(bits);
  }
  float value;
  std::memcpy(&value, from, 4);
  return value;
}

void store(char* to, int32_t width, float value) {
  if (width == 2) {
    const uint16_t bits = to_bfloat16(value);
    std::memcpy(to, &bits, 2);
  } else {
    std::memcpy(to, &value, 4);
  }
}

// Elements that lie one behind the other.
void copy_row(const char* from, int32_t from_width, char* to, int32_t to_width, bool adds, int64_t n) {
  if (from_width == to_width && !adds) {
    std::memcpy(to, from, n * from_width);
    return;
  }
  for (int64_t i = 0; i < n; i++, from += from_width, to += to_width)
    store(to, to_width, adds ? load(from, from_width) + load(to, to_width) : load(from, from_width));
}

void copy(const memvit_copy_call& call) {
  for (int64_t a = 0; a < call.size[0]; a++)
    for (int64_t b = 0; b < call.size[1]; b++)
      for (int64_t c = 0; c < call.size[2]; c++)
        copy_row(static_cast<const char*>(call.from) +
                     (a * call.from_stride[0] + b * call.from_stride[1] + c * call.from_stride[2]) * call.from_width,
                 call.from_width,
                 static_cast<char*>(call.to) +
                     (a * call.to_stride[0] + b * call.to_stride[1] + c * call.to_stride[2]) * call.to_width,
                 call.to_width, call.adds, call.size[3]);
}

int32_t run(const memvit_program_step& step, int32_t level, memvit_parallel_for parallel_for) {
  const void* call = step.call;
  switch (step.kernel) {
    case MEMVIT_COPY: copy(*static_cast<const memvit_copy_call*>(call)); return 0;
    case MEMVIT_ATTENTION: return memvit_attention(static_cast<const memvit_attention_call*>(call), level, parallel_for);
    case MEMVIT_POOL_NORM: return memvit_pool_norm(static_cast<const memvit_pool_call*>(call), level, parallel_for);
    case MEMVIT_MAX_POOL: return memvit_max_pool(static_cast<const memvit_max_pool_call*>(call), level, parallel_for);
    case MEMVIT_LAYER_NORM: return memvit_layer_norm(static_cast<const memvit_norm_call*>(call), level, parallel_for);
    case MEMVIT_LINEAR: return memvit_linear(static_cast<const memvit_linear_call*>(call), level, parallel_for);
    case MEMVIT_MLP: return memvit_mlp(static_cast<const memvit_mlp_call*>(call), level, parallel_for);
    case MEMVIT_PATCHES: return memvit_patches(static_cast<const memvit_patch_call*>(call), level, parallel_for);
    default: return 1;
  }
}

}  // namespace

extern "C" void memvit_open_windows(const memvit_window* windows, int64_t num_windows, char** bases, char* room,
                                    int64_t position, int32_t is_new) {
  for (const memvit_window* w = windows; w != windows + num_windows; w++) {
    char* to = room + w->offset + position * w->slot_bytes;
    if (is_new)
      for (int64_t b = 0; b < w->batch; b++)
        std::memcpy(to + b * w->result_stride, bases[w->slots] + b * w->slots_stride + w->slot_bytes,
                    (w->num_slots - 1) * w->slot_bytes);
    bases[w->result] = to;
  }
}

extern "C" int64_t memvit_run_program(const memvit_program* program, char* const* bases, int32_t level,
                                      memvit_parallel_for parallel_for) {
  for (int64_t i = 0; i < program->num_pointers; i++) {
    const memvit_program_pointer& pointer = program->pointers[i];
    *pointer.field = bases[pointer.base] + pointer.offset;
  }
  for (int64_t i = 0; i < program->num_steps; i++)
    if (run(program->steps[i], level, parallel_for) != 0) return i;
  return -1;
}
