#include "weightsmith/match/visit_order.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "weightsmith/core/error.h"

namespace weightsmith {

VisitOrder::VisitOrder(std::int64_t groups, std::uint64_t seed)
    : groups_(groups), generator_(at::detail::createCPUGenerator(seed)) {
  WS_CHECK(groups >= 0);
}

std::vector<std::int64_t> VisitOrder::next() {
  const at::Tensor order = at::randperm(groups_, generator_, at::TensorOptions(at::kLong));
  const auto* begin = order.data_ptr<std::int64_t>();
  return {begin, begin + groups_};
}

}  // namespace weightsmith
