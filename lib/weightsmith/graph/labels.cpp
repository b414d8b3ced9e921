#include "weightsmith/graph/labels.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "weightsmith/core/error.h"
#include "weightsmith/core/rng.h"

namespace weightsmith {
namespace {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ULL;

std::uint64_t combine(std::uint64_t a, std::uint64_t b) {
  return mix_bits(mix_bits(a + kGolden) ^ (b + kGolden));
}

/// The array as (coordinates of `dims`, the rest), contiguous.
at::Tensor rows_by(const LabelArray& array, const std::vector<std::int64_t>& dims) {
  std::vector<std::int64_t> order;
  std::int64_t rows = 1;
  std::int64_t columns = 1;
  for (std::size_t i = 0; i < array.dims.size(); ++i)
    if (std::find(dims.begin(), dims.end(), array.dims[i]) != dims.end()) {
      order.push_back(static_cast<std::int64_t>(i));
      rows *= array.labels.size(static_cast<std::int64_t>(i));
    }
  WS_CHECK(order.size() == dims.size());
  for (std::size_t i = 0; i < array.dims.size(); ++i)
    if (std::find(dims.begin(), dims.end(), array.dims[i]) == dims.end()) {
      order.push_back(static_cast<std::int64_t>(i));
      columns *= array.labels.size(static_cast<std::int64_t>(i));
    }
  return array.labels.permute(order).reshape({rows, columns}).contiguous();
}

}  // namespace

LabelStore::LabelStore() { add(); }  // the label 0

Label LabelStore::add() {
  WS_CHECK(parent_.size() < std::numeric_limits<std::int32_t>::max());
  const auto label = static_cast<Label>(parent_.size());
  parent_.push_back(static_cast<std::int32_t>(label));
  marks_.push_back(0);
  distinctions_.emplace_back();
  causes_.push_back(0);
  return label;
}

at::Tensor LabelStore::fresh(at::IntArrayRef sizes) {
  at::Tensor labels = at::empty(sizes, at::kLong);
  auto* data = labels.data_ptr<Label>();
  for (std::int64_t i = 0; i < labels.numel(); ++i) data[i] = add();
  return labels;
}

Label LabelStore::find(Label label) const {
  while (parent_[label] != label) {
    parent_[label] = parent_[parent_[label]];
    label = parent_[label];
  }
  return label;
}

void LabelStore::unite(Label a, Label b) {
  if (a == 0 || b == 0) return;
  a = find(a);
  b = find(b);
  // The older label stays: parameters come before what is computed from them.
  parent_[std::max(a, b)] = static_cast<std::int32_t>(std::min(a, b));
}

void LabelStore::unite(const at::Tensor& a, const at::Tensor& b) {
  WS_CHECK(a.sizes() == b.sizes());
  const at::Tensor left = a.contiguous();
  const at::Tensor right = b.contiguous();
  const auto* x = left.data_ptr<Label>();
  const auto* y = right.data_ptr<Label>();
  for (std::int64_t i = 0; i < left.numel(); ++i) unite(x[i], y[i]);
}

LabelArray LabelStore::blocks_by(const LabelArray& array, const std::vector<std::int64_t>& dims) {
  if (dims == array.dims) return array;
  const at::Tensor rows = rows_by(array, dims);
  LabelArray result;
  result.dims = dims;
  std::vector<std::int64_t> sizes;
  for (std::size_t i = 0; i < array.dims.size(); ++i)
    if (std::find(dims.begin(), dims.end(), array.dims[i]) != dims.end())
      sizes.push_back(array.labels.size(static_cast<std::int64_t>(i)));
  result.labels = at::empty(sizes, at::kLong);
  for (std::int64_t r = 0; r < rows.size(0); ++r) {
    const auto* row = rows.data_ptr<Label>() + r * rows.size(1);
    std::vector<Label> members(row, row + rows.size(1));
    std::sort(members.begin(), members.end());
    members.erase(std::unique(members.begin(), members.end()), members.end());
    if (!members.empty() && members.front() == 0) members.erase(members.begin());
    Label& label = result.labels.data_ptr<Label>()[r];
    if (members.size() <= 1) {
      label = members.empty() ? 0 : members.front();
      continue;
    }
    const auto [it, is_new] = block_of_.emplace(members, 0);
    if (is_new) {
      it->second = add();
      blocks_.push_back({it->second, std::move(members), node_});
    }
    label = it->second;
  }
  return result;
}

void LabelStore::distinguish(const LabelArray& array, const std::vector<std::int64_t>& dims,
                             Distinction why) {
  const at::Tensor rows = rows_by(array, dims);
  std::vector<std::pair<Label, std::int64_t>> stands;  // a label and a coordinate where it stands
  for (std::int64_t r = 0; r < rows.size(0); ++r)
    for (std::int64_t i = 0; i < rows.size(1); ++i)
      if (const Label label = rows.data_ptr<Label>()[r * rows.size(1) + i]; label != 0)
        stands.emplace_back(label, r);
  std::sort(stands.begin(), stands.end());
  stands.erase(std::unique(stands.begin(), stands.end()), stands.end());
  const std::uint64_t event = ++events_;
  std::vector<std::pair<Label, std::uint64_t>> hashes;
  for (std::size_t i = 0; i < stands.size();) {
    const Label label = stands[i].first;
    std::uint64_t hash = event;
    for (; i < stands.size() && stands[i].first == label; ++i)
      hash = combine(hash, static_cast<std::uint64_t>(stands[i].second));
    hashes.emplace_back(label, hash);
  }
  // Labels that all stand everywhere are not told apart, whatever happens there.
  const bool tells_apart =
      hashes.size() == 1 || std::any_of(hashes.begin(), hashes.end(), [&](const auto& entry) {
        return entry.second != hashes.front().second;
      });
  for (const auto& [label, hash] : hashes) {
    marks_[label] += hash;
    causes_[label] |= static_cast<std::uint8_t>(1U << static_cast<unsigned>(why.cause));
    if (tells_apart && distinctions_[label].cause < why.cause) distinctions_[label] = why;
  }
}

void LabelStore::mark(const LabelArray& array) {
  const std::uint64_t hash = combine(++events_, 0);
  const at::Tensor labels = array.labels.contiguous();
  const auto* data = labels.data_ptr<Label>();
  for (std::int64_t i = 0; i < labels.numel(); ++i)
    if (data[i] != 0) marks_[data[i]] += hash;
}

}  // namespace weightsmith
