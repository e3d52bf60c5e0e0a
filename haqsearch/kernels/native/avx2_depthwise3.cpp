// Depthwise convolution of 3 x 3 in sums of int16, 32 channels (or 16 of two rows) at a time.
//
// vpmaddubsw multiplies pairs of neighbouring bytes: here the first two rows of a column, interleaved, and two columns of the
// third row. Columns interleaved for one output serve the next ones too, and 16 whole sums fill a register. Weights whose sums
// leave int16 are taken as two digits, 16 * (-8 .. 8) + (-8 .. 7), whose sums never do.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "avx2_depthwise.h"

namespace haq {
namespace {

constexpr int kLanes = 16;    // of int16
constexpr int kColumns = 64;  // outputs of a row whose sums are kept before they become codes

// floor(a / b), b > 0
int64_t divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// (acc * M + C) >> shift for |acc| < 2^15, without the carry that the lower 16 bits of acc * M and of C give. For with
// M = 2^16 * high + low, acc * high + (acc * low >> 16) is one vpmulhw for 16 lanes and a vpmaddwd for eight. What the carry
// was worth, another offset makes up for: every code up to the largest begins at the same accumulator as before.
struct Scale {
  int16_t high = 0, low = 0;
  int32_t offset = 0, shift = 0;

  // Whether there is such an offset.
  bool find(const Epilogue& e, int n, int64_t bound) {
    const int64_t multiplier = e.multiplier[n], limit = int64_t(1) << 61;
    shift = e.shift[n] - 16;
    if (shift < 0 || shift > 31 || multiplier > INT32_MAX - (1 << 15)) return false;
    if (std::abs(e.offset[n]) > limit || std::abs(e.zero_point) > 1 << 13) return false;
    high = static_cast<int16_t>((multiplier + (1 << 15)) >> 16);
    low = static_cast<int16_t>(multiplier - high * 65536);
    const auto product = [&](int64_t acc) { return (acc * multiplier) >> 16; };
    int64_t least = INT32_MIN + product(bound) + 1, most = INT32_MAX - product(bound);
    for (int code = e.low + 1; code <= e.high; ++code) {
      const int64_t begins = first(e, n, code, bound), reached = int64_t(code) << shift;
      if (begins <= bound) least = std::max(least, reached - product(begins));
      if (begins > -bound) most = std::min(most, reached - product(begins - 1) - 1);
    }
    offset = static_cast<int32_t>(least);
    return least <= most;
  }

 private:
  // The least accumulator within the bound that gives `code` or more; one more than the bound if none does.
  static int64_t first(const Epilogue& e, int n, int code, int64_t bound) {
    const int64_t missing = int64_t(code - e.zero_point) * (int64_t(1) << e.shift[n]) - e.offset[n];
    if (e.multiplier[n] == 0) return missing <= 0 ? -bound : bound + 1;
    return std::min(std::max(-divide(-missing, e.multiplier[n]), -bound), bound + 1);
  }
};

// Weights of sixteen channels: the lower or upper eight of each 128-bit lane of a panel's register. Those of columns 0, 1, 2
// in rows 0 and 1; of columns 0 and 1, and of column 2, in row 2.
struct alignas(32) Weights {
  int8_t value[5][2 * kLanes] = {};

