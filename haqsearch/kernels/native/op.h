// The vocabulary of the native kernels: how a tensor lies in memory, what an operation is told, what it must do.
//
// Every operation computes what haqsearch/kernels/reference.py defines, to the last bit. An instruction set offers
// implementations through the `Kernels` table of kernels.h; whatever it leaves out is done by portable.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace haq {

// A tensor of codes: NHWC, one byte a code (uint8: signed formats are held with 128 added), or two for int16 outputs.
// `data` is the first channel of pixel (0, 0) of image 0; a border of the zero point lies around each image, so that a
// padded convolution reads data[-row - pixel] without asking. At least kSlack readable bytes follow the last pixel.
// Anything that is no image has height = 1, width = rows and channels = features.
struct View {
  uint8_t* data = nullptr;
  std::ptrdiff_t pixel = 0, row = 0, image = 0;  // strides in bytes
  int height = 0, width = 0, channels = 0;
  int border_top = 0, border_left = 0, border_bottom = 0, border_right = 0;  // pixels

  uint8_t* at(int64_t n, int y, int x) const { return data + n * image + y * row + x * pixel; }
};

inline constexpr int kSlack = 64;

// acc -> code: clamp(((acc * multiplier + offset) >> shift) + zero_point, low, high), arithmetic shift, 1 <= shift <= 62,
// 0 <= multiplier < 2^31. `offset` holds bias * multiplier + 2^(shift - 1). One entry per output channel.
struct Epilogue {
  std::vector<int32_t> multiplier;
  std::vector<int64_t> offset;
  std::vector<int32_t> shift;
  int32_t zero_point = 0, low = 0, high = 255;
  bool wide = false;  // output codes are int16 rather than uint8
};

struct ConvSpec {
  int in_channels = 0, out_channels = 0, groups = 1;
  int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1, pad_h = 0, pad_w = 0;
  int height = 1, width = 1;             // of the input, without padding: for the choice of a method
  std::vector<int8_t> weight;            // (out_channels, in_channels / groups, kernel_h, kernel_w)
  int weight_bits = 8;                   // every weight lies within two's complement of this width (1: -1, 0 .. see qformat)
  int input_low = 0, input_high = 255;   // every input code, border included, lies within
  int input_zero_point = 0;
  // As in the program, for acc = sum (x - input_zero_point) * weight. `folded()` has the zero point inside `offset`.
  Epilogue epilogue;

  int group_inputs() const { return in_channels / groups; }
  int out_height() const { return (height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1; }
  int out_width() const { return (width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1; }
  // The same epilogue for acc = sum x * weight: offset - zero_point * sum(weight) * multiplier.
  Epilogue folded() const;
  // Largest |sum x * weight| over any subset of the terms: fits int32, or the spec is refused before it comes here.
  int64_t bound() const;
};

// One operation with its constants packed. run() does the units [first, end) of units(images); units are independent, so
// that threads may split them. Inputs and output are views of at least `images` images.
class Op {
 public:
  virtual ~Op() = default;
  virtual int64_t units(const View& output, int images) const { return int64_t(images) * output.height; }
  virtual void run(const View* inputs, const View& output, int64_t first, int64_t end) const = 0;
  virtual const char* method() const = 0;            // how it computes, for tables: "avx2 int16 widening"
  virtual int64_t packed_bytes() const { return 0; }  // what its packed weights take
};

using OpPointer = std::unique_ptr<Op>;

}  // namespace haq
