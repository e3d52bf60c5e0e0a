// Runs a whole network, or a piece of it, without leaving C++: tensors at planned places of one arena, steps in order.
//
// The arena holds `chunk` images at a time, few enough to stay in the cache. With several threads each takes chunks of its
// own through all steps; where there are fewer chunks than threads, the threads split every step and meet behind it.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "op.h"

namespace haq {

// A tensor in the arena: `offset` and `stride` in bytes for one image; image i of a chunk lies at offset * chunk + i * stride.
struct Tensor {
  int height = 1, width = 1, channels = 1;
  int top = 0, left = 0, bottom = 0, right = 0;  // border in pixels
  int bytes = 1;                                 // per code
  int fill = 0;                                  // code of the border: the zero point
  bool planar = true;                            // outside it is (C, H, W); otherwise (rows, features), as in the arena
  int64_t offset = 0, stride = 0;
  // Distance in elements, outside, of two channels and of two pixels.
  int64_t channel_step() const { return planar ? int64_t(height) * width : 1; }
  int64_t pixel_step() const { return planar ? 1 : channels; }
  int64_t image_bytes() const { return int64_t(height + top + bottom) * (width + left + right) * channels * bytes; }
};

// A part of a tensor: every step_y-th row and step_x-th column of a box.
struct Box {
  int tensor = 0, y = 0, x = 0, channel = 0, height = 1, width = 1, channels = 1, step_y = 1, step_x = 1;
};

struct Step {
  std::shared_ptr<Op> op;
  std::vector<Box> inputs;
  Box output;
  bool whole = false;  // the output is set to its zero point first, because the box leaves some of it out
};

// float32 -> codes: clamp(round_half_even(x / scale) + zero_point, low, high) + bias.
// With `codes` the source is the codes themselves, one byte each. `bias` is 128 for signed formats, held as uint8.
struct Import {
  int source = 0;
  Box box;
  bool codes = false;
  float scale = 1;
  int zero_point = 0, low = 0, high = 255, bias = 0;
};

// codes -> codes of 1 or 2 bytes, less `bias`.
struct Export {
  int target = 0;
  Box box;
  int bias = 0;
};

class Executor {
 public:
  std::vector<Tensor> tensors;
  std::vector<Step> steps;
  std::vector<Import> imports;
  std::vector<Export> exports;
  int64_t arena_bytes = 0;  // for one image: the plan's peak

  // `sources` and `targets` hold `batch` images each, C order. chunk: images per pass; threads >= 1. The arenas are one
  // call's at a time: a second call waits.
  void run(const std::vector<const void*>& sources, const std::vector<void*>& targets, int64_t batch, int chunk,
           int threads);

 private:
  struct Pass;
  std::mutex running_;
  std::vector<std::vector<uint8_t>> arenas_;
};

OpPointer make_copy();      // box to box of the same shape
OpPointer make_flatten();   // image to features, in (C, H, W) order

}  // namespace haq
