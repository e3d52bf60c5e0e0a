// Convolutions of few bits on both sides, by tables rather than bit counts: measured faster than AND and popcount.
//
// Some codes of neighbouring input channels are an index x, the codes of the weights they meet an index w of 4 bits. A table
// for each x holds the sum of products for each w, and one byte shuffle looks it up for all outputs of a vector: two
// instructions, shuffle and addition, for 4 * 32 products of one bit. Entries are counted from the lowest possible sum, so
// they are unsigned bytes; as many are added as a byte holds, then they go to 16 bits.
#pragma once

#include <cstring>

#include "packed_bits.h"
#include "packed_patch.h"

namespace haq {

// How a convolution's operands become indices.
struct TablePlan {
  Levels levels;
  int input_bits = 1;
  int together = 0;       // inputs of an index
  int groups = 0;         // indices of a pixel
  int lowest = 0, highest = 0;  // sums of one group

  // index_bits: of w. table_bytes: of one table.
  TablePlan(const ConvSpec& s, int index_bits) : levels(s.weight) {
    while (s.input_high >> input_bits) ++input_bits;
    together = std::min(index_bits / levels.bits, 8 / input_bits);
    if (!together) return;
    groups = (s.in_channels + together - 1) / together;
    const auto [low, high] = std::minmax_element(s.weight.begin(), s.weight.end());
    lowest = together * s.input_high * std::min<int>(0, *low);
    highest = together * s.input_high * std::max<int>(0, *high);
  }

  int range() const { return highest - lowest; }
  int additions() const { return range() ? 255 / range() : 255; }
  // Whether the sums of a window, as counted here, fit 16 bits.
  bool fits(const ConvSpec& s) const {
    return together && range() <= 255 && int64_t(groups) * s.kernel_h * s.kernel_w * range() < 65536;
  }
};

// Isa: vectors of kLanes bytes, kVectors of them to a panel, kPixels to a tile, tables of kTable bytes; see avx2_binary.cpp.
template <typename Isa>
class TableConv final : public Op {
 public:
  TableConv(const ConvSpec& spec, const TablePlan& plan)
      : s_(spec), plan_(plan), requantizer_(Isa::requantizer(spec)), packer_(plan, spec.in_channels) {
    make_tables();
    make_weights();
  }

  void run(const View* in, const View& out, int64_t first, int64_t end) const override {
    if (first >= end) return;
    const auto pack = [this](const uint8_t* codes, uint16_t* to, std::ptrdiff_t) { packer_(codes, to); };
    const PackedPatch<uint16_t> patch(s_, *in, out, first, end, plan_.groups, 1, Isa::kSpare, pack);
    const Stretches stretches(s_, patch.row, plan_.groups);
    for (int panel = 0; panel * kOutputs < s_.out_channels; ++panel) {
      size_t i = 0;
      for (; i + Isa::kPixels <= patch.to.size(); i += Isa::kPixels) tile<Isa::kPixels>(panel, patch, i, stretches);
      for (; i < patch.to.size(); ++i) tile<1>(panel, patch, i, stretches);
    }
  }

  const char* method() const override { return Isa::kName; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(weight_.size() + tables_.size()); }

 private:
  using Vector = typename Isa::Vector;
  static constexpr int kOutputs = Isa::kLanes * Isa::kVectors;

  void make_tables() {
    const int inputs = 1 << plan_.input_bits * plan_.together, input_mask = (1 << plan_.input_bits) - 1;
    tables_.resize(size_t(inputs) * Isa::kTable);
    for (int x = 0; x < inputs; ++x)
      for (int w = 0; w < Isa::kTable; ++w) {
        int sum = -plan_.lowest;
        for (int i = 0; i < plan_.together; ++i) {
          const int code = w >> (i * plan_.levels.bits) & ((1 << plan_.levels.bits) - 1);
          sum += (x >> (i * plan_.input_bits) & input_mask) * (plan_.levels.base + plan_.levels.step * code);
        }
        tables_[size_t(x) * Isa::kTable + w] = static_cast<uint8_t>(sum);  // those out of range are never looked up
      }
  }

