#include "tests/store/sqlite_env.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>

#include "common/log.h"

namespace usblease::store_test {

namespace fs = std::filesystem;

TempDir::TempDir(bool in_memory) {
  const char* const parent = in_memory && access("/dev/shm", W_OK) == 0 ? "/dev/shm" : std::getenv("TMPDIR");
  path_ = std::string(parent != nullptr ? parent : "/tmp") + "/usblease-test-XXXXXX";
  ck_assert_msg(mkdtemp(path_.data()) != nullptr, "mkdtemp %s", path_.c_str());
}

TempDir::~TempDir() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.flush();
  ck_assert_msg(out.good(), "cannot write %s", path.c_str());
}

Image take_image(const std::string& database) {
  Image image;
  for (const char* suffix : {"", "-wal", ".mark"}) {
    if (fs::exists(database + suffix)) image[suffix] = read_file(database + suffix);
  }
  return image;
}

void put_image(const std::string& database, const Image& image) {
  for (const char* suffix : {"", "-wal", ".mark"}) fs::remove(database + suffix);
  for (const auto& [suffix, bytes] : image) write_file(database + suffix, bytes);
}

std::unique_ptr<store::Store> SqliteBackend::open(store::Executor executor) {
  auto store = store::open_sqlite_store({path_, ""}, std::move(executor));
  ck_assert_msg(store.has_value(), "%s", store ? "" : store.error().message.c_str());
  return std::move(*store);
}

void SqliteBackend::end(std::unique_ptr<store::Store> store, bool clean) {
  std::optional<Image> image;
  if (!clean) image = take_image(path_);
  store.reset();
  if (!image) return;
  path_ = dir_.file(std::to_string(++kills_) + ".db");
  put_image(path_, *image);
}

std::unique_ptr<store::Store> open_store(const std::string& path, TestLoop& loop) {
  auto store = store::open_sqlite_store({path, ""}, loop.executor());
  ck_assert_msg(store.has_value(), "%s", store ? "" : store.error().message.c_str());
  return std::move(*store);
}

std::string expect_refused_open(const std::string& path, const std::string& word, const std::string& cluster_id) {
  TestLoop loop;
  const auto store = store::open_sqlite_store({path, cluster_id}, loop.executor());
  ck_assert_msg(!store, "%s was opened; expected: %s", path.c_str(), word.c_str());
  const std::string& message = store.error().message;
  ck_assert_msg(store.error().code == ErrorCode::kRefused, "another code: %s", message.c_str());
  ck_assert_msg(message.find(path) != std::string::npos, "no path in: %s", message.c_str());
  ck_assert_msg(message.find(word) != std::string::npos, "no \"%s\" in: %s", word.c_str(), message.c_str());
  return message;
}

store::TxnResult commit(store::Store& store, TestLoop& loop, store::Txn txn) {
  std::optional<store::TxnResult> result;
  store.commit(std::move(txn), [&](store::TxnResult r) { result = std::move(r); });
  ck_assert_msg(loop.run_until([&] { return result.has_value(); }), "commit was never answered");
  return *result;
}

store::ReadResult read_all(store::Store& store, TestLoop& loop) {
  std::optional<store::ReadResult> result;
  store.read("", [&](store::ReadResult r) { result = std::move(r); });
  ck_assert_msg(loop.run_until([&] { return result.has_value(); }), "read was never answered");
  return *result;
}

int run_suite(Suite* suite) {
  log::setup("test", log::Level::kError);
  SRunner* const runner = srunner_create(suite);
  srunner_run_all(runner, CK_NORMAL);
  const int failed = srunner_ntests_failed(runner);
  srunner_free(runner);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace usblease::store_test