  template <typename Digit>
  void set(int lane, const int8_t* window, Digit digit) {
    const int pairs[5][2] = {{0, 3}, {1, 4}, {2, 5}, {6, 7}, {8, -1}};
    for (int i = 0; i < 5; ++i)
      for (int k = 0; k < 2; ++k)
        if (pairs[i][k] >= 0) value[i][2 * lane + k] = static_cast<int8_t>(digit(window[pairs[i][k]]));
  }
};

template <typename T>
__m256i load(const T* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

void store(int16_t* to, __m256i value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value); }

// The channel in a lane of a half's sums, -1 where there is none.
int channel(const ChannelPanel& panel, int half, int lane) {
  const int c = (panel.rows == 1 ? lane / 8 * 16 : 0) + half * 8 + lane % 8;
  return c < panel.channels ? panel.channel + c : -1;
}

template <bool upper>
__m256i interleave(__m256i a, __m256i b) {
  return upper ? _mm256_unpackhi_epi8(a, b) : _mm256_unpacklo_epi8(a, b);
}

// `count` sums of a row, `step` lanes apart. rows: of the kernel, from the first column on. behind: from the last column of the
// last window to the one that goes with it, whose weight is zero: nowhere at the end of a row.
template <int Rows, int Stride, bool Upper>
void convolve(const uint8_t* const (&rows)[3][Rows], std::ptrdiff_t pixel, int count, std::ptrdiff_t behind,
              const Weights& weights, int step, int16_t* sums) {
  using avx2::load_rows;
  const auto& [w0, w1, w2, w3, w4] = weights.value;
  const __m256i weight[5] = {load(w0), load(w1), load(w2), load(w3), load(w4)};
  const auto column = [&](std::ptrdiff_t at) {
    return interleave<Upper>(load_rows<Rows>(rows[0], at), load_rows<Rows>(rows[1], at));
  };
  const auto across = [&](std::ptrdiff_t at, std::ptrdiff_t next) {
    return interleave<Upper>(load_rows<Rows>(rows[2], at), load_rows<Rows>(rows[2], at + next));
  };
  __m256i column0 = column(0), column1 = column(pixel), across0 = across(0, pixel), across1 = across(pixel, pixel);
  std::ptrdiff_t at = 2 * pixel;
  for (int x = 0; x < count; ++x, at += Stride * pixel, sums += step) {
    if (Stride == 2) column1 = column(at - pixel);
    const __m256i column2 = column(at), across2 = across(at, x + 1 < count ? pixel : behind);
    const auto product = [&](__m256i pairs, int i) { return _mm256_maddubs_epi16(pairs, weight[i]); };
    const __m256i front = _mm256_add_epi16(product(column0, 0), product(column1, 1));
    const __m256i last = _mm256_add_epi16(product(across0, 3), product(across2, 4));
    store(sums, _mm256_add_epi16(_mm256_add_epi16(front, product(column2, 2)), last));
    column0 = Stride == 1 ? column1 : column2, column1 = column2;
    across0 = Stride == 1 ? across1 : across2, across1 = across2;
  }
}

// Sums in one digit, and how they become codes: see Scale.
class Short {
 public:
  static constexpr int kDigits = 1;
  static constexpr const char* kMethod = "avx2 maddubs in int16, 3x3";
  static int digit(int weight, int) { return weight; }

  // Null where the sums leave int16, or a channel has no scale.
  static std::unique_ptr<Short> make(const ConvSpec& s, const std::vector<ChannelPanel>& panels) {
    const int64_t bound = s.bound();
    if (bound > INT16_MAX) return nullptr;
    const Epilogue folded = s.folded();
    std::vector<Scale> scales(static_cast<size_t>(s.out_channels));
    for (int n = 0; n < s.out_channels; ++n)
      if (!scales[n].find(folded, n, bound)) return nullptr;
    auto made = std::make_unique<Short>();
    made->halves_.resize(2 * panels.size());
    for (size_t i = 0; i < made->halves_.size(); ++i)
      for (int lane = 0; lane < kLanes; ++lane)
        if (const int c = channel(panels[i / 2], i % 2, lane); c >= 0) made->halves_[i].set(lane, scales[c]);
    return made;
  }

  // sums: of each column [digit][half]. Its codes, unclamped, come to stand at 32 times its index.
  void codes(int16_t* sums, int count, size_t panel) const {
    const Half &lower = halves_[2 * panel], &upper = halves_[2 * panel + 1];
    for (int x = 0; x < count; ++x) store(sums + 2 * kLanes * x, scaled(load(sums + 2 * kLanes * x), lower));
    for (int x = 0; x < count; ++x, sums += 2 * kLanes)
      store(sums, _mm256_packus_epi16(load(sums), scaled(load(sums + kLanes), upper)));
  }

