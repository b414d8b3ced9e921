// Random small networks put together from the operators that have rules, each derived and proved.

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "unit/graph/derived_network.h"
#include "weightsmith/core/rng.h"

using namespace weightsmith;
using testing::DerivedNetwork;

namespace {

constexpr std::int64_t kBatch = 3;

/// Writes a forward step by step. The value that goes on is `h`: an image (B, C, S, S), tokens
/// (B, T, C) or a vector (B, C).
class RandomNetwork {
 public:
  explicit RandomNetwork(std::uint64_t seed) : rng_(seed, {0x67726170}) {
    at::manual_seed(seed);
    const std::uint64_t kind = rng_.below(3);
    channels_ = 3;
    if (kind == 0) {
      size_ = 6;
      input_ = at::randn({kBatch, channels_, size_, size_});
    } else if (kind == 1) {
      tokens_ = 5;
      input_ = at::randn({kBatch, tokens_, channels_});
    } else {
      input_ = at::randn({kBatch, channels_});
    }
    line("h = x");
    widen();
    for (std::uint64_t step = 0, steps = 2 + rng_.below(4); step < steps; ++step) {
      if (is_image())
        image_step();
      else if (is_tokens())
        token_step();
      else
        vector_step();
    }
    if (is_image()) leave_image();
    if (is_tokens()) leave_tokens();
    line("return " + linear("h", channels_, 3, true));
  }

  const std::string& source() const { return source_; }
  torch::jit::Module module() const { return testing::make_network(shapes_, source_); }
  const at::Tensor& input() const { return input_; }

 private:
  bool is_image() const { return size_ > 0; }
  bool is_tokens() const { return tokens_ > 0; }

  void line(const std::string& text) { source_ += text + "\n"; }
  bool chance() { return rng_.below(2) == 0; }
  std::int64_t width() {
    constexpr std::int64_t kWidths[] = {4, 8, 12, 16};
    return kWidths[rng_.below(4)];
  }

  /// A new parameter's expression.
  std::string parameter(std::vector<std::int64_t> shape) {
    const std::string name = fmt::format("p{}", shapes_.size());
    shapes_.emplace_back(name, std::move(shape));
    return "self." + name;
  }

  std::string linear(const std::string& x, std::int64_t in, std::int64_t out, bool has_bias) {
    const std::string weight = parameter({out, in});
    return has_bias ? fmt::format("torch.linear({}, {}, {})", x, weight, parameter({out}))
                    : fmt::format("torch.linear({}, {})", x, weight);
  }

  std::string conv(const std::string& x, std::int64_t in, std::int64_t out, std::int64_t kernel,
                   std::int64_t groups = 1) {
    const std::string weight = parameter({out, in / groups, kernel, kernel});
    const std::string bias = chance() ? parameter({out}) : "None";
    return fmt::format("torch.conv2d({}, {}, {}, [1, 1], [{}, {}], [1, 1], {})", x, weight, bias,
                       kernel / 2, kernel / 2, groups);
  }

  /// From C units to others; elementwise in everything else.
  std::string project(const std::string& x, std::int64_t out) {
    return is_image() ? conv(x, channels_, out, chance() ? 1 : 3)
                      : linear(x, channels_, out, chance());
  }

  std::string activation(const std::string& x) {
    constexpr const char* kNames[] = {"relu", "sigmoid", "tanh", "silu", "hardswish"};
    const std::uint64_t choice = rng_.below(6);
    if (choice == 5) return fmt::format("torch.gelu({})", x);
    return fmt::format("torch.{}({})", kNames[choice], x);
  }

  std::string norm(const std::string& x, std::int64_t channels) {
    if (!is_image())
      return chance() ? fmt::format("torch.layer_norm({}, [{}], {}, {})", x, channels,
                                    parameter({channels}), parameter({channels}))
                      : fmt::format("{} * torch.rsqrt({}.pow(2).mean([-1], True) + 0.01) * {}", x,
                                    x, parameter({channels}));
    switch (rng_.below(3)) {
      case 0:
        return fmt::format("torch.group_norm({}, {}, {}, {})", x, channels % 4 == 0 ? 4 : 2,
                           parameter({channels}), parameter({channels}));
      case 1:
        return fmt::format("torch.instance_norm({}, {}, {}, None, None, True, 0.1, 1e-3, False)", x,
                           parameter({channels}), parameter({channels}));
      default: {
        const std::string affine = parameter({channels}) + ", " + parameter({channels});
        return fmt::format(
            "torch.batch_norm({}, {}, {}, torch.abs({}) + 0.5, False, 0.1, 1e-5, False)", x, affine,
            parameter({channels}), parameter({channels}));
      }
    }
  }

