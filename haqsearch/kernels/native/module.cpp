// The Python face of the kernels. Arrays come in as contiguous CPU arrays; haqsearch/kernels/native/__init__.py checks them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "descent.h"
#include "executor.h"
#include "histogram.h"
#include "kernels.h"
#include "peak.h"

namespace nb = nanobind;
using namespace haq;

namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
using Ints = std::vector<int>;

template <typename T>
std::vector<T> values(const Array<T>& array) {
  return {array.data(), array.data() + array.size()};
}

// The constants as the program holds them: three int64 arrays of one entry, or of one per channel.
Epilogue epilogue(const Array<int64_t>& multiplier, const Array<int64_t>& offset, const Array<int64_t>& shift,
                  int zero_point, int low, int high, bool wide, size_t channels) {
  Epilogue e;
  if (multiplier.size() != offset.size() || multiplier.size() != shift.size() ||
      (multiplier.size() != 1 && multiplier.size() != channels))
    throw std::invalid_argument("an epilogue has one entry, or one for each output channel");
  for (size_t n = 0; n < channels; ++n) {
    const size_t i = multiplier.size() == 1 ? 0 : n;
    const int64_t m = multiplier.data()[i], s = shift.data()[i];
    if (m < 0 || m >= int64_t(1) << 31 || s < 1 || s > 62)
      throw std::invalid_argument("an epilogue's multiplier lies in [0, 2**31), its shift in [1, 62]");
    e.multiplier.push_back(static_cast<int32_t>(m));
    e.offset.push_back(offset.data()[i]);
    e.shift.push_back(static_cast<int32_t>(s));
  }
  if (low > high || low < (wide ? -32768 : 0) || high > (wide ? 32767 : 255))
    throw std::invalid_argument("an epilogue's clamp leaves the type of its codes");
  e.zero_point = zero_point, e.low = low, e.high = high, e.wide = wide;
  return e;
}

std::shared_ptr<Op> conv(const Array<int8_t>& weight, int weight_bits, const Ints& geometry, int groups,
                         const Ints& input, const Epilogue& e, bool few_rows, const std::string& isa) {
  if (weight.ndim() != 4 || geometry.size() != 8 || input.size() != 3)
    throw std::invalid_argument("conv takes weights (N, C / groups, kh, kw), 8 numbers of geometry, 3 of the input");
  ConvSpec s;
  s.out_channels = static_cast<int>(weight.shape(0)), s.groups = groups;
  s.in_channels = static_cast<int>(weight.shape(1)) * groups;
  s.kernel_h = static_cast<int>(weight.shape(2)), s.kernel_w = static_cast<int>(weight.shape(3));
  s.stride_h = geometry[0], s.stride_w = geometry[1], s.pad_h = geometry[2], s.pad_w = geometry[3];
  s.dilation_h = geometry[4], s.dilation_w = geometry[5], s.height = geometry[6], s.width = geometry[7];
  s.weight = values(weight), s.weight_bits = weight_bits;
  s.input_low = input[0], s.input_high = input[1], s.input_zero_point = input[2];
  s.epilogue = e;
  if (groups < 1 || s.out_channels % groups || e.multiplier.size() != size_t(s.out_channels) || weight.size() == 0)
    throw std::invalid_argument("conv: groups must divide the output channels, and there must be some");
  if (std::min({s.stride_h, s.stride_w, s.dilation_h, s.dilation_w}) < 1 || std::min(s.pad_h, s.pad_w) < 0)
    throw std::invalid_argument("conv: strides and dilations are at least 1, paddings at least 0");
  if (s.input_low < 0 || s.input_high > 255 || s.input_low > s.input_high)
    throw std::invalid_argument("conv: input codes lie in 0..255");
  if (s.bound() > INT32_MAX) throw std::invalid_argument("conv: an accumulator can leave int32");
  return make_conv(s, isa, few_rows);
}