  // [panel][ky][kx][group][vector][lane]. Even lanes are the first half of a vector's outputs, odd ones the second.
  void make_weights() {
    const int taps = s_.kernel_h * s_.kernel_w, panels = (s_.out_channels + kOutputs - 1) / kOutputs;
    weight_.resize(size_t(panels) * taps * plan_.groups * kOutputs);
    uint8_t* index = weight_.data();
    for (int panel = 0; panel < panels; ++panel)
      for (int tap = 0; tap < taps; ++tap)
        for (int group = 0; group < plan_.groups; ++group)
          for (int lane = 0; lane < kOutputs; ++lane, ++index) {
            const int in_vector = lane % Isa::kLanes;
            const int n = panel * kOutputs + lane - in_vector + in_vector / 2 + in_vector % 2 * (Isa::kLanes / 2);
            for (int i = 0; i < plan_.together; ++i) {
              const int c = group * plan_.together + i;
              if (n >= s_.out_channels || c >= s_.in_channels) continue;
              const int code = plan_.levels.code(s_.weight[(size_t(n) * s_.in_channels + c) * taps + tap]);
              *index |= static_cast<uint8_t>(code << (i * plan_.levels.bits));
            }
          }
  }

  template <int Pixels>
  void tile(int panel, const PackedPatch<uint16_t>& patch, size_t at, const Stretches& stretches) const {
    constexpr int V = Isa::kVectors;
    const int run_length = stretches.length;
    const uint16_t* from[Pixels];
    for (int p = 0; p < Pixels; ++p) from[p] = patch.data.data() + patch.windows[at + p] * plan_.groups;
    Vector wide[Pixels][V][2];  // sums of 16-bit lanes, and of their upper bytes
    for (auto& pixel : wide)
      for (auto& vector : pixel) vector[0] = vector[1] = Isa::zero();
    const size_t length = size_t(run_length) * kOutputs;
    const uint8_t* weight = weight_.data() + panel * stretches.offsets.size() * length;
    const uint8_t* const tables = tables_.data();
    const int additions = plan_.additions();
    for (const std::ptrdiff_t offset : stretches.offsets)
      for (int group = 0; group < run_length;) {
        const int last = std::min(group + additions, run_length);
        Vector bytes[Pixels][V];
        for (auto& pixel : bytes)
          for (auto& vector : pixel) vector = Isa::zero();
#pragma GCC unroll 1
        for (; group < last; ++group, weight += kOutputs) {
          Vector index[V];
          for (int v = 0; v < V; ++v) index[v] = Isa::load(weight + v * Isa::kLanes);
          for (int p = 0; p < Pixels; ++p) {
            const Vector table = Isa::load_table(tables + from[p][offset + group]);
            for (int v = 0; v < V; ++v) bytes[p][v] = Isa::add8(bytes[p][v], Isa::look_up(table, index[v]));
          }
        }
        for (int p = 0; p < Pixels; ++p)
          for (int v = 0; v < V; ++v) {
            wide[p][v][0] = Isa::add16(wide[p][v][0], bytes[p][v]);
            wide[p][v][1] = Isa::add16(wide[p][v][1], Isa::upper_bytes(bytes[p][v]));
          }
      }
    const int32_t constant = plan_.lowest * run_length * static_cast<int>(stretches.offsets.size());
    for (int v = 0; v < V; ++v) {
      const int first = panel * kOutputs + v * Isa::kLanes;
      if (first >= s_.out_channels) break;
      for (int p = 0; p < Pixels; ++p) {
        alignas(64) int32_t acc[Isa::kLanes];
        Isa::accumulators(wide[p][v], constant, acc);
        Isa::store(requantizer_, acc, patch.to[at + p], first, std::min(Isa::kLanes, s_.out_channels - first));
      }
    }
  }

  ConvSpec s_;
  TablePlan plan_;
  typename Isa::Requantizer requantizer_;
  typename Isa::Packer packer_;
  std::vector<uint8_t> weight_, tables_;
};

}  // namespace haq