 private:
  struct alignas(32) Half {
    int16_t low[kLanes] = {}, high[2][kLanes] = {};  // high: each followed by one, for what comes of low
    int32_t offset[2][8] = {}, shift[2][8] = {};

    void set(int lane, const Scale& scale) {
      const int part = lane / 4 % 2, at = lane / 8 * 4 + lane % 4;  // as vpunpck?wd puts them
      low[lane] = scale.low;
      high[part][2 * at] = scale.high, high[part][2 * at + 1] = 1;
      offset[part][at] = scale.offset, shift[part][at] = scale.shift;
    }
  };

  // Sixteen sums as int16 codes, not yet clamped.
  static __m256i scaled(__m256i sums, const Half& half) {
    const __m256i below = _mm256_mulhi_epi16(sums, load(half.low));
    const auto part = [&](__m256i pairs, int i) {
      const __m256i product = _mm256_madd_epi16(pairs, load(half.high[i]));
      return _mm256_srav_epi32(_mm256_add_epi32(product, load(half.offset[i])), load(half.shift[i]));
    };
    return _mm256_packs_epi32(part(_mm256_unpacklo_epi16(sums, below), 0), part(_mm256_unpackhi_epi16(sums, below), 1));
  }

  std::vector<Half> halves_;  // two of each panel
};

// Sums in two digits, the lower one first.
class Long {
 public:
  static constexpr int kDigits = 2;
  static constexpr const char* kMethod = "avx2 maddubs in two digits, 3x3";
  static int digit(int weight, int i) {
    const int lower = ((weight + 8) & 15) - 8;
    return i == 0 ? lower : (weight - lower) / 16;
  }

  explicit Long(const ConvSpec& s, const std::vector<ChannelPanel>& panels)
      : requantizer_(interleaved<2>(s.folded(), panels), s.bound()) {}

  static std::unique_ptr<Long> make(const ConvSpec& s, const std::vector<ChannelPanel>& panels) {
    return std::make_unique<Long>(s, panels);
  }

  void codes(int16_t* sums, int count, size_t panel) const {
    const __m256i digits = _mm256_set1_epi32(1 | 16 << 16);
    for (int x = 0; x < count; ++x) {
      __m256i whole[4];
      for (int half = 0; half < 2; ++half) {
        const int16_t* from = sums + (4 * x + half) * kLanes;
        const __m256i lower = load(from), upper = load(from + 2 * kLanes);
        whole[2 * half] = _mm256_madd_epi16(_mm256_unpacklo_epi16(lower, upper), digits);
        whole[2 * half + 1] = _mm256_madd_epi16(_mm256_unpackhi_epi16(lower, upper), digits);
      }
      store(sums + 2 * kLanes * x, requantizer_.codes(whole, 32 * static_cast<int>(panel)));
    }
  }

 private:
  avx2::LongRequantizer requantizer_;
};

template <typename Sums>
class Depthwise3 final : public Op {
 public:
  static OpPointer make(const ConvSpec& s) {
    const auto panels = split_channels<2>(s.out_channels);
    auto sums = Sums::make(s, panels);
    return sums ? std::make_unique<Depthwise3>(s, panels, std::move(sums)) : nullptr;
  }