// (name, multiply-adds, seconds) of chains in registers, for each instruction set there is.
std::vector<std::tuple<std::string, int64_t, double>> peaks(int64_t iterations) {
  std::vector<std::tuple<std::string, int64_t, double>> found;
  for (const Kernels* table : tables("")) {
    std::vector<Peak> chains;
#if defined(HAQ_X86)
    if (table == &kAvx2) chains = avx2_peaks();
    if (table == &kAvx512) chains = avx512_peaks();
#endif
#if defined(HAQ_AMX)
    if (table == &kAmx) chains = amx_peaks();
#endif
    for (const Peak& peak : chains) {
      const auto start = std::chrono::steady_clock::now();
      const int64_t products = peak.run(iterations);
      found.emplace_back(peak.name, products, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  }
  return found;
}

// Seconds to read `bytes` bytes at `address` once, and a sum so that they are read.
std::pair<double, uint64_t> read_memory(uintptr_t address, int64_t bytes) {
  const uint64_t* words = reinterpret_cast<const uint64_t*>(address);
  uint64_t sums[8] = {};
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i + 8 <= bytes / 8; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (int j = 1; j < 8; ++j) sums[0] += sums[j];
  return {seconds, sums[0]};
}

using Doubles = nb::ndarray<double, nb::c_contig, nb::device::cpu>;

// Its arrays belong together if `fits` says so of the others too. The lowest and the highest level, or all of them; `step` empty
// for 1 everywhere.
void fill(Lattice& lattice, const Doubles& rows, const Doubles& scale, double low, double high, const Doubles& levels,
          const Doubles& middles, const Doubles& step, bool fits) {
  const size_t size = rows.size();
  if (rows.ndim() != 3) throw std::invalid_argument("weights are (G, N, K)");
  if (!fits || scale.size() != rows.shape(0) * rows.shape(1) || (step.size() && step.size() != size) ||
      (levels.size() && middles.size() + 1 != levels.size()))
    throw std::invalid_argument("the arrays of a layer's weights do not belong together");
  lattice.groups = rows.shape(0), lattice.channels = rows.shape(1), lattice.inputs = rows.shape(2);
  lattice.rows = rows.data(), lattice.scale = scale.data(), lattice.step = step.size() ? step.data() : nullptr;
  lattice.low = low, lattice.high = high, lattice.level_count = levels.size();
  lattice.levels = levels.size() ? levels.data() : nullptr, lattice.middles = middles.data();
}

bool squares_of(const Doubles& square, const Doubles& rows) {
  return rows.ndim() == 3 && square.size() == rows.shape(0) * rows.shape(2) * rows.shape(2);
}

void decision(const Doubles& codes, const Doubles& rows, const Doubles& scale, const Doubles& share, double low, double high,
              const Doubles& levels, const Doubles& middles, const Doubles& step, int threads) {
  Decision d{};
  fill(d, rows, scale, low, high, levels, middles, step, codes.size() == rows.size() && squares_of(share, rows));
  d.codes = codes.data(), d.share = share.data();
  nb::gil_scoped_release release;
  decide(d, threads);
}

void coordinate_descent(const Doubles& codes, const Doubles& error, const Doubles& slope, const Doubles& rows, const Doubles& scale,
                        const Doubles& covariance, double low, double high, const Doubles& levels, const Doubles& middles,
                        const Doubles& step, int sweeps, int threads) {
  const size_t size = rows.size();
  Descent d{};
  fill(d, rows, scale, low, high, levels, middles, step,
       codes.size() == size && error.size() == size && slope.size() == size && squares_of(covariance, rows));
  d.codes = codes.data(), d.error = error.data(), d.slope = slope.data(), d.covariance = covariance.data();
  nb::gil_scoped_release release;
  descend(d, sweeps, threads);
}

Tensor tensor(const Ints& shape, const Ints& border, int bytes, int fill, bool planar,
              int64_t offset, int64_t stride) {
  Tensor t{shape.at(0), shape.at(1), shape.at(2), border.at(0), border.at(1), border.at(2), border.at(3), bytes, fill, planar};
  t.offset = offset, t.stride = stride;
  return t;
}

Box box(const Ints& b) {
  return {b.at(0), b.at(1), b.at(2), b.at(3), b.at(4), b.at(5), b.at(6), b.at(7), b.at(8)};
}

}  // namespace

NB_MODULE(_native, m) {
  nb::class_<Epilogue>(m, "Epilogue");
  nb::class_<Op>(m, "Op")
      .def_prop_ro("method", [](const Op& op) { return std::string(op.method()); })
      .def_prop_ro("packed_bytes", &Op::packed_bytes);
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Kernels* table : tables("")) names.emplace_back(table->name);
    return names;
  });
  m.def("epilogue", &epilogue);
  m.def("conv", &conv);
  m.def("weighted_sum",
        [](std::vector<int> zero_points, std::vector<int64_t> multipliers, const Epilogue& e, const std::string& isa) {
          return std::shared_ptr<Op>(make_weighted_sum({zero_points, multipliers, e}, isa));
        });
  m.def("pool", [](const Ints& g, int zero_point, const Epilogue* e, const std::string& isa) {
    PoolSpec s{g.at(0), g.at(1), g.at(2), g.at(3), g.at(4), g.at(5), g.at(6), g.at(7), zero_point, {}};
    if (e) s.epilogue = *e;
    return std::shared_ptr<Op>(e ? make_average(s, isa) : make_maximum(s, isa));
  }, nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
  m.def("peaks", &peaks, nb::call_guard<nb::gil_scoped_release>());
  m.def("descend", &coordinate_descent);
  m.def("decide", &decision);
  m.def("histogram", [](const Array<float>& values, float low, float step,
                        const nb::ndarray<int64_t, nb::c_contig, nb::device::cpu>& counts, int threads) {
    if (!counts.size() || !(step > 0)) throw std::invalid_argument("a histogram has bins, and they have a width");
    nb::gil_scoped_release release;
    histogram(values.data(), values.size(), low, step, counts.data(), static_cast<int>(counts.size()), threads);
  });
  m.def("read_memory", &read_memory, nb::call_guard<nb::gil_scoped_release>());
  m.def("copy", [] { return std::shared_ptr<Op>(make_copy()); });
  m.def("flatten", [] { return std::shared_ptr<Op>(make_flatten()); });

  nb::class_<Executor>(m, "Executor")
      .def(nb::init<>())
      .def_rw("arena_bytes", &Executor::arena_bytes)
      .def("tensor", [](Executor& e, const Ints& shape, const Ints& border, int bytes, int fill, bool planar, int64_t offset,
                        int64_t stride) {
        e.tensors.push_back(tensor(shape, border, bytes, fill, planar, offset, stride));
      })
      .def("step", [](Executor& e, std::shared_ptr<Op> op, const std::vector<Ints>& inputs, const Ints& output,
                      bool whole) {
        Step s{std::move(op), {}, box(output), whole};
        for (const Ints& b : inputs) s.inputs.push_back(box(b));
        e.steps.push_back(std::move(s));
      })
      .def("quantize", [](Executor& e, int source, const Ints& b, float scale, int zero_point, int low, int high,
                          int bias) { e.imports.push_back({source, box(b), false, scale, zero_point, low, high, bias}); })
      .def("take", [](Executor& e, int source, const Ints& b, int bias) {
        e.imports.push_back({source, box(b), true, 1, 0, 0, 255, bias});
      })
      .def("give", [](Executor& e, int target, const Ints& b, int bias) { e.exports.push_back({target, box(b), bias}); })
      // Addresses of contiguous buffers, kept alive by the caller.
      .def("run", [](Executor& e, const std::vector<uintptr_t>& sources, const std::vector<uintptr_t>& targets,
                     int64_t batch, int chunk, int threads) {
        std::vector<const void*> from;
        std::vector<void*> to;
        for (uintptr_t p : sources) from.push_back(reinterpret_cast<const void*>(p));
        for (uintptr_t p : targets) to.push_back(reinterpret_cast<void*>(p));
        nb::gil_scoped_release release;
        e.run(from, to, batch, chunk, threads);
      });
}