  void widen() {
    const std::int64_t out = width();
    line("h = " + activation(project("h", out)));
    channels_ = out;
  }

  /// h + f(h) with a hidden layer of its own.
  void residual() {
    const std::int64_t inner = width();
    line("r = " + norm("h", channels_));
    line("r = " + activation(project("r", inner)));
    const std::int64_t outer = channels_;
    channels_ = inner;
    line("r = " + project("r", outer));
    channels_ = outer;
    const std::string scaled = chance()
                                   ? fmt::format("r * {}", is_image() ? parameter({channels_, 1, 1})
                                                                      : parameter({channels_}))
                                   : "r";
    line("h = h + " + scaled);
  }

  std::int64_t channel_dim() const { return is_image() ? 1 : -1; }

  void gate() {
    const std::int64_t out = width();
    const std::int64_t dim = channel_dim();
    const std::string both = project("h", 2 * out);
    switch (rng_.below(3)) {
      case 0:
        line(fmt::format("h = torch.glu({}, {})", both, dim));
        break;
      case 1:
        line(fmt::format("g, v = torch.chunk({}, 2, {})", both, dim));
        line("h = " + activation("g") + " * v");
        break;
      default:
        line(fmt::format("g, v = torch.split({}, [{}, {}], {})", both, out, out, dim));
        line("h = torch.maximum(g, v)");
    }
    channels_ = out;
  }

  void concatenation() {
    const std::int64_t out = width();
    const std::string parts =
        chance() ? "h, " + project("h", out) : activation(project("h", out)) + ", h";
    line(fmt::format("h = torch.cat([{}], {})", parts, channel_dim()));
    channels_ += out;
    if (chance()) widen();
  }

  void parting() {
    const std::int64_t first = 1 + static_cast<std::int64_t>(rng_.below(channels_ - 1));
    const std::int64_t dim = channel_dim();
    line(fmt::format("l = h.narrow({}, 0, {})", dim, first));
    line(fmt::format("r = h.narrow({}, {}, {})", dim, first, channels_ - first));
    if (chance()) {
      line(fmt::format("h = torch.cat([r, {}], {})", activation("l"), dim));
      return;
    }
    const std::int64_t out = width();
    const std::int64_t all = channels_;
    channels_ = first;
    line("l = " + project("l", out));
    channels_ = all - first;
    line("r = " + project("r", out));
    channels_ = out;
    line("h = l + " + activation("r"));
  }

  /// One unit taken out of the others, as a gate for all of them or as a unit beside them.
  void single() {
    const std::int64_t dim = channel_dim() + (is_image() ? 0 : is_tokens() ? 3 : 2);
    const std::int64_t at = static_cast<std::int64_t>(rng_.below(channels_));
    switch (rng_.below(3)) {
      case 0:
        line(fmt::format("o = h.select({}, {}).unsqueeze({})", dim, at, dim));
        break;
      case 1:
        line(fmt::format("o = h.unbind({})[{}].unsqueeze({})", dim, at, dim));
        break;
      default:
        line(fmt::format("o = h.narrow({}, {}, 1)", dim, at));
    }
    if (chance()) {
      line("h = h * torch.sigmoid(o)");
    } else {
      line(fmt::format("h = torch.cat([h, {}], {})", activation("o"), dim));
      ++channels_;
    }
    widen();
  }

  bool common_step(std::uint64_t choice) {
    switch (choice) {
      case 0:
        widen();
        return true;
      case 1:
        residual();
        return true;
      case 2:
        gate();
        return true;
      case 3:
        concatenation();
        return true;
      case 4:
        parting();
        return true;
      case 5:
        line("h = " + norm("h", channels_));
        line("h = " + activation("h"));
        return true;
      case 6:
        single();
        return true;
      default:
        return false;
    }
  }

