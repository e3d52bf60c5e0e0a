// Choosing an implementation: by what the CPU has, then by what the spec asks.
#include <stdexcept>

#include "kernels.h"

namespace haq {
namespace {

const std::vector<const Kernels*>& all() {
  static const std::vector<const Kernels*> tables = {
#if defined(HAQ_AMX)
      &kAmx,
#endif
#if defined(HAQ_X86)
      &kAvx512, &kAvx2,
#endif
#if defined(HAQ_NEON)
      &kNeon,
#endif
      &kPortable,
  };
  return tables;
}

template <typename Spec>
OpPointer first(OpPointer (*Kernels::*factory)(const Spec&), const Spec& spec, const std::string& isa) {
  for (const Kernels* table : tables(isa))
    if (table->*factory)
      if (OpPointer op = (table->*factory)(spec)) return op;
  return nullptr;
}

OpPointer convolution(const Kernels& table, const ConvSpec& spec, bool few_rows) {
  OpPointer op;
  const bool matrix = spec.kernel_h * spec.kernel_w == 1 && spec.stride_h == 1 && spec.stride_w == 1;
  const bool depthwise = spec.groups == spec.in_channels && spec.groups == spec.out_channels;
  if (table.linear && few_rows && matrix && spec.groups == 1 && (op = table.linear(spec))) return op;
  if (table.binary && spec.groups == 1 && (op = table.binary(spec))) return op;
  if (table.depthwise && depthwise && spec.groups > 1 && (op = table.depthwise(spec))) return op;
  return table.conv2d ? table.conv2d(spec) : nullptr;
}

}  // namespace

std::vector<const Kernels*> tables(const std::string& isa) {
  std::vector<const Kernels*> found;
  bool reached = isa.empty();
  for (const Kernels* table : all()) {
    reached = reached || isa == table->name;
    if (reached && table->available()) found.push_back(table);
  }
  if (!reached) throw std::invalid_argument("no instruction set is called '" + isa + "'");
  return found;
}

OpPointer make_conv(const ConvSpec& spec, const std::string& isa, bool few_rows) {
  for (const Kernels* table : tables(isa))
    if (OpPointer op = convolution(*table, spec, few_rows)) return op;
  return nullptr;
}

OpPointer make_weighted_sum(const SumSpec& spec, const std::string& isa) {
  return first(&Kernels::weighted_sum, spec, isa);
}
OpPointer make_average(const PoolSpec& spec, const std::string& isa) { return first(&Kernels::average, spec, isa); }
OpPointer make_maximum(const PoolSpec& spec, const std::string& isa) { return first(&Kernels::maximum, spec, isa); }

}  // namespace haq
