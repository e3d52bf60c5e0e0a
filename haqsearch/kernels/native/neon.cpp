// The table of neon: AArch64 with the dot product instructions (ARMv8.2). Correct, tested under emulation; never timed.
#include <arm_neon.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "epilogue.h"
#include "kernels.h"

namespace haq {
namespace {

bool available() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;
#endif
}

// sdot takes signed bytes on both sides: inputs go in less 128, and 128 times the sum of the weights comes back here.
Epilogue centred(const ConvSpec& spec) {
  Epilogue e = spec.folded();
  const size_t size = size_t(spec.group_inputs()) * spec.kernel_h * spec.kernel_w;
  for (int n = 0; n < spec.out_channels; ++n) {
    int64_t sum = 0;
    for (size_t k = 0; k < size; ++k) sum += spec.weight[n * size + k];
    e.offset[n] += 128 * sum * e.multiplier[n];
  }
  return e;
}

// A tile is some pixels x 16 output channels; a step takes four bytes of each pixel times four weights of each channel.
class Conv final : public Op {
 public:
  explicit Conv(const ConvSpec& spec)
      : s_(spec), e_(centred(spec)), taps_(s_.dilation_w == 1 && s_.groups == 1 ? s_.kernel_w : 1),
        steps_((taps_ * s_.group_inputs() + 3) / 4), outputs_(s_.out_channels / s_.groups),
        blocks_((outputs_ + kBlock - 1) / kBlock) {
    const size_t window = size_t(s_.kernel_h) * (s_.kernel_w / taps_) * steps_ * kBlock * 4;
    block_bytes_ = window;
    packed_.resize(window * blocks_ * s_.groups);
    const int inputs = s_.group_inputs();
    for (int n = 0; n < s_.out_channels; ++n) {
      const int group = n / outputs_, block = n % outputs_ / kBlock, lane = n % outputs_ % kBlock;
      int8_t* to = packed_.data() + (size_t(group) * blocks_ + block) * window + lane * 4;
      for (int ky = 0; ky < s_.kernel_h; ++ky)
        for (int kx = 0; kx < s_.kernel_w; ++kx)
          for (int c = 0; c < inputs; ++c) {
            const int stretch = ky * (s_.kernel_w / taps_) + kx / taps_, at = kx % taps_ * inputs + c;
            to[(size_t(stretch) * steps_ + at / 4) * kBlock * 4 + at % 4] =
                s_.weight[((size_t(n) * inputs + c) * s_.kernel_h + ky) * s_.kernel_w + kx];
          }
    }
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for (int64_t unit = first; unit < end; ++unit) {
      const int64_t image = unit / out.height;
      const int y = static_cast<int>(unit % out.height);
      for (int group = 0; group < s_.groups; ++group)
        for (int block = 0; block < blocks_; ++block) {
          int x = 0;
          for (; x + 4 <= out.width; x += 4) tile<4>(*in, out, image, y, x, group, block);
          for (; x < out.width; ++x) tile<1>(*in, out, image, y, x, group, block);
        }
    }
  }

  const char* method() const override { return "neon dot products"; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(packed_.size()); }

 private:
  static constexpr int kBlock = 16;

