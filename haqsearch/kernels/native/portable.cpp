// Plain C++: right on every machine, and what the other tables are tested against besides the oracle in Python.
#include <cstdlib>

#include "epilogue.h"
#include "kernels.h"

namespace haq {

Epilogue ConvSpec::folded() const {
  Epilogue e = epilogue;
  const int64_t size = int64_t(group_inputs()) * kernel_h * kernel_w;
  for (int n = 0; n < out_channels; ++n) {
    int64_t sum = 0;
    for (int64_t k = 0; k < size; ++k) sum += weight[n * size + k];
    e.offset[n] -= input_zero_point * sum * e.multiplier[n];
  }
  return e;
}

int64_t ConvSpec::bound() const {
  const int64_t size = int64_t(group_inputs()) * kernel_h * kernel_w;
  int64_t largest = 0;
  for (int n = 0; n < out_channels; ++n) {
    int64_t sum = 0;
    for (int64_t k = 0; k < size; ++k) sum += std::abs(int(weight[n * size + k]));
    largest = std::max(largest, sum);
  }
  return largest * std::max(std::abs(input_low), std::abs(input_high));
}

namespace {

class Conv final : public Op {
 public:
  explicit Conv(const ConvSpec& spec) : s_(spec), e_(spec.folded()) {
    // (out, kh, kw, in): the inner loop reads both sides in order
    const int inputs = s_.group_inputs(), taps = s_.kernel_h * s_.kernel_w;
    packed_.resize(s_.weight.size());
    for (int n = 0; n < s_.out_channels; ++n)
      for (int c = 0; c < inputs; ++c)
        for (int t = 0; t < taps; ++t)
          packed_[(size_t(n) * taps + t) * inputs + c] = s_.weight[(size_t(n) * inputs + c) * taps + t];
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    const int inputs = s_.group_inputs(), outputs = s_.out_channels / s_.groups;
    for (int64_t unit = first; unit < end; ++unit) {
      const int64_t image = unit / out.height;
      const int y = static_cast<int>(unit % out.height);
      for (int x = 0; x < out.width; ++x) {
        uint8_t* to = out.at(image, y, x);
        for (int n = 0; n < s_.out_channels; ++n) {
          const int8_t* w = packed_.data() + size_t(n) * s_.kernel_h * s_.kernel_w * inputs;
          int32_t acc = 0;
          for (int ky = 0; ky < s_.kernel_h; ++ky)
            for (int kx = 0; kx < s_.kernel_w; ++kx, w += inputs) {
              const uint8_t* from = in->at(image, y * s_.stride_h + ky * s_.dilation_h - s_.pad_h,
                                           x * s_.stride_w + kx * s_.dilation_w - s_.pad_w) +
                                    (n / outputs) * inputs;
              for (int c = 0; c < inputs; ++c) acc += int32_t(from[c]) * w[c];
            }
          store(e_, to, n, requantize(e_, acc, n));
        }
      }
    }
  }

  const char* method() const override { return "portable"; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(packed_.size()); }

 private:
  ConvSpec s_;
  Epilogue e_;
  std::vector<int8_t> packed_;
};

class WeightedSum final : public Op {
 public:
  explicit WeightedSum(const SumSpec& spec) : s_(spec) {}

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for (int64_t unit = first; unit < end; ++unit) {
      const int64_t image = unit / out.height;
      const int y = static_cast<int>(unit % out.height);
      for (int x = 0; x < out.width; ++x)
        for (int c = 0; c < out.channels; ++c) {
          int64_t sum = 0;
          for (size_t i = 0; i < s_.multipliers.size(); ++i)
            sum += (int64_t(in[i].at(image, y, x)[c]) - s_.zero_points[i]) * s_.multipliers[i];
          store(s_.epilogue, out.at(image, y, x), c, requantize(s_.epilogue, sum, 0));
        }
    }
  }

  const char* method() const override { return "portable"; }

 private:
  SumSpec s_;
};

class Pool final : public Op {
 public:
  Pool(const PoolSpec& spec, bool average) : s_(spec), average_(average) {}

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for (int64_t unit = first; unit < end; ++unit) {
      const int64_t image = unit / out.height;
      const int y = static_cast<int>(unit % out.height);
      for (int x = 0; x < out.width; ++x)
        for (int c = 0; c < out.channels; ++c) {
          int32_t sum = 0, largest = 0;
          for (int ky = 0; ky < s_.kernel_h; ++ky)
            for (int kx = 0; kx < s_.kernel_w; ++kx) {
              const int iy = y * s_.stride_h + ky * s_.dilation_h - s_.pad_h;
              const int ix = x * s_.stride_w + kx * s_.dilation_w - s_.pad_w;
              if (iy < 0 || iy >= in->height || ix < 0 || ix >= in->width) continue;
              const int32_t q = in->at(image, iy, ix)[c];
              sum += q - s_.zero_point;
              largest = std::max(largest, q);
            }
          uint8_t* to = out.at(image, y, x);
          if (average_) store(s_.epilogue, to, c, requantize(s_.epilogue, sum, 0));
          else to[c] = static_cast<uint8_t>(largest);
        }
    }
  }

  const char* method() const override { return "portable"; }

 private:
  PoolSpec s_;
  bool average_;
};

bool always() { return true; }

}  // namespace

// A plain table: every factory of it succeeds.
const Kernels kPortable = {
    "portable",
    always,
    [](const ConvSpec& s) -> OpPointer { return std::make_unique<Conv>(s); },
    nullptr,
    nullptr,
    nullptr,
    [](const SumSpec& s) -> OpPointer { return std::make_unique<WeightedSum>(s); },
    [](const PoolSpec& s) -> OpPointer { return std::make_unique<Pool>(s, true); },
    [](const PoolSpec& s) -> OpPointer { return std::make_unique<Pool>(s, false); },
};

}  // namespace haq
