// Linear layers of few rows, bound by reading their weights: 2 to 4 bits each, packed densely, taken apart in registers.
// 1 bit: see avx512_planes.cpp.
//
// A panel is 128 outputs. Its weights for four inputs are `Bits` words of 64 bytes: 16 lanes of four inputs, where every byte
// holds the codes of several outputs side by side as fields. vpdpbusd takes a masked word as a sum of the field times its
// place, and the whole word as the sum over all fields: the top one is what is left, and costs no mask. The words are signed
// bytes, so the top field, whose highest bit is stored inverted, counts its code less half of its range.
#include <cstring>

#include "avx512_epilogue.h"
#include "kernels.h"
#include "packed_bits.h"

namespace haq {

OpPointer avx512_planes(const Codes& codes);

namespace {

constexpr int kOutputs = 128, kLanes = 16, kFields = 8;

inline __m512i masked(__m512i word, int mask) { return _mm512_and_si512(word, _mm512_set1_epi8(static_cast<char>(mask))); }

inline __m512i broadcast(const uint8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return _mm512_set1_epi32(four);
}

// The fields of a word below the top one. 2 and 4 bits: as many as fit. 3 bits: two outputs' codes and, on top, the upper
// two bits of another; in the third word, the lowest bits of those two others instead.
template <int Bits>
struct Layout {
  static constexpr int kPerWord = 8 / Bits;
  static constexpr int masks(int) { return kPerWord - 1; }
  static constexpr int mask(int, int field) { return ((1 << Bits) - 1) << (Bits * field); }
  static constexpr int kSums = kPerWord;  // per word, the top one included
};

template <>
struct Layout<3> {
  static constexpr int kSums = 4;
  static constexpr int masks(int word) { return word == 2 ? 3 : 2; }
  static constexpr int mask(int, int field) { return field == 0 ? 0x07 : field == 1 ? 0x38 : 0x40; }
};

// The fields of one word of 2 or 4 bits; sums holds them masked, then the whole word.
template <int Bits>
inline void split(const __m512i* sums, __m512i* fields) {
  constexpr int top = 8 / Bits - 1;
  __m512i rest = sums[top];
  for (int p = 0; p < top; ++p) {
    rest = _mm512_sub_epi32(rest, sums[p]);
    fields[p] = _mm512_srai_epi32(sums[p], Bits * p);
  }
  fields[top] = _mm512_srai_epi32(rest, Bits * top);
}

// The eight sums of codes times inputs, 16 outputs each, from the sums over the words.
template <int Bits>
inline void separate(const __m512i (*sums)[Layout<Bits>::kSums], __m512i* fields) {
  if constexpr (Bits != 3) {
    for (int word = 0; word < Bits; ++word) split<Bits>(sums[word], fields + word * (8 / Bits));
  } else {
    __m512i upper[2];
    for (int word = 0; word < 3; ++word) {
      fields[2 * word] = sums[word][0];
      fields[2 * word + 1] = _mm512_srai_epi32(sums[word][1], 3);
      const int last = Layout<3>::masks(word);
      __m512i rest = sums[word][last];
      for (int p = 0; p < last; ++p) rest = _mm512_sub_epi32(rest, sums[word][p]);
      if (word < 2) upper[word] = _mm512_srai_epi32(rest, 5);  // the upper two bits count double
      else fields[7] = _mm512_add_epi32(upper[1], _mm512_srai_epi32(rest, 7));
    }
    fields[6] = _mm512_add_epi32(upper[0], _mm512_srai_epi32(sums[2][2], 6));
  }
}

// What field f's sum lacks, in units of the sum of the inputs: the halves of the ranges of its top fields.
template <int Bits>
constexpr int missing(int field) {
  if constexpr (Bits == 3) return field == 6 ? 4 : field == 7 ? 5 : 0;
  return field % (8 / Bits) == 8 / Bits - 1 ? 1 << (Bits - 1) : 0;
}

// sum of code * input for a panel: out[row][field][16] without what is missing().
template <int Bits, int Rows>
void multiply(const uint8_t* weight, const uint8_t* const* x, int steps, int32_t* out) {
  using L = Layout<Bits>;
  __m512i acc[Rows][Bits][L::kSums];
  for (int r = 0; r < Rows; ++r)
    for (int word = 0; word < Bits; ++word)
      for (int p = 0; p <= L::masks(word); ++p) acc[r][word][p] = _mm512_setzero_si512();
  for (int k = 0; k < steps; ++k, weight += 64 * Bits) {
    __m512i input[Rows];
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) input[r] = broadcast(x[r] + 4 * k);
#pragma GCC unroll 4
    for (int word = 0; word < Bits; ++word) {
      const __m512i whole = avx512::load(weight + 64 * word);
#pragma GCC unroll 8
      for (int p = 0; p < L::kSums; ++p) {
        if (p > L::masks(word)) continue;
        const __m512i part = p == L::masks(word) ? whole : masked(whole, L::mask(word, p));
#pragma GCC unroll 2
        for (int r = 0; r < Rows; ++r) acc[r][word][p] = _mm512_dpbusd_epi32(acc[r][word][p], input[r], part);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    __m512i fields[kFields];
    separate<Bits>(acc[r], fields);
    for (int f = 0; f < kFields; ++f) _mm512_store_si512(out + (r * kFields + f) * kLanes, fields[f]);
  }
}

// The bytes of four codes' words for one lane and input.
template <int Bits>
void pack_byte(const int* code, uint8_t* word, std::ptrdiff_t stride) {
  if constexpr (Bits == 3) {
    word[0 * stride] = static_cast<uint8_t>(code[0] | code[1] << 3 | code[6] >> 1 << 6);
    word[1 * stride] = static_cast<uint8_t>(code[2] | code[3] << 3 | code[7] >> 1 << 6);
    word[2 * stride] = static_cast<uint8_t>(code[4] | code[5] << 3 | (code[6] & 1) << 6 | (code[7] & 1) << 7);
  } else {
    for (int i = 0; i < Bits; ++i) {
      word[i * stride] = 0;
      for (int p = 0; p < 8 / Bits; ++p) word[i * stride] |= static_cast<uint8_t>(code[i * (8 / Bits) + p] << (Bits * p));
    }
  }
  for (int i = 0; i < Bits; ++i) word[i * stride] ^= 0x80;
}

template <int Bits>
class Linear final : public Op {
 public:
  explicit Linear(const Codes& codes)
      : inputs_(codes.spec.in_channels), steps_((inputs_ + 3) / 4), levels_(codes.levels),
        requantizer_(codes.spec.folded(), codes.spec.bound()),
        panels_((codes.spec.out_channels + kOutputs - 1) / kOutputs), blocks_((codes.spec.out_channels + kLanes - 1) / kLanes) {
    packed_.resize(size_t(panels_) * panel_bytes() + 63);
    uint8_t* word = aligned();
    for (int panel = 0; panel < panels_; ++panel)
      for (int k = 0; k < steps_; ++k, word += 64 * Bits)
        for (int lane = 0; lane < kLanes; ++lane)
          for (int i = 0; i < 4 && codes.has(4 * k + i); ++i) {  // bytes beyond the last input stay 0 and count nothing
            int code[kFields];
            for (int f = 0; f < kFields; ++f) code[f] = codes.at(panel * kOutputs + f * kLanes + lane, 4 * k + i);
            pack_byte<Bits>(code, word + 4 * lane + i, 64);
          }
  }

  int64_t units(const View&, int images) const override { return int64_t(images) * panels_; }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    const size_t stride = size_t(steps_) * 4;
    std::vector<uint8_t> inputs(kRows * stride);  // with zeros behind the last, where memory may hold anything
    const uint8_t* x[kRows];
    uint8_t* to[kRows];
    int32_t sums[kRows];
    const auto prepare = [&](const Row* rows, int count) {
      for (int r = 0; r < count; ++r) {
        std::memcpy(inputs.data() + r * stride, rows[r].from, inputs_);
        x[r] = inputs.data() + r * stride, to[r] = rows[r].to;
        sums[r] = std::accumulate(rows[r].from, rows[r].from + inputs_, 0);
      }
    };
    for_rows(*in, out, panels_, first, end, prepare, [&](int panel, int row, int count) {
      for (int r = row; r < row + count; r += 2) {
        const int together = std::min(2, row + count - r);
        finish(panel, x + r, to + r, sums + r, together);
      }
    });
  }

  const char* method() const override {
    constexpr const char* names[] = {"", "", "avx512 vnni, 2-bit weights",
                                     "avx512 vnni, 3-bit weights", "avx512 vnni, 4-bit weights"};
    return names[Bits];
  }
  int64_t packed_bytes() const override { return int64_t(panels_) * panel_bytes(); }

 private:
  size_t panel_bytes() const { return size_t(steps_) * 64 * Bits; }
  const uint8_t* aligned() const {
    return packed_.data() + (-reinterpret_cast<std::uintptr_t>(packed_.data()) & 63);
  }
  uint8_t* aligned() { return const_cast<uint8_t*>(static_cast<const Linear*>(this)->aligned()); }

  void finish(int panel, const uint8_t* const* x, uint8_t* const* to, const int32_t* sums, int rows) const {
    alignas(64) int32_t acc[2 * kOutputs];
    const uint8_t* weight = aligned() + panel * panel_bytes();
    if (rows == 2) multiply<Bits, 2>(weight, x, steps_, acc);
    else multiply<Bits, 1>(weight, x, steps_, acc);
    for (int r = 0; r < rows; ++r) {
      int32_t* of = acc + r * kOutputs;
      for (int f = 0; f < kFields; ++f) {
        const __m512i lacks = _mm512_set1_epi32(sums[r] * (levels_.base + levels_.step * missing<Bits>(f)));
        const __m512i scaled = _mm512_mullo_epi32(avx512::load(of + f * kLanes), _mm512_set1_epi32(levels_.step));
        _mm512_store_si512(of + f * kLanes, _mm512_add_epi32(scaled, lacks));
      }
      const int block = panel * kFields, blocks = std::min(kFields, blocks_ - block);
      int f = 0;
      for (; f + 1 < blocks; f += 2) requantizer_.store<2>(of + f * kLanes, to + r, 1, block + f);
      if (f < blocks) requantizer_.store<1>(of + f * kLanes, to + r, 1, block + f);
    }
  }

  int inputs_, steps_;
  Levels levels_;
  avx512::Requantizer requantizer_;
  int panels_, blocks_;
  std::vector<uint8_t> packed_;
};

}  // namespace

OpPointer avx512_linear(const ConvSpec& spec) {
  // Sums of whole words, and the corrections, must stay in int32.
  if (int64_t(spec.in_channels) * 255 * 255 > INT32_MAX || spec.out_channels < kOutputs) return nullptr;
  const Codes codes(spec);
  switch (codes.levels.bits) {
    case 1: return avx512_planes(codes);
    case 2: return std::make_unique<Linear<2>>(codes);
    case 3: return std::make_unique<Linear<3>>(codes);
    case 4: return std::make_unique<Linear<4>>(codes);
    default: return nullptr;
  }
}

}  // namespace haq