  template <int Pixels>
  void tile(const View& in, const View& out, int64_t image, int y, int x, int group, int block) const {
    int32x4_t acc[Pixels][4];
    for (auto& pixel : acc)
      for (auto& four : pixel) four = vdupq_n_s32(0);
    const int8_t* weight = packed_.data() + (size_t(group) * blocks_ + block) * block_bytes_;
    for (int ky = 0; ky < s_.kernel_h; ++ky)
      for (int kx = 0; kx < s_.kernel_w; kx += taps_) {
        const uint8_t* from = in.at(image, y * s_.stride_h + ky * s_.dilation_h - s_.pad_h,
                                    x * s_.stride_w + kx * s_.dilation_w - s_.pad_w) + group * s_.group_inputs();
        for (int k = 0; k < steps_; ++k, weight += kBlock * 4) {
          const int8x16_t w[4] = {vld1q_s8(weight), vld1q_s8(weight + 16), vld1q_s8(weight + 32), vld1q_s8(weight + 48)};
          for (int p = 0; p < Pixels; ++p) {
            uint32_t four;  // may run over the last channel, where the weights are zero
            std::memcpy(&four, from + p * s_.stride_w * in.pixel + 4 * k, 4);
            const int8x16_t codes = vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u));
            for (int i = 0; i < 4; ++i) acc[p][i] = vdotq_s32(acc[p][i], w[i], codes);
          }
        }
      }
    const int start = block * kBlock, count = std::min(kBlock, outputs_ - start);
    for (int p = 0; p < Pixels; ++p) {
      int32_t sums[kBlock];
      for (int i = 0; i < 4; ++i) vst1q_s32(sums + 4 * i, acc[p][i]);
      uint8_t* to = out.at(image, y, x + p);
      for (int i = 0; i < count; ++i) {
        const int n = group * outputs_ + start + i;
        store(e_, to, n, requantize(e_, sums[i], n));
      }
    }
  }

  ConvSpec s_;
  Epilogue e_;
  int taps_, steps_, outputs_, blocks_;  // taps of a stretch; steps of a stretch; outputs and blocks of a group
  size_t block_bytes_ = 0;
  std::vector<int8_t> packed_;  // [group][block][stretch][step][16][4]
};

// Eight channels at a time, in 16 bits, summed in 32.
class Depthwise final : public Op {
 public:
  explicit Depthwise(const ConvSpec& spec) : s_(spec), e_(spec.folded()), padded_((spec.out_channels + 7) / 8 * 8) {
    const int taps = s_.kernel_h * s_.kernel_w;
    packed_.resize(size_t(taps) * padded_);
    for (int n = 0; n < s_.out_channels; ++n)
      for (int tap = 0; tap < taps; ++tap) packed_[size_t(tap) * padded_ + n] = s_.weight[size_t(n) * taps + tap];
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for (int64_t unit = first; unit < end; ++unit)
      for (int x = 0; x < out.width; ++x)
        for (int c = 0; c < s_.out_channels; c += 8)
          eight(*in, out, unit / out.height, static_cast<int>(unit % out.height), x, c);
  }

  const char* method() const override { return "neon int16"; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(packed_.size() * 2); }

 private:
  void eight(const View& in, const View& out, int64_t image, int y, int x, int c) const {
    int32x4_t low = vdupq_n_s32(0), high = vdupq_n_s32(0);
    const int16_t* weight = packed_.data() + c;
    for (int ky = 0; ky < s_.kernel_h; ++ky)
      for (int kx = 0; kx < s_.kernel_w; ++kx, weight += padded_) {
        const uint8_t* from = in.at(image, y * s_.stride_h + ky * s_.dilation_h - s_.pad_h,
                                    x * s_.stride_w + kx * s_.dilation_w - s_.pad_w) + c;
        const int16x8_t codes = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from))), w = vld1q_s16(weight);
        low = vmlal_s16(low, vget_low_s16(codes), vget_low_s16(w));
        high = vmlal_s16(high, vget_high_s16(codes), vget_high_s16(w));
      }
    int32_t sums[8];
    vst1q_s32(sums, low), vst1q_s32(sums + 4, high);
    uint8_t* to = out.at(image, y, x);
    for (int i = 0; i < std::min(8, s_.out_channels - c); ++i) store(e_, to, c + i, requantize(e_, sums[i], c + i));
  }

  ConvSpec s_;
  Epilogue e_;
  int padded_;
  std::vector<int16_t> packed_;  // [tap][channel]
};

}  // namespace

const Kernels kNeon = {
    "neon",
    available,
    [](const ConvSpec& s) -> OpPointer { return std::make_unique<Conv>(s); },
    [](const ConvSpec& s) -> OpPointer { return std::make_unique<Depthwise>(s); },
};

}  // namespace haq
