// What the tools do where they cannot write: exit code 4, and nothing half-written stays behind.
#include <sys/mount.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include "support/files.h"
#include "support/temporary_folder.h"
#include "tools.h"

using namespace weightsmith;
using namespace weightsmith::testing;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

/// Files of some 40 kB.
json larger_training() {
  json config = small_training();
  config["model"]["options"]["hidden"] = {64, 64};
  return config;
}

/// A file system of its own, of a fixed size; absent where the process may not mount one.
class SmallDisk {
 public:
  SmallDisk(const fs::path& folder, const std::string& size) : folder_(folder) {
    fs::create_directories(folder);
    mounted_ = ::mount("tmpfs", folder.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(folder_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  bool mounted() const { return mounted_; }
  bool grow(const std::string& size) const {
    return ::mount("tmpfs", folder_.c_str(), "tmpfs", MS_REMOUNT, ("size=" + size).c_str()) == 0;
  }

 private:
  fs::path folder_;
  bool mounted_ = false;
};

ProgramResult train_into(const std::string& config, const fs::path& out,
                         const ProgramOptions& options = {}) {
  return lookaround_train({"--config", config, "--out", out.string(), "--quiet"}, options);
}

}  // namespace

TEST_CASE("a file where the folder should be") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  write_bytes(folder / "out", "mine");
  check_failure(train_into(file, folder / "out"), "lookaround-train", 4,
                {(folder / "out").string(), "--out"});
  check_failure(train_into(file, folder / "out" / "below"), "lookaround-train", 4,
                {(folder / "out" / "below").string(), "--out"});
  CHECK(read_bytes(folder / "out") == "mine");
}

TEST_CASE("a folder in which nothing may be written") {
  if (::geteuid() == 0) {
    WARN("root may write anywhere: a read-only folder is not tried");
    return;
  }
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  fs::create_directories(folder / "locked");
  fs::permissions(folder / "locked", fs::perms::owner_read | fs::perms::owner_exec);
  check_failure(train_into(file, folder / "locked"), "lookaround-train", 4,
                {(folder / "locked").string(), "cannot write"});
  check_failure(train_into(file, folder / "locked" / "out"), "lookaround-train", 4,
                {(folder / "locked" / "out").string(), "Permission denied"});
  fs::permissions(folder / "locked", fs::perms::owner_all);
}

TEST_CASE("files that may not grow as large as they must") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", larger_training());
  for (const std::uint64_t limit : {0, 1, 2000, 20000}) {
    INFO("limit " << limit);
    ProgramOptions options;
    options.file_size_limit = limit;
    const fs::path out = folder / std::to_string(limit);
    check_failure(train_into(file, out, options), "lookaround-train", 4,
                  {out.string(), "cannot write"});
    check_nothing_half_written(out);
  }
}

TEST_CASE("a merge whose files may not grow as large as they must") {
  const TemporaryFolder folder;
  const json wide = {{"hidden", {64, 64}}};
  const std::string file = write_config(folder / "merge.json",
                                        plain_merge(save_builtin(folder / "a.pt", "mlp", wide, 1),
                                                    save_builtin(folder / "b.pt", "mlp", wide, 2)));
  const auto merge = [&](const fs::path& out, std::uint64_t limit, const std::string& more) {
    ProgramOptions options;
    options.file_size_limit = limit;
    return mudsc_merge({"--config", file, "--out", out.string(), "--quiet", more}, options);
  };
  // merged.safetensors, merged.pt
  const auto whole = folder / "whole";
  summary_of(merge(whole, 1 << 30, "-v"));
  const auto tensors = fs::file_size(whole / "merged.safetensors");
  REQUIRE(fs::file_size(whole / "merged.pt") > tensors);
  for (const auto& [limit, name] :
       {std::pair{tensors - 1, "merged.safetensors"}, {tensors, "merged.pt"}}) {
    const fs::path out = folder / name;
    check_failure(merge(out, limit, "--overwrite"), "mudsc-merge", 4, {name, "cannot write"});
    check_nothing_half_written(out);
    CHECK_FALSE(fs::exists(out / name));
  }

  // A run that is to be replaced stays whole, file by file.
  check_failure(merge(whole, tensors, "--overwrite"), "mudsc-merge", 4, {"merged.pt"});
  check_nothing_half_written(whole);
}

TEST_CASE("a full disk") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", larger_training());
  bool tried = false;
  for (const char* size : {"16k", "64k", "256k"}) {
    const SmallDisk disk(folder / size, size);
    if (!disk.mounted()) continue;
    tried = true;
    INFO("disk of " << size);
    const fs::path out = folder / size / "out";
    check_failure(train_into(file, out), "lookaround-train", 4, {out.string(), "cannot write"});
    check_nothing_half_written(out);
  }
  if (!tried) WARN("this process may not mount: a full disk is not tried");
}

