// Compares the neon table with the portable one on random convolutions. Run under emulation by test_neon.py.
#include <cstdio>
#include <random>

#include "kernels.h"

using namespace haq;

namespace {

std::mt19937 generator(1);
int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

struct Image {
  std::vector<uint8_t> bytes;
  View view;

  Image(int images, int height, int width, int channels, int border_h, int border_w, int code_bytes) {
    view.pixel = std::ptrdiff_t(channels) * code_bytes;
    view.row = view.pixel * (width + 2 * border_w);
    view.image = view.row * (height + 2 * border_h);
    view.height = height, view.width = width, view.channels = channels;
    bytes.resize(images * view.image + kSlack);
    view.data = bytes.data() + border_h * view.row + border_w * view.pixel;
  }
};

ConvSpec random_spec(bool depthwise) {
  ConvSpec s;
  s.groups = depthwise ? between(2, 40) : between(1, 3);
  const int inputs = depthwise ? 1 : between(1, 37), outputs = depthwise ? 1 : between(1, 37);
  s.in_channels = inputs * s.groups, s.out_channels = outputs * s.groups;
  s.kernel_h = between(1, 3), s.kernel_w = between(1, 5), s.stride_h = between(1, 2), s.stride_w = between(1, 2);
  s.dilation_h = between(1, 2), s.dilation_w = between(1, 2), s.pad_h = between(0, 2), s.pad_w = between(0, 2);
  const bool extreme = between(0, 3) == 0;
  for (int i = 0; i < s.out_channels * inputs * s.kernel_h * s.kernel_w; ++i)
    s.weight.push_back(static_cast<int8_t>(extreme ? -128 : between(-128, 127)));
  s.input_zero_point = between(0, 255);
  Epilogue& e = s.epilogue;
  for (int n = 0; n < s.out_channels; ++n) {
    e.shift.push_back(between(28, 44));
    e.multiplier.push_back(between(1 << 30, INT32_MAX));
    e.offset.push_back(int64_t(between(-1000, 1000)) * e.multiplier[n] + (int64_t(1) << (e.shift[n] - 1)));
  }
  e.zero_point = between(0, 255);
  e.wide = between(0, 4) == 0;
  if (e.wide) e.low = -30000, e.high = 30000;
  return s;
}

bool equal(const ConvSpec& s, bool depthwise) {
  const int images = between(1, 2), out_h = between(1, 5), out_w = between(1, 9);
  const int height = std::max(1, (out_h - 1) * s.stride_h + (s.kernel_h - 1) * s.dilation_h + 1 - 2 * s.pad_h);
  const int width = std::max(1, (out_w - 1) * s.stride_w + (s.kernel_w - 1) * s.dilation_w + 1 - 2 * s.pad_w);
  Image in(images, height, width, s.in_channels, 16, 16, 1);
  const bool extreme = between(0, 3) == 0;
  for (uint8_t& code : in.bytes) code = static_cast<uint8_t>(extreme ? 255 : between(0, 255));
  const int code_bytes = s.epilogue.wide ? 2 : 1;
  Image got(images, out_h, out_w, s.out_channels, 0, 0, code_bytes), want(images, out_h, out_w, s.out_channels, 0, 0, code_bytes);
  const OpPointer neon = depthwise ? kNeon.depthwise(s) : kNeon.conv2d(s), portable = kPortable.conv2d(s);
  neon->run(&in.view, got.view, 0, neon->units(got.view, images));
  portable->run(&in.view, want.view, 0, portable->units(want.view, images));
  return got.bytes == want.bytes;
}

}  // namespace

int main() {
  int wrong = 0;
  for (int i = 0; i < 300; ++i) wrong += !equal(random_spec(i % 2), i % 2);
  std::printf("%d of 300 convolutions differ\n", wrong);
  return !kNeon.available() ? 2 : wrong != 0;
}