  Depthwise3(const ConvSpec& s, const std::vector<ChannelPanel>& panels, std::unique_ptr<Sums> sums)
      : stride_h_(s.stride_h), stride_w_(s.stride_w), pad_h_(s.pad_h), pad_w_(s.pad_w),
        low_(_mm256_set1_epi8(static_cast<char>(s.epilogue.low))),
        high_(_mm256_set1_epi8(static_cast<char>(s.epilogue.high))),
        panels_(panels), weights_(panels.size() * kStep), sums_(std::move(sums)) {
    for (size_t i = 0; i < weights_.size(); ++i)
      for (int lane = 0; lane < kLanes; ++lane)
        if (const int c = channel(panels[i / kStep], i % 2, lane); c >= 0)
          weights_[i].set(lane, &s.weight[size_t(c) * 9], [&](int w) { return Sums::digit(w, i / 2 % Sums::kDigits); });
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    for (size_t i = 0; i < panels_.size(); ++i) {
      if (panels_[i].rows == 1) run_panel<1>(i, *in, out, first, end);
      else run_panel<2>(i, *in, out, first, end);
    }
  }

  const char* method() const override { return Sums::kMethod; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(weights_.size() * sizeof(Weights)); }

 private:
  static constexpr int kStep = 2 * Sums::kDigits;  // registers of sums a column: digits, and halves of the channels

  template <int Rows>
  void run_panel(size_t index, const View& in, const View& out, int64_t first, int64_t end) const {
    const int channel = panels_[index].channel;
    for (int64_t unit = first; unit < end; unit += Rows) {
      const uint8_t* rows[3][Rows];
      uint8_t* to[Rows];
      for (int r = 0; r < Rows; ++r) {  // behind the last row the last again
        const int64_t u = std::min(unit + r, end - 1), image = u / out.height;
        const int y = static_cast<int>(u % out.height);
        for (int ky = 0; ky < 3; ++ky) rows[ky][r] = in.at(image, y * stride_h_ - pad_h_ + ky, -pad_w_) + channel;
        to[r] = out.at(image, y, 0) + channel;
      }
      for (int x = 0; x < out.width; x += kColumns) {
        const int count = std::min(kColumns, out.width - x);
        const bool last = x + count == out.width;
        if (stride_w_ == 1) run_columns<Rows, 1>(index, rows, in.pixel, count, last, to, out.pixel);
        else run_columns<Rows, 2>(index, rows, in.pixel, count, last, to, out.pixel);
        for (int r = 0; r < Rows; ++r) {
          for (auto& row : rows) row[r] += count * stride_w_ * in.pixel;
          to[r] += count * out.pixel;
        }
      }
    }
  }

  template <int Rows, int Stride>
  void run_columns(size_t index, const uint8_t* const (&rows)[3][Rows], std::ptrdiff_t pixel, int count, bool last,
                   uint8_t* const* to, std::ptrdiff_t step) const {
    alignas(32) int16_t sums[kColumns * kStep * kLanes];
    for (int i = 0; i < kStep; ++i) {
      const auto half = i % 2 ? convolve<Rows, Stride, true> : convolve<Rows, Stride, false>;
      half(rows, pixel, count, last ? 0 : pixel, weights_[index * kStep + i], kStep * kLanes, sums + i * kLanes);
    }
    sums_->codes(sums, count, index);
    for (int x = 0; x < count; ++x) {
      const __m256i codes = _mm256_min_epu8(_mm256_max_epu8(load(sums + 2 * kLanes * x), low_), high_);
      avx2::store_rows<Rows>(to, x * step, panels_[index].channels, codes);
    }
  }

  int stride_h_, stride_w_, pad_h_, pad_w_;
  __m256i low_, high_;
  std::vector<ChannelPanel> panels_;
  std::vector<Weights> weights_;  // [panel][digit][half]
  std::unique_ptr<Sums> sums_;
};

}  // namespace

OpPointer avx2::make_depthwise3(const ConvSpec& s) {
  if (s.epilogue.wide || s.kernel_h != 3 || s.kernel_w != 3 || s.dilation_h != 1 || s.dilation_w != 1) return nullptr;
  if (s.stride_w > 2) return nullptr;
  if (OpPointer op = Depthwise3<Short>::make(s)) return op;
  return Depthwise3<Long>::make(s);
}

}  // namespace haq
