// What the instruction sets share for operations without weights: walking over pixels, and constants that vectors need.
// Everything has internal linkage: each instruction set compiles its own copy with its own instructions.
#pragma once

#include <algorithm>
#include <optional>

#include "epilogue.h"
#include "kernels.h"

namespace haq {
namespace {

// A weighted sum of one or two inputs in 32-bit arithmetic, still exact. It is (a * A + b * B + C) >> shift with all
// offsets and zero points in C. A = 2^16 * high + low with both halves in int16, B and C likewise; then
//   carry = (a * low_a + b * low_b + low_c) >> 16
//   (a * A + b * B + C) >> shift = (a * high_a + b * high_b + high_c + carry) >> (shift - 16)
// because the floor of a floor is the floor. Each half is one multiply-add of pairs of int16.
struct SplitSum {
  int32_t low = 0, high = 0;  // int16 of the first input, int16 of the second in the upper half
  int32_t low_offset = 0, high_offset = 0, shift = 0;
  uint8_t least = 0, largest = 255;

  static std::optional<SplitSum> of(const SumSpec& s) {
    const Epilogue& e = s.epilogue;
    if (s.multipliers.empty() || s.multipliers.size() > 2 || e.wide) return std::nullopt;
    const int up = std::max(0, 16 - e.shift[0]);  // a shift of at least 16 is wanted
    const __int128 unit = __int128(1) << up;
    __int128 offset = (e.offset[0] + e.zero_point * (__int128(1) << e.shift[0])) * unit;
    int64_t factor[2] = {0, 0};
    for (size_t i = 0; i < s.multipliers.size(); ++i) {
      const __int128 product = unit * s.multipliers[i] * e.multiplier[0];
      if (product < -(int64_t(1) << 31) || product >= (int64_t(1) << 31) - (1 << 15)) return std::nullopt;
      factor[i] = static_cast<int64_t>(product);
      offset -= product * s.zero_points[i];
    }
    // |a * high_a + b * high_b + carry| < 2^25, so so much room is left for the offset
    if (offset < -(__int128(1) << 46) || offset > (__int128(1) << 46)) return std::nullopt;
    SplitSum split;
    const int64_t high[2] = {(factor[0] + (1 << 15)) >> 16, (factor[1] + (1 << 15)) >> 16};
    split.high = pair(high[0], high[1]);
    split.low = pair(factor[0] - high[0] * 65536, factor[1] - high[1] * 65536);
    split.high_offset = static_cast<int32_t>(offset >> 16);
    split.low_offset = static_cast<int32_t>(offset & 0xFFFF);
    split.shift = std::min(e.shift[0] + up - 16, 31);  // of 32 bits: 31 leaves the sign as any more would
    split.least = static_cast<uint8_t>(e.low), split.largest = static_cast<uint8_t>(e.high);
    return split;
  }

 private:
  static int32_t pair(int64_t first, int64_t second) {
    return static_cast<int32_t>((static_cast<uint32_t>(second) << 16) | (static_cast<uint32_t>(first) & 0xFFFF));
  }
};

// Calls body(place in each input, place in the output, bytes) for stretches of codes without a gap in any of them.
template <int Inputs, typename Body>
void for_each_stretch(const View* in, const View& out, int64_t first, int64_t end, const Body& body) {
  bool dense = out.pixel == out.channels;
  for (int i = 0; i < Inputs; ++i) dense = dense && in[i].pixel == out.channels;
  const int steps = dense ? 1 : out.width, bytes = dense ? out.width * out.channels : out.channels;
  for (int64_t unit = first; unit < end; ++unit) {
    const int64_t image = unit / out.height;
    const int y = static_cast<int>(unit % out.height);
    for (int x = 0; x < steps; ++x) {
      const uint8_t* from[Inputs];
      for (int i = 0; i < Inputs; ++i) from[i] = in[i].at(image, y, x);
      body(from, out.at(image, y, x), bytes);
    }
  }
}

// The taps of a window that lie inside the image.
struct Taps {
  const uint8_t* from;  // the first of them, channel 0
  int rows, columns;
  std::ptrdiff_t row, column;  // from one to the next, in bytes

  // body(tap) for each
  template <typename Body>
  void each(const Body& body) const {
    for (int y = 0; y < rows; ++y)
      for (int x = 0; x < columns; ++x) body(from + y * row + x * column);
  }
};

// Calls body(taps, place in the output) for every output pixel of the units.
template <typename Body>
void for_each_window(const PoolSpec& s, const View& in, const View& out, int64_t first, int64_t end, const Body& body) {
  // The taps [begin, end) of one axis that are inside, and where the first of them lies.
  struct Axis {
    int place, count;
    Axis(int at, int kernel, int dilation, int size) {
      const int begin = at < 0 ? (-at + dilation - 1) / dilation : 0;
      const int behind = at >= size ? 0 : std::min(kernel, (size - 1 - at) / dilation + 1);
      place = at + begin * dilation, count = std::max(0, behind - begin);
    }
  };
  for (int64_t unit = first; unit < end; ++unit) {
    const int64_t image = unit / out.height;
    const int y = static_cast<int>(unit % out.height);
    const Axis vertical(y * s.stride_h - s.pad_h, s.kernel_h, s.dilation_h, in.height);
    for (int x = 0; x < out.width; ++x) {
      const Axis across(x * s.stride_w - s.pad_w, s.kernel_w, s.dilation_w, in.width);
      const Taps taps{in.at(image, vertical.place, across.place), vertical.count, across.count, s.dilation_h * in.row,
                      s.dilation_w * in.pixel};
      body(taps, out.at(image, y, x));
    }
  }
}

// The epilogue of a pool, one entry for all channels, as one for `lanes` channels.
inline Epilogue repeated(const Epilogue& e, int lanes) {
  Epilogue all = e;
  all.multiplier.assign(lanes, e.multiplier[0]);
  all.offset.assign(lanes, e.offset[0]);
  all.shift.assign(lanes, e.shift[0]);
  return all;
}

}  // namespace
}  // namespace haq