TEST_CASE("a checkpoint that may not grow as large as it must keeps those before") {
  const TemporaryFolder folder;
  json config = small_training();
  config["epochs"] = 4;
  config["checkpoint"] = {{"keep", 4}};
  const std::string file = write_config(folder / "train.json", config);
  const auto checkpoint = [](int epoch) {
    return "checkpoint-00000" + std::to_string(epoch) + "-00000000.safetensors";
  };
  const fs::path whole = folder / "whole";
  summary_of(train_into(file, whole));
  // A checkpoint holds the scores of the epochs before it: each is larger than the last.
  const auto second = fs::file_size(whole / checkpoint(2));
  const auto third = fs::file_size(whole / checkpoint(3));
  REQUIRE(third > second + 100);
  ProgramOptions options;
  options.file_size_limit = (second + third) / 2;
  const fs::path out = folder / "out";
  check_failure(train_into(file, out, options), "lookaround-train", 4,
                {checkpoint(3), "cannot write"});
  check_nothing_half_written(out);
  CHECK(fs::exists(out / checkpoint(1)));
  CHECK(fs::exists(out / checkpoint(2)));
  CHECK_FALSE(fs::exists(out / checkpoint(3)));

  const json resumed = summary_of(
      lookaround_train({"--config", file, "--out", out.string(), "--quiet", "--resume"}));
  CHECK(resumed["resumed_from"]["epoch"] == 2);
  CHECK(read_bytes(out / "model.safetensors") == read_bytes(whole / "model.safetensors"));
}

TEST_CASE("a disk that fills up while a checkpoint is written keeps the one before") {
  const TemporaryFolder folder;
  json config = small_training();
  config["model"]["options"]["hidden"] = {512};  // checkpoints of 0.9 MB
  const std::string file = write_config(folder / "train.json", config);
  const SmallDisk disk(folder / "disk", "1500k");
  if (!disk.mounted()) {
    WARN("this process may not mount: a disk that fills up is not tried");
    return;
  }
  const fs::path out = folder / "disk" / "out";
  const std::string first = "checkpoint-000001-00000000.safetensors";
  check_failure(train_into(file, out), "lookaround-train", 4,
                {"checkpoint-000002-00000000.safetensors", "cannot write", "No space left"});
  check_nothing_half_written(out);
  CHECK(fs::exists(out / first));
  CHECK_FALSE(fs::exists(out / "checkpoint-000002-00000000.safetensors"));

  REQUIRE(disk.grow("16m"));
  const json resumed = summary_of(
      lookaround_train({"--config", file, "--out", out.string(), "--quiet", "--resume"}));
  CHECK(resumed["resumed_from"]["epoch"] == 1);
  summary_of(train_into(file, folder / "whole"));
  CHECK(read_bytes(out / "model.safetensors") == read_bytes(folder / "whole/model.safetensors"));
}

TEST_CASE("a standard output that is closed or full") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  for (const char* redirection : {">&-", "2>&- >&-", "<&- >&- 2>&-", ">/dev/full"}) {
    INFO(redirection);
    const fs::path out = folder / "out";
    const ProgramResult result = lookaround_train_redirected(
        redirection, {"--config", file, "--out", out.string(), "--overwrite"});
    CHECK(result.exit_code == 4);
    CHECK(result.out.empty());
    if (std::string(redirection).find("2>") == std::string::npos)
      CHECK_THAT(result.err, Catch::Contains("standard output: cannot write the summary"));
    // It went nowhere else: everything is as after any other run.
    CHECK(json::accept(read_bytes(out / "results.json")));
    CHECK(read_bytes(out / "log.txt").find("\"parameters\"") == std::string::npos);
    for (const std::string& name : files_under(out))
      if (name.ends_with(".pt")) CHECK_NOTHROW(load_archive(out / name));
  }
  CHECK(lookaround_train_redirected(">&-", {"--help"}).exit_code == 4);
}

TEST_CASE("a log that cannot be written") {
  const TemporaryFolder folder;
  const std::string file = write_config(folder / "train.json", small_training());
  check_failure(lookaround_train({"--config", file, "--out", (folder / "out").string(), "--quiet",
                                  "--log-file", folder.path().string()}),
                "lookaround-train", 4, {folder.path().string(), "--log-file"});
  CHECK_FALSE(fs::exists(folder / "out"));
}
