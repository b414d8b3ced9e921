#include "weightsmith/eval/channel_moments.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <catch2/catch.hpp>
#include <limits>
#include <vector>

using namespace weightsmith;

namespace {

/// All values of a channel, one row each, as (C, count) double.
at::Tensor rows_of(const at::Tensor& values, std::int64_t channel_dim) {
  return values.to(at::kDouble).movedim(channel_dim, 0).reshape({values.size(channel_dim), -1});
}

void check_moments(const ChannelMoments& moments, const at::Tensor& rows) {
  CHECK(moments.count() == static_cast<double>(rows.size(1)));
  CHECK(at::allclose(moments.mean(), rows.mean(1), 1e-12, 1e-12));
  const at::Tensor variance = rows.var(1, /*unbiased=*/false);
  CHECK(at::allclose(moments.variance(), variance, 1e-10, 1e-14));
  CHECK(at::allclose(moments.unbiased_variance(), rows.var(1, /*unbiased=*/true), 1e-10, 1e-14));
}

}  // namespace

TEST_CASE("moments of channels, wherever they lie and however long their rows are",
          "[channel_moments]") {
  at::manual_seed(3);
  struct Case {
    std::vector<std::int64_t> shape;
    std::int64_t channel_dim;
  };
  for (const auto& [shape, channel_dim] : std::vector<Case>{{{5, 3, 7, 9}, 1},
                                                            {{64, 40, 16, 16}, 1},
                                                            {{6, 4}, 1},
                                                            {{2, 17, 5}, 2},
                                                            {{3, 1, 8}, 1},
                                                            {{4, 3, 2, 1}, 1},
                                                            {{7, 2, 3}, 0}}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
      const at::Tensor values = (at::randn(shape, at::kDouble) * 3 + 1).to(dtype);
      INFO(values.sizes() << " along " << channel_dim << ", " << c10::toString(dtype));
      const at::Tensor rows = rows_of(values, channel_dim);
      check_moments(ChannelMoments::of(values, channel_dim), rows);
      // Strided as well.
      const at::Tensor turned = values.transpose(0, shape.size() - 1).contiguous();
      check_moments(ChannelMoments::of(turned.transpose(0, shape.size() - 1), channel_dim), rows);
    }
  }
}

TEST_CASE("batches of any size are merged", "[channel_moments]") {
  at::manual_seed(4);
  // Mean 50 and deviation 0.01: differences of squares would cancel.
  const at::Tensor values = at::randn({40, 6, 5}, at::kDouble) * 0.01 + 50;
  ChannelMoments moments;
  for (std::int64_t begin = 0; const std::int64_t size : {1, 7, 30, 2}) {
    moments.add(ChannelMoments::of(values.narrow(0, begin, size), 1));
    begin += size;
  }
  check_moments(moments, rows_of(values, 1));
}

TEST_CASE("a channel's moments do not depend on the threads, and show what is not finite",
          "[channel_moments]") {
  at::manual_seed(5);
  at::Tensor values = at::randn({32, 24, 33, 33});
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const ChannelMoments one = ChannelMoments::of(values, 1);
  at::set_num_threads(3);
  const ChannelMoments three = ChannelMoments::of(values, 1);
  at::set_num_threads(threads);
  CHECK(at::equal(one.mean(), three.mean()));
  CHECK(at::equal(one.variance(), three.variance()));
  values[3][2][1][1] = std::numeric_limits<float>::infinity();
  const at::Tensor finite = at::isfinite(ChannelMoments::of(values, 1).variance());
  CHECK(finite.sum().item<std::int64_t>() == 23);
  CHECK_FALSE(finite[2].item<bool>());
}