  void image_step() {
    const std::uint64_t choice = rng_.below(16);
    if (common_step(choice)) return;
    switch (choice) {
      case 13:
        if (channels_ % 4 != 0) break;
        line("h = torch.pixel_shuffle(h, 2)");
        channels_ /= 4;
        size_ *= 2;
        line("h = torch.avg_pool2d(h, [2, 2])");
        size_ /= 2;
        widen();
        break;
      case 14:
        if (size_ % 2 != 0) break;
        line("h = torch.pixel_unshuffle(h, 2)");
        channels_ *= 4;
        size_ /= 2;
        widen();
        break;
      case 7: {
        const std::int64_t groups = channels_ % 4 == 0 && chance() ? 4 : 1;
        const std::int64_t out = width();
        line("h = " + activation(conv("h", channels_, out, 3, groups)));
        channels_ = out;
        break;
      }
      case 8: {
        const std::int64_t multiplier = chance() ? 1 : 2;
        line("h = " + conv("h", channels_, channels_ * multiplier, 3, channels_));
        channels_ *= multiplier;
        line("h = " + activation("h"));
        widen();
        break;
      }
      case 9:
        line(fmt::format(
            "s = torch.sigmoid({})",
            conv(activation(conv("h.mean([2, 3], True)", channels_, 4, 1)), 4, channels_, 1)));
        line("h = h * s");
        break;
      case 10:
        if (channels_ % 2 != 0) break;
        line(fmt::format("h = h.view({}, 2, {}, {}, {}).transpose(1, 2).reshape({}, {}, {}, {})",
                         kBatch, channels_ / 2, size_, size_, kBatch, channels_, size_, size_));
        break;
      case 11:
        line(chance() ? "h = torch.max_pool2d(h, [2, 2], [1, 1])"
                      : "h = torch.avg_pool2d(h, [2, 2], [1, 1])");
        if (--size_ < 2) leave_image();
        break;
      case 12: {
        const std::int64_t out = width();
        line(fmt::format("h = torch.conv_transpose2d(h, {}, None, [2, 2])",
                         parameter({channels_, out, 2, 2})));
        line(fmt::format("h = torch.avg_pool2d(h, [2, 2])"));
        channels_ = out;
        break;
      }
      default:
        leave_image();
    }
  }

  void leave_image() {
    if (chance()) {
      line("h = h.flatten(2).transpose(1, 2)");
      tokens_ = size_ * size_;
    } else if (chance()) {
      line("h = h.mean([2, 3])");
    } else {
      // The units of every pixel go on by themselves.
      line(chance() ? "h = h.flatten(1)" : "h = h.permute(0, 2, 3, 1).flatten(1)");
      const std::int64_t out = width();
      line("h = " + activation(linear("h", channels_ * size_ * size_, out, true)));
      channels_ = out;
    }
    size_ = 0;
  }

  void attention() {
    constexpr std::int64_t kHeads = 2;
    const std::int64_t d = chance() ? 3 : 4;
    const std::int64_t inner = kHeads * d;
    line("n = " + norm("h", channels_));
    if (chance()) {
      line(fmt::format("qkv = {}.view({}, {}, 3, {}, {}).permute(2, 0, 3, 1, 4)",
                       linear("n", channels_, 3 * inner, chance()), kBatch, tokens_, kHeads, d));
      line("q, k, v = qkv.unbind(0)");
    } else {
      for (const char* name : {"q", "k", "v"})
        line(fmt::format("{} = {}.view({}, {}, {}, {}).transpose(1, 2)", name,
                         linear("n", channels_, inner, chance()), kBatch, tokens_, kHeads, d));
    }
    line("s = torch.matmul(q, k.transpose(-2, -1)) * 0.5");
    if (chance()) line("s = s + " + parameter({kHeads, tokens_, tokens_}));
    line(
        fmt::format("y = torch.matmul(torch.softmax(s, -1), v).transpose(1, 2).reshape({}, {}, {})",
                    kBatch, tokens_, inner));
    line("h = h + " + linear("y", inner, channels_, chance()));
  }

  /// Two heads of queries for each of two heads of keys and values.
  void shared_heads() {
    const std::int64_t d = chance() ? 3 : 4;
    const bool has_groups = chance();  // else one head of keys and values
    const std::int64_t groups = has_groups ? 2 : 1;
    for (const char* name : {"q", "k", "v"}) {
      const std::int64_t shared = *name == 'q' ? 2 : 1;
      line(fmt::format("{} = {}.view({}, {}, {}, {}, {}).permute(0, 2, 3, 1, 4)", name,
                       linear("h", channels_, groups * shared * d, chance()), kBatch, tokens_,
                       groups, shared, d));
    }
    line("y = torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)), -1), v)");
    line(fmt::format("y = y.permute(0, 3, 1, 2, 4).reshape({}, {}, {})", kBatch, tokens_,
                     groups * 2 * d));
    line("h = h + " + linear("y", groups * 2 * d, channels_, chance()));
  }

