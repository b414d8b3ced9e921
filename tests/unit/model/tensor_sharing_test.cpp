#include "weightsmith/model/tensor_sharing.h"

#include <torch/script.h>

#include "support/temporary_folder.h"
#include "weightsmith/model/script_model.h"

using namespace weightsmith;

namespace {

/// `a` and `b` are views of one storage; `flat` holds a, as an LSTM's list of flat weights does.
torch::jit::Module sharing_network(const at::Tensor& a, const at::Tensor& b) {
  torch::jit::Module net("Net");
  net.register_parameter("a", a, false);
  net.register_parameter("b", b, false);
  c10::List<at::Tensor> flat;
  flat.push_back(a.alias());
  net.register_attribute("flat", c10::ListType::ofTensors(), flat);
  net.define(R"(
    def forward(self, x):
        return torch.matmul(torch.matmul(x, self.flat[0]), self.b)
  )");
  return net;
}

TEST_CASE("views of one storage get memory of their own", "[tensor_sharing]") {
  at::manual_seed(1);
  const at::Tensor vector = torch::randn({24});
  const at::Tensor x = torch::randn({5, 3});
  const at::Tensor a = vector.narrow(0, 0, 9).view({3, 3});
  at::Tensor b;
  bool are_tied = true;
  SECTION("slices") {
    b = vector.narrow(0, 9, 9).view({3, 3});
    are_tied = false;
  }
  SECTION("a transposed weight") { b = a.t(); }
  SECTION("slices that overlap") { b = vector.narrow(0, 6, 9).view({3, 3}); }
  const at::Tensor expected = x.matmul(a).matmul(b);
  const testing::TemporaryFolder folder;
  // As an archive brings them: its tensors are views of one storage again.
  sharing_network(a, b).save((folder / "net.pt").string());
  ModelRef ref;
  ref.script = folder / "net.pt";
  ScriptModel model = ScriptModel::load(ref, {});
  CHECK(model.untied() ==
        (are_tied ? std::vector<std::string>{"a and b"} : std::vector<std::string>{}));
  CHECK(model.forward(x).equal(expected));
  const TensorMap own = model.parameters();
  CHECK_FALSE(own.at("a").is_alias_of(own.at("b")));
  CHECK(model.module().attr("flat").toTensorList().get(0).is_same(own.at("a")));

  // Copies are whole, and what is written to one parameter does not reach the other.
  ScriptModel copy = model.clone();
  CHECK(copy.forward(x).equal(expected));
  {
    const at::NoGradGuard no_grad;
    copy.parameters().at("a").mul_(2);
  }
  CHECK(copy.parameters().at("b").equal(b));
  CHECK(copy.forward(x).allclose(2 * expected));
  CHECK(model.forward(x).equal(expected));
  copy.save(folder / "copy.pt");
  ref.script = folder / "copy.pt";
  CHECK(ScriptModel::load(ref, {}).forward(x).allclose(2 * expected));
}

TEST_CASE("tensors that show the same elements become one", "[tensor_sharing]") {
  at::manual_seed(2);
  const at::Tensor a = torch::randn({3, 3});
  ScriptModel model(sharing_network(a, a.alias()), "net");
  CHECK(model.parameters().at("a").is_same(model.parameters().at("b")));
  CHECK(model.untied().empty());
  // An empty tensor shows nothing.
  CHECK(separate_views(sharing_network(torch::empty({0, 3}), torch::empty({3, 0}))).empty());
}

}  // namespace
