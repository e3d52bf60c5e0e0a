// The input of some units of a convolution, packed: what the kernels for few bits read instead of the codes.
#pragma once

#include <algorithm>
#include <vector>

#include "op.h"

namespace haq {

// Input rows [row][pixel][size] of T, once for every plane, and where the window of each output pixel begins in them.
template <typename T>
struct PackedPatch {
  const int width;               // pixels of a row
  const std::ptrdiff_t row;      // elements of a row
  std::ptrdiff_t plane = 0;      // elements of a plane
  std::vector<T> data;
  std::vector<std::ptrdiff_t> windows;  // in pixels: element windows[i] * size
  std::vector<uint8_t*> to;      // where the codes of these windows go

  // pack(codes, to, plane) packs one pixel; it may write up to `spare` elements beyond it, before the next one is packed.
  template <typename Pack>
  PackedPatch(const ConvSpec& s, const View& in, const View& out, int64_t first, int64_t end, int size, int planes,
              int spare, const Pack& pack)
      : width((out.width - 1) * s.stride_w + (s.kernel_w - 1) * s.dilation_w + 1), row(std::ptrdiff_t(width) * size) {
    const auto rows = [&](int outputs) { return (outputs - 1) * s.stride_h + (s.kernel_h - 1) * s.dilation_h + 1; };
    const auto outputs = [&](int64_t unit) {  // rows of the same image from here on
      return static_cast<int>(std::min(end - unit, out.height - unit % out.height));
    };
    for (int64_t unit = first; unit < end; unit += outputs(unit)) plane += rows(outputs(unit)) * row;
    data.resize(plane * planes + spare);
    T* place = data.data();
    windows.reserve(size_t(end - first) * out.width), to.reserve(size_t(end - first) * out.width);
    for (int64_t unit = first; unit < end; unit += outputs(unit)) {
      const int64_t image = unit / out.height;
      const int top = static_cast<int>(unit % out.height), count = outputs(unit);
      const std::ptrdiff_t before = (place - data.data()) / size;
      for (int y = 0; y < count; ++y)
        for (int x = 0; x < out.width; ++x) {
          windows.push_back(before + y * s.stride_h * width + x * s.stride_w);
          to.push_back(out.at(image, top + y, x));
        }
      for (int y = 0; y < rows(count); ++y)
        for (int x = 0; x < width; ++x, place += size)
          pack(in.at(image, top * s.stride_h - s.pad_h + y, x - s.pad_w), place, plane);
    }
  }
};

// The stretches of a window that lie in one piece: kernel rows or, where dilated, pixels.
struct Stretches {
  std::vector<std::ptrdiff_t> offsets;
  int length;  // elements

  Stretches(const ConvSpec& s, std::ptrdiff_t row, int size) : length(size * (s.dilation_w == 1 ? s.kernel_w : 1)) {
    for (int ky = 0; ky < s.kernel_h; ++ky)
      for (int kx = 0; kx < (s.dilation_w == 1 ? 1 : s.kernel_w); ++kx)
        offsets.push_back(ky * s.dilation_h * row + kx * s.dilation_w * size);
  }
};

}  // namespace haq