  void linear_attention() {
    constexpr std::int64_t kHeads = 2;
    const std::int64_t d = chance() ? 3 : 4;
    const std::int64_t e = chance() ? 3 : 5;
    for (const char* name : {"q", "k", "v"}) {
      const std::int64_t units = *name == 'v' ? e : d;
      line(fmt::format("{} = {}.view({}, {}, {}, {}).transpose(1, 2)", name,
                       linear("h", channels_, kHeads * units, chance()), kBatch, tokens_, kHeads,
                       units));
    }
    line("k = torch.softmax(k, 2)");
    line("c = torch.matmul(k.transpose(-2, -1), v)");
    if (chance()) line("c = torch.tanh(c) * " + parameter({kHeads, 1, 1}));
    line(fmt::format("y = torch.matmul(torch.softmax(q, 3), c).transpose(1, 2).reshape({}, {}, {})",
                     kBatch, tokens_, kHeads * e));
    line("h = h + " + linear("y", kHeads * e, channels_, chance()));
  }

  void token_step() {
    const std::uint64_t choice = rng_.below(14);
    if (common_step(choice)) return;
    switch (choice) {
      case 7:
      case 8:
        attention();
        break;
      case 11:
        shared_heads();
        break;
      case 12:
        linear_attention();
        break;
      case 9: {  // a hidden layer along the tokens
        const std::int64_t hidden = width();
        line("m = " + activation(linear("h.transpose(1, 2)", tokens_, hidden, true)));
        line("h = h + " + linear("m", hidden, tokens_, true) + ".transpose(1, 2)");
        break;
      }
      case 10:
        line("h = h + " + parameter({tokens_, channels_}));
        break;
      default:
        leave_tokens();
    }
  }

  void leave_tokens() {
    switch (rng_.below(3)) {
      case 0:
        line("h = h.mean([1])");
        break;
      case 1:
        line("h = h[:, 0]");
        break;
      default:
        line("h = h.amax([1])");
    }
    tokens_ = 0;
  }

  void vector_step() {
    const std::uint64_t choice = rng_.below(10);
    if (common_step(choice)) return;
    switch (choice) {
      case 7: {  // maxout
        const std::int64_t out = width();
        line(fmt::format("h = {}.view({}, {}, 2).amax([2])", linear("h", channels_, 2 * out, true),
                         kBatch, out));
        channels_ = out;
        break;
      }
      case 8:
        line("h = torch.prelu(h, " + parameter({channels_}) + ")");
        break;
      default: {  // a matrix from a vector, read row by row
        const std::int64_t out = width();
        line(fmt::format("h = {}.view({}, {}, 3)", linear("h", channels_, 3 * out, true), kBatch,
                         out));
        line(fmt::format("h = torch.cat([h.mean([2]), h.amax([2])], 1)"));
        channels_ = 2 * out;
      }
    }
  }

  Rng rng_;
  testing::Shapes shapes_;
  std::string source_;
  at::Tensor input_;
  std::int64_t channels_ = 0;
  std::int64_t size_ = 0;    // of an image
  std::int64_t tokens_ = 0;  // of tokens
};

}  // namespace

TEST_CASE("random graphs are derived and proved", "[random_graphs]") {
  constexpr std::uint64_t kGraphs = 100;
  std::int64_t free = 0;
  std::int64_t pinned = 0;
  for (std::uint64_t seed = 0; seed < kGraphs; ++seed) {
    const RandomNetwork network(seed);
    INFO("seed " << seed << "\n" << network.source());
    const DerivedNetwork net(network.module(), {network.input()});
    INFO(net.describe());
    testing::check_proved(net);
    CHECK(net.derivation.free_units > 0);
    free += net.derivation.free_units;
    pinned += net.derivation.pinned_units;
  }
  INFO("free " << free << ", pinned " << pinned);
  CHECK(free >= 4 * pinned);
}
